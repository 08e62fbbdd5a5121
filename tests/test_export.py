"""Exports, read back by the programs' own loaders where they can be had: diffusers, and ComfyUI's rule of names."""

import copy
import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file
from torch import Tensor, nn
from wan_folder import make_wan_folder

from vrlvr import options
from vrlvr.checkpoint import read_tensors, write_folder
from vrlvr.cli import main
from vrlvr.errors import UserError
from vrlvr.export import LORA_FILE, MODEL_FILE, adapters_of, comfyui_lora, diffusers_lora, export
from vrlvr.lora import add_lora, lora_state
from vrlvr.models.dit import WanConfig, WanTransformer
from vrlvr.models.text import FrozenText
from vrlvr.models.wan import load_transformer
from vrlvr.models.wan_names import original_names
from vrlvr.policy import Policy

CPU = torch.device("cpu")
RANK, ALPHA = 3, 4.5
KIND = {"lora": [f"--model.lora.rank={RANK}", f"--model.lora.alpha={ALPHA}"], "full": []}


def original_5b() -> dict[str, Tensor]:
    """Wan2.2-TI2V-5B as `wan/modules/model.py` lays it out: its modules alone, on the meta device."""
    dim, ffn, text, freq, channels = 3072, 14336, 4096, 256, 48

    def attention() -> nn.ModuleDict:
        parts: dict[str, nn.Module] = {name: nn.Linear(dim, dim) for name in "qkvo"}
        return nn.ModuleDict(parts | {name: nn.RMSNorm(dim) for name in ("norm_q", "norm_k")})

    def block() -> nn.Module:
        module = nn.ModuleDict(
            {
                "norm1": nn.LayerNorm(dim, elementwise_affine=False),
                "self_attn": attention(),
                "norm3": nn.LayerNorm(dim),
                "cross_attn": attention(),
                "norm2": nn.LayerNorm(dim, elementwise_affine=False),
                "ffn": nn.Sequential(nn.Linear(dim, ffn), nn.GELU(), nn.Linear(ffn, dim)),
            }
        )
        module.register_parameter("modulation", nn.Parameter(torch.empty(1, 6, dim)))
        return module

    with torch.device("meta"):
        head = nn.ModuleDict(
            {"norm": nn.LayerNorm(dim, elementwise_affine=False), "head": nn.Linear(dim, 4 * channels)}
        )
        head.register_parameter("modulation", nn.Parameter(torch.empty(1, 2, dim)))
        model = nn.ModuleDict(
            {
                "patch_embedding": nn.Conv3d(channels, dim, (1, 2, 2)),
                "text_embedding": nn.Sequential(nn.Linear(text, dim), nn.GELU(), nn.Linear(dim, dim)),
                "time_embedding": nn.Sequential(nn.Linear(freq, dim), nn.SiLU(), nn.Linear(dim, dim)),
                "time_projection": nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim)),
                "blocks": nn.ModuleList([block() for _ in range(30)]),
                "head": head,
            }
        )
    return model.state_dict()


@pytest.fixture(scope="module")
def ours_5b() -> WanTransformer:
    with torch.device("meta"):
        return WanTransformer(WanConfig())


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_every_parameter_of_the_5b_has_its_original_name(ours_5b: WanTransformer) -> None:
    state = ours_5b.state_dict()
    renamed = {new: state[old] for old, new in original_names(state).items()}
    assert len(renamed) == len(state) == 825
    assert shapes(renamed) == shapes(original_5b())


def test_diffusers_own_conversion_is_the_inverse(ours_5b: WanTransformer) -> None:
    state = ours_5b.state_dict()
    renamed = {new: state[old] for old, new in original_names(state).items()}
    back = convert_wan_transformer_to_diffusers(renamed)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)


def test_every_adapter_of_the_5b_has_a_place_in_both_layouts(ours_5b: WanTransformer) -> None:
    dit = copy.deepcopy(ours_5b)
    add_lora(dit, 4, 4, ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"], seed=0)
    linear = [name for name, module in ours_5b.blocks.named_modules() if type(module) is nn.Linear]
    adapters = adapters_of(lora_state(dit))
    assert {f"blocks.{name}" for name in linear} == adapters.keys()  # all that can be targeted
    assert len(adapters) == 30 * 10
    diffusers_keys, comfy_keys = diffusers_lora(adapters, 4.0), comfyui_lora(adapters, 4.0)
    assert len(diffusers_keys) == 2 * len(adapters)
    assert len(comfy_keys) == 3 * len(adapters)
    plain = original_5b()
    for key, tensor in comfy_keys.items():  # ComfyUI looks for them by "diffusion_model." and the weight's own name
        layer, side = key.removeprefix("diffusion_model.").removesuffix(".weight").rsplit(".", 1)
        out_dim, in_dim = plain[f"{layer}.weight"].shape
        assert tuple(tensor.shape) == {"lora_down": (4, in_dim), "lora_up": (out_dim, 4), "alpha": ()}[side]
    theirs = ours_5b.state_dict()
    assert all(f"{key.split('.', 1)[1].rsplit('.lora_', 1)[0]}.weight" in theirs for key in diffusers_keys)


@pytest.mark.parametrize(
    "name", ["blocks.0.attn2.add_k_proj.weight", "blocks.x.attn1.to_q.weight", "attn1.to_q", "blocks.0.proj_out", ""]
)
def test_a_name_that_wan_has_not_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"1 of 2 tensors have no name in Wan's own layout"):
        original_names(["blocks.0.attn1.to_q.weight", name])
    with pytest.raises(UserError, match="no name"):
        diffusers_lora({name: (torch.zeros(1, 2), torch.zeros(2, 1))}, 1.0)


def test_an_adapter_without_its_other_half_is_refused() -> None:
    a, b = torch.zeros(2, 5), torch.zeros(4, 2)
    layer = "blocks.0.attn1.to_q"
    assert adapters_of({f"{layer}.lora_A.default.weight": a, f"{layer}.lora_B.weight": b, "proj_out.weight": a}) == {
        layer: (a, b)
    }
    for broken in ({"A.weight": a}, {"A.weight": a, "B.weight": b[:, :1]}, {"A.weight": a, "B.weight": b, "B.bias": a}):
        with pytest.raises(UserError, match=r"half|no lora_A or lora_B"):
            adapters_of({f"{layer}.lora_{key}": tensor for key, tensor in broken.items()})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan") / "models--Acme--Tiny-TI2V" / "snapshots" / "0")


@pytest.fixture(scope="module")
def runs(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, WanTransformer]]:
    """Two runs with a checkpoint, of adapters and of all weights, and the transformers that they trained."""
    found = {}
    for kind, arguments in KIND.items():
        run_dir = tmp_path_factory.mktemp("runs") / kind
        config = options.parse([f"--run_dir={run_dir}", f"--model.path={source}", *arguments])
        options.save(config, run_dir / "config.yaml")
        dit = load_transformer(source, CPU, torch.float32)
        if kind == "lora":
            add_lora(dit, RANK, ALPHA, config.model.lora.targets, seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in dit.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        policy = Policy(dit, FrozenText(torch.zeros(1, 2, 16)), "pin")
        state = {"stage": "grpo", "progress": {"step": 7}}
        tensors = {"model": load_transformer(source, CPU, torch.float32).state_dict(), "ema": policy.state_dict()}
        write_folder(run_dir / "checkpoints" / "grpo-final", tensors, state)
        found[kind] = run_dir, dit.requires_grad_(False)
    return found


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    latents, text = torch.randn(2, 6, 3, 2, 4, generator=generator), torch.randn(2, 5, 16, generator=generator)
    return latents, torch.tensor([331.0, 998.0]), text


def assert_same_velocity(theirs: nn.Module, ours: WanTransformer) -> None:
    with torch.no_grad():
        velocity = theirs(*inputs()).sample
        torch.testing.assert_close(velocity, ours(*inputs()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["lora-diffusers", "lora-comfyui"])
def test_diffusers_loads_the_adapters(format: str, runs, source: Path, tmp_path: Path) -> None:
    run_dir, dit = runs["lora"]
    export(run_dir, tmp_path / "out", format)  # type: ignore[arg-type]
    pipeline = diffusers.WanImageToVideoPipeline.from_pretrained(source)
    before = pipeline.transformer(*inputs()).sample
    pipeline.load_lora_weights(tmp_path / "out")
    assert_same_velocity(pipeline.transformer, dit)
    assert not torch.allclose(before, dit(*inputs()), atol=0.05)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {LORA_FILE, "README.md", "vrlvr_export.json"}


def test_comfyui_gets_the_same_weights_from_the_adapters(runs, source: Path, tmp_path: Path) -> None:
    """Its rule: W + (alpha / rank) up down for every weight, found by the weight's own name."""
    run_dir, _ = runs["lora"]
    export(run_dir, tmp_path / "lora", "lora-comfyui")
    export(run_dir, tmp_path / "model", "comfyui")
    lora, merged = load_file(tmp_path / "lora" / LORA_FILE), load_file(tmp_path / "model" / MODEL_FILE)
    base = load_transformer(source, CPU, torch.float32).state_dict()
    used = set()
    for old, name in original_names(base).items():
        weight, key = base[old], f"diffusion_model.{name.removesuffix('.weight')}"
        if f"{key}.lora_up.weight" in lora:
            up, down, alpha = (lora[f"{key}.{end}"] for end in ("lora_up.weight", "lora_down.weight", "alpha"))
            used |= {f"{key}.{end}" for end in ("lora_up.weight", "lora_down.weight", "alpha")}
            weight = weight + alpha.item() / len(down) * up @ down
        torch.testing.assert_close(merged[name], weight)
    assert used == lora.keys()


@pytest.mark.parametrize(("kind", "format"), [("lora", "merged"), ("full", "diffusers")])
def test_diffusers_loads_the_pipeline(kind: str, format: str, runs, source: Path, tmp_path: Path, capsys) -> None:
    run_dir, dit = runs[kind]
    out = tmp_path / "out"
    for _ in range(2):  # over an earlier export too
        assert main(["export", f"--run_dir={run_dir}", f"--out={out}", f"--format={format}"]) == 0
        assert f"{out} holds {run_dir}'s grpo-final as {format}, 0.00 GB; its README.md" in capsys.readouterr().out
    pipeline = diffusers.WanImageToVideoPipeline.from_pretrained(out)
    assert_same_velocity(pipeline.transformer, dit)
    vae = diffusers.AutoencoderKLWan.from_pretrained(source, subfolder="vae").state_dict()
    torch.testing.assert_close(pipeline.vae.state_dict(), vae, rtol=0, atol=0)
    assert (out / "README.md").read_text(encoding="utf-8").startswith("---\nbase_model: Acme/Tiny-TI2V\n")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_single_file_is_read_by_its_original_names(kind: str, runs, source: Path, tmp_path: Path) -> None:
    run_dir, dit = runs[kind]
    export(run_dir, tmp_path / "out", "comfyui")
    state = convert_wan_transformer_to_diffusers(load_file(tmp_path / "out" / MODEL_FILE))
    model = diffusers.WanTransformer3DModel.from_config(
        json.loads((source / "transformer" / "config.json").read_text())
    )
    model.load_state_dict(state, strict=True)
    assert_same_velocity(model, dit)


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        ("lora", {"format": "diffusers"}, "use --format merged, comfyui, lora-diffusers or lora-comfyui"),
        ("full", {"format": "merged"}, "use --format diffusers or comfyui"),
        ("full", {"format": "lora-comfyui"}, "trained no adapters"),
        ("full", {"format": "diffusers", "checkpoint": "sft-final"}, "--checkpoint may be grpo-final"),
        ("scratch", {"format": "diffusers"}, r"export a run with model\.path"),
        ("nowhere", {"format": "diffusers"}, r"config\.yaml does not exist; name a trained run with --run_dir"),
        ("narrow", {"format": "merged"}, r"model\.lora\.rank"),
        ("other", {"format": "diffusers"}, "do not fit the model"),
    ],
)
def test_bad_input_is_told(kind: str, arguments: dict[str, str], told: str, runs, tmp_path: Path) -> None:
    made_of = {"scratch": "full", "narrow": "lora", "other": "full"}
    run_dir = tmp_path / "run"
    if kind in runs:
        run_dir = runs[kind][0]
    elif kind in made_of:
        former = runs[made_of[kind]][0]
        write_folder(
            run_dir / "checkpoints" / "grpo-final",
            {"ema": read_tensors(former / "checkpoints" / "grpo-final", "ema")},
            {"stage": "grpo", "progress": {"step": 7}},
        )
        config = options.parse(["--config", str(former / "config.yaml")])
        if kind == "scratch":
            config.model.path = None
        elif kind == "narrow":
            config.model.lora.rank = RANK - 1
        else:
            config.model.path = str(make_wan_folder(tmp_path / "wide", ffn_dim=32))
        options.save(config, run_dir / "config.yaml")
    with pytest.raises(UserError, match=told):
        export(run_dir, tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["lora-diffusers", "merged"])
def test_what_is_not_ours_is_not_replaced(format: str, runs, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="is not empty and no earlier export"):
        export(runs["lora"][0], tmp_path, format)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
