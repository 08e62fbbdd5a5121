"""Wan folders read and written, against diffusers' own loading and its `WanImageToVideoPipeline`."""

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from wan_folder import (
    FLOW_SHIFT,
    HEIGHT,
    NUM_FRAMES,
    TEXT_DIM,
    WIDTH,
    diffusers,
    edit_json,
    even_pipeline,
    generate,
    make_experts_folder,
    make_wan_folder,
    picture,
)

from vrlvr.errors import UserError
from vrlvr.models import wan
from vrlvr.models.dit import WanConfig, WanTransformer
from vrlvr.models.text import TaskEmbedding
from vrlvr.models.wan_vae import WanVAECodec
from vrlvr.policy import Policy
from vrlvr.sampling import sample
from vrlvr.sde import ODE, plan_steps, sigma_schedule

CPU = torch.device("cpu")
NUM_STEPS = 4
WAN_14B = WanConfig(
    num_attention_heads=40, in_channels=36, out_channels=16, ffn_dim=13824, num_layers=40
)  # Wan2.2-I2V-A14B's experts


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan") / "Wan2.2-TI2V-tiny")


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(source, tmp_path / "model"))


def stored(folder: Path, name: str = "transformer") -> dict[str, Tensor]:
    """All tensors of a component's files."""
    return {key: value for file in (folder / name).glob("*.safetensors") for key, value in load_file(file).items()}


def load(folder: Path, **options: Any) -> WanTransformer:
    return wan.load_transformer(folder, CPU, options.pop("dtype", torch.float32), **options)


def random_like(dit: WanTransformer) -> WanTransformer:
    """A model of the same sizes with other weights."""
    torch.manual_seed(5)
    other = WanTransformer(dit.config)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return other


def assert_same_state(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].dtype == value.dtype, key
        assert torch.equal(state[key], value), key


def test_loading_gives_the_stored_tensors(source: Path) -> None:
    assert len(list((source / "transformer").glob("*.safetensors"))) > 2
    dit = load(source, recompute="full", attention="math")
    assert (dit.recompute, dit.attention) == ("full", "math")
    assert_same_state(dit.state_dict(), stored(source))
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in dit.parameters())


def test_what_stays_float32_in_bfloat16(source: Path) -> None:
    """As by casting the float32 model: the kept parameters are not even rounded once."""
    half = load(source, dtype=torch.bfloat16)
    assert_same_state(half.state_dict(), load(source).to(torch.bfloat16).state_dict())
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16, torch.float32}


def test_loaded_parameters_are_the_models_own(folder: Path) -> None:
    """They are no views of the files, which may go or be replaced."""
    dit = load(folder)
    before = {key: value.clone() for key, value in dit.state_dict().items()}
    for file in (folder / "transformer").glob("*.safetensors"):
        file.write_bytes(b"\0" * file.stat().st_size)  # in place: a mapping would show it
    assert_same_state(dit.state_dict(), before)
    storages = {parameter.untyped_storage().data_ptr() for parameter in dit.parameters()}
    assert len(storages) == len(list(dit.parameters()))


def test_the_files_are_read_tensor_by_tensor(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two tensors that were read are alive in the stored type at once: there is no second copy of the model."""
    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0
    opened = wan.safe_open

    class Counting:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.reader = opened(*args, **kwargs)

        def __enter__(self) -> "Counting":
            self.reader.__enter__()
            return self

        def __exit__(self, *args: Any) -> None:
            self.reader.__exit__(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.reader, name)

        def get_tensor(self, key: str) -> Tensor:
            nonlocal most
            tensor = self.reader.get_tensor(key)
            alive.add(tensor)
            most = max(most, len(alive))
            return tensor

    monkeypatch.setattr(wan, "safe_open", Counting)
    load(source, dtype=torch.bfloat16)
    assert most == 1


@pytest.mark.parametrize("pipeline", ["WanImageToVideoPipeline", "WanPipeline"])
def test_ti2v_declares_itself_by_expanded_timesteps(tmp_path: Path, pipeline: str) -> None:
    folder = make_wan_folder(tmp_path / "model", pipeline=pipeline, max_shard_size="5GB")
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == pipeline
    assert not (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").exists()
    assert wan.conditioning_of(folder) == "pin"
    assert even_pipeline(folder).config.expand_timesteps
    assert_same_state(load(folder).state_dict(), stored(folder))


def test_an_image_to_video_model_reads_its_image_by_channel(tmp_path: Path) -> None:
    folder = make_experts_folder(tmp_path / "model")
    assert wan.conditioning_of(folder) == wan.conditioning_of(folder, "transformer_2") == "concat"
    assert_same_state(load(folder, name="transformer_2").state_dict(), stored(folder, "transformer_2"))
    assert stored(folder)["proj_out.weight"].ne(stored(folder, "transformer_2")["proj_out.weight"]).any()


@pytest.mark.parametrize("config", [WanConfig(), WAN_14B], ids=["5b", "14b"])
def test_published_sizes_have_the_names_and_shapes_of_diffusers(config: WanConfig, tmp_path: Path) -> None:
    """Only sizes differ: a config.json that diffusers wrote is read back as our config."""
    with torch.device("meta"):
        theirs = diffusers.WanTransformer3DModel(**config.to_diffusers())
        ours = WanTransformer(config)
    theirs.save_config(tmp_path / "transformer")
    index = {"_class_name": "WanPipeline", "expand_timesteps": True, "transformer": ["diffusers", wan.CLASS]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert wan.read_config(tmp_path) == config
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


def test_shards_of_the_5b_model() -> None:
    with torch.device("meta"):
        state = WanTransformer(WanConfig()).to(torch.bfloat16).state_dict()
    shards = wan._shards(state, wan.MAX_SHARD_BYTES)
    sizes = [sum(state[key].nbytes for key in keys) for keys in shards]
    assert [key for keys in shards for key in keys] == list(state)
    assert len(shards) == 2
    assert max(sizes) <= wan.MAX_SHARD_BYTES
    assert 10.0e9 < sum(sizes) < 10.5e9  # two bytes a parameter, four for those kept in float32


@pytest.mark.parametrize("max_shard_bytes", [wan.MAX_SHARD_BYTES, 30_000, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(source: Path, tmp_path: Path, max_shard_bytes: int, dtype: torch.dtype) -> None:
    dit = random_like(load(source)).to(dtype)
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    wan.save_transformer(dit, folder, max_shard_bytes)
    files = list((folder / "transformer").glob("*.safetensors"))
    tensors = dit.state_dict()
    assert len(files) == (len(tensors) if max_shard_bytes == 1 else len(wan._shards(tensors, max_shard_bytes)))
    assert_same_state(load(folder, dtype=dtype).state_dict(), tensors)
    theirs = diffusers.WanTransformer3DModel.from_pretrained(folder / "transformer", local_files_only=True)
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, tensors[key].to(value.dtype)), key


def test_saving_in_a_new_folder(source: Path, tmp_path: Path) -> None:
    wan.save_transformer(load(source), tmp_path / "new")
    assert_same_state(stored(tmp_path / "new"), stored(source))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["transformer"]


def test_a_full_disk_leaves_the_former_transformer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dit, before = random_like(load(folder)), stored(folder)
    calls = 0

    def fills_up(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise wan.SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(*args, **kwargs)

    monkeypatch.setattr(wan, "save_file", fills_up)
    with pytest.raises(UserError, match=r"transformer cannot be written .*No space left.*free some disk space"):
        wan.save_transformer(dit, folder, max_shard_bytes=30_000)
    assert_same_state(stored(folder), before)
    assert not list(folder.glob(".*"))


def test_only_a_plain_model_is_saved(source: Path, tmp_path: Path) -> None:
    dit = load(source)
    dit.blocks[0].attn1.to_q = torch.nn.Sequential(dit.blocks[0].attn1.to_q)  # as an adapter wraps it
    with pytest.raises(UserError, match=r"to save must have.* 2 are missing \(blocks\.0\.attn1\.to_q\.bias.*merged"):
        wan.save_transformer(dit, tmp_path)
    dit = load(source)
    dit.proj_out.weight = torch.nn.Parameter(torch.empty(0))  # as ZeRO-3 leaves it
    with pytest.raises(UserError, match=r"proj_out\.weight to save has shape \[0\].*gather"):
        wan.save_transformer(dit, tmp_path)
    assert not list(tmp_path.iterdir())


def test_export_is_what_the_pipeline_generates(source: Path, tmp_path: Path) -> None:
    """Our sampler's ODE and diffusers' pipeline on our export: the same latents, and the same frames."""
    dit = random_like(load(source))
    out = tmp_path / "export"
    wan.export_pipeline(source, dit, out, max_shard_bytes=30_000)

    torch.manual_seed(2)
    text = TaskEmbedding(2, TEXT_DIM, num_tokens=5)
    codec = WanVAECodec.from_pretrained(out / "vae", CPU)
    policy = Policy(wan.load_transformer(out, CPU, torch.float32), text, "pin")
    steps = plan_steps(sigma_schedule(NUM_STEPS, FLOW_SHIFT), ODE, 0.0, 0)
    shape = codec.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)
    first_BC1HW = codec.encode_first(picture())
    ours = sample(policy, steps, shape, first_BC1HW, torch.tensor([1]), torch.tensor([7]), seed=3)

    noise = torch.cat((torch.full_like(first_BC1HW, 9.0), ours.states[0]), dim=2)  # frame 0 is pinned, its noise unused
    pipeline = even_pipeline(out)
    latents = generate(pipeline, noise, text.table[1:2].detach(), NUM_STEPS, "latent")
    assert (latents[:, :, 1:] - ours.states[0]).std() > 0.1  # the model moves them
    torch.testing.assert_close(latents[:, :, :1], first_BC1HW, atol=1e-5, rtol=0)
    torch.testing.assert_close(latents[:, :, 1:], ours.latents_BCFHW, atol=2e-5, rtol=0)

    video = codec.decode(first_BC1HW, ours.latents_BCFHW)
    expected = generate(pipeline, noise, text.table[1:2].detach(), NUM_STEPS, "np") * 255
    assert video.shape == expected.shape == (1, NUM_FRAMES, HEIGHT, WIDTH, 3)
    assert video.std() > 3
    assert np.abs(video - expected).max() < 0.51  # rounding to levels


def test_export_copies_the_other_components(source: Path, tmp_path: Path) -> None:
    """Through links too, as in a download's cache; and without what is not the model's."""
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in source.iterdir():
        (linked / path.name).symlink_to(path)
    (linked / "README.md").write_text("another model's card")
    (linked / "LICENSE.txt").write_text("terms")
    (linked / ".cache").mkdir()
    dit = random_like(load(linked))
    out = tmp_path / "export"
    wan.export_pipeline(linked, dit, out)
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    kept = {name for name in files if not name.startswith("transformer/")}
    made = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    ours = {
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        wan.EXPORT_MARK,
        "LICENSE.txt",
    }
    assert made == kept | ours
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in kept)
    assert_same_state(stored(out), dit.state_dict())

    (out / "README.md").write_text("our card")
    wan.export_pipeline(source, load(source), out)  # an earlier export is replaced, whole
    assert_same_state(stored(out), stored(source))
    assert not (out / "README.md").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"snapshot", "export"}


def test_an_export_over_other_things_is_refused(source: Path, folder: Path, tmp_path: Path) -> None:
    dit = load(source)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    for out in (mine, mine / "thesis.txt", folder):
        with pytest.raises(UserError, match=r"is not empty and no earlier export.*choose another folder"):
            wan.export_pipeline(source, dit, out)
    for out in (folder, folder / "export", folder.parent):
        with pytest.raises(UserError, match="must not lie within each other"):
            wan.export_pipeline(folder, dit, out)
    assert (mine / "thesis.txt").read_text() == "x"
    (tmp_path / "secrets").mkdir()
    edit_json(folder / "model_index.json", **{"../secrets": ["diffusers", "Anything"]})
    with pytest.raises(UserError, match=r"has no folder \.\./secrets, which its model_index"):
        wan.export_pipeline(folder, dit, tmp_path / "new")
    edit_json(folder / "model_index.json", **{"../secrets": None})
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(UserError, match="has no folder text_encoder, which its model_index"):
        wan.export_pipeline(folder, dit, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    file = sorted((folder / "transformer").glob("*.safetensors"))[-1]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def shard_index(folder: Path) -> Path:
    return folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"


def drop_shards(folder: Path) -> None:
    for file in sorted((folder / "transformer").glob("*.safetensors"))[1:]:
        file.unlink()


def only_pickles(folder: Path) -> None:
    for file in (folder / "transformer").glob("*.safetensors*"):
        file.unlink()
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"")


def truncate(folder: Path) -> None:
    file = sorted((folder / "transformer").glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-100])


def quantise(tensors: dict[str, Tensor]) -> None:
    tensors["proj_out.weight"] = tensors["proj_out.weight"].to(torch.float8_e4m3fn)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, r"model is no folder; give a download of Wan-AI/Wan2\.2-TI2V-5B-Diffusers"),
    "no index": (
        lambda f: (f / "model_index.json").unlink(),
        r"has no model_index\.json, so it is no Diffusers folder",
    ),
    "broken index": (lambda f: (f / "model_index.json").write_text("{"), r"model_index\.json is no readable JSON"),
    "a list": (lambda f: (f / "model_index.json").write_text("[]"), r"model_index\.json must hold a JSON object"),
    "another model": (
        lambda f: edit_json(f / "model_index.json", transformer=["diffusers", "HunyuanVideoTransformer3DModel"]),
        "transformer is of class HunyuanVideoTransformer3DModel, but must be a WanTransformer3DModel",
    ),
    "no transformer": (
        lambda f: edit_json(f / "model_index.json", transformer=[None, None]),
        "transformer is missing, but must be a WanTransformer3DModel",
    ),
    "another config": (
        lambda f: edit_json(f / "transformer" / "config.json", _class_name="WanVACETransformer3DModel"),
        r"config\.json is of class WanVACETransformer3DModel",
    ),
    "CLIP image tokens": (
        lambda f: edit_json(f / "transformer" / "config.json", image_dim=1280),
        "image_dim=1280 is not supported",
    ),
    "no config": (lambda f: (f / "transformer" / "config.json").unlink(), r"config\.json is no readable JSON"),
    "text to video": (
        lambda f: edit_json(f / "model_index.json", expand_timesteps=False),
        r"is a text-to-video model .*in_channels=6.*use Wan-AI/Wan2\.2-TI2V-5B-Diffusers",
    ),
    "sizes in words": (
        lambda f: edit_json(f / "transformer" / "config.json", num_layers="2"),
        "num_layers='2' must be a whole number of at least 1",
    ),
    "one patch size": (
        lambda f: edit_json(f / "transformer" / "config.json", patch_size=2),
        r"patch_size=2 must be three sizes of at least 1",
    ),
    "a class in words": (
        lambda f: edit_json(f / "model_index.json", transformer=3),
        "component transformer is missing, but must be a WanTransformer3DModel",
    ),
    "shards elsewhere": (
        lambda f: edit_json(shard_index(f), weight_map={"a": f"../{f.name}2/x.safetensors", "b": 1}),
        r"lacks 2 of 2 shards \(x\.safetensors, 1\)",
    ),
    "shards in words": (lambda f: edit_json(shard_index(f), weight_map="all"), "lacks 0 of 0 shards"),
    "missing shards": (drop_shards, r"lacks 2 of 3 shards \(diffusion_pytorch_model-00002-of-00003\.safetensors, "),
    "only pickles": (only_pickles, r"has neither diffusion_pytorch_model\.safetensors nor .*pickled \.bin"),
    "truncated": (truncate, r"00001-of-00003\.safetensors is no readable safetensors file .*download it again"),
    "missing keys": (
        lambda f: edit_tensors(f, lambda tensors: tensors.pop("proj_out.weight")),
        r"1 are missing \(proj_out\.weight\), 0 unexpected \(none\)",
    ),
    "unexpected keys": (
        lambda f: edit_tensors(f, lambda tensors: tensors.update({f"lora_{i}": torch.ones(1) for i in range(4)})),
        r"0 are missing \(none\), 4 unexpected \(lora_0, lora_1, lora_2, \.\.\.\)",
    ),
    "other sizes": (
        lambda f: edit_json(f / "transformer" / "config.json", ffn_dim=64),
        r"ffn\.net\.\S+ has shape \[.*56.*\], but config\.json asks for \[.*64",
    ),
    "quantised": (lambda f: edit_tensors(f, quantise), r"proj_out\.weight is stored as F8_E4M3.*not quantised"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_folder_gets_one_clear_line(folder: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
