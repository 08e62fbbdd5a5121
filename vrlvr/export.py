"""A run's trained model in the files that other programs load, with a model card.

| format | what | read by |
|---|---|---|
| diffusers | the whole pipeline of a fully fine-tuned model | `WanImageToVideoPipeline.from_pretrained` |
| merged | the same of a LoRA run, adapters added to the weights | the same |
| comfyui | the transformer of either, one file of Wan's own names | ComfyUI's `Load Diffusion Model` |
| lora-diffusers | adapters | `load_lora_weights` |
| lora-comfyui | adapters under Wan's own names, with alpha | ComfyUI's LoRA loaders, and diffusers |
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vrlvr import options
from vrlvr.atomic_write import replacing_folder, write_text
from vrlvr.build import DTYPES
from vrlvr.checkpoint import read_tensors
from vrlvr.config import Config
from vrlvr.errors import UserError
from vrlvr.model_card import model_card
from vrlvr.models.dit import WanTransformer
from vrlvr.models.wan import EXPORT_MARK, export_pipeline, load_transformer
from vrlvr.models.wan_layout import read_config
from vrlvr.models.wan_names import original_names

Format = Literal["diffusers", "merged", "comfyui", "lora-diffusers", "lora-comfyui"]
LORA_FILE = "pytorch_lora_weights.safetensors"  # which diffusers looks for
MODEL_FILE = "diffusion_model.safetensors"

Adapters = dict[str, tuple[Tensor, Tensor]]  # by layer: A (rank, in) and B (out, rank)
_ADAPTER = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


def export(
    run_dir: Path, out: Path, format: Format, checkpoint: str = "grpo-final", base_model: str | None = None
) -> None:
    """Writes a checkpoint's model, its moving average where it has one, to the folder `out`; an earlier export is replaced.

    format: diffusers (of a full fine-tune) and merged (of LoRA) are whole folders for WanImageToVideoPipeline; comfyui is
    either's transformer in one file; lora-diffusers and lora-comfyui are the adapters alone. checkpoint: a folder of
    run_dir/checkpoints, as sft-final. base_model: the name of the model that was trained, as model hubs know it, for the card.
    Raises UserError if the run has no such checkpoint, or the format is not for its kind; and if `out` holds anything else.
    """
    config = options.parse(["--config", str(_config_file(run_dir))])
    with Console().status(f"reading {checkpoint} of {run_dir}") as status:
        tensors = _transformer_tensors(run_dir / "checkpoints" / checkpoint)
        adapters = adapters_of(tensors)
        source = _check_format(format, config, bool(adapters), run_dir)
        card = model_card(run_dir, config, checkpoint, format, base_model)
        if format.startswith("lora-"):
            to_format = diffusers_lora if format == "lora-diffusers" else comfyui_lora
            _write_file(out, LORA_FILE, to_format(adapters, config.model.lora.alpha), card)
        else:
            dit = _merged(config, source, adapters) if adapters else _fine_tuned(config, source, tensors)
            status.update(f"writing {out}")
            if format == "comfyui":
                state = dit.state_dict()
                _write_file(out, MODEL_FILE, {new: state[old] for old, new in original_names(state).items()}, card)
            else:
                export_pipeline(source, dit, out)
                write_text(out / "README.md", card)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out} holds {run_dir}'s {checkpoint} as {format}, {size / 1e9:.2f} GB; its README.md says how to use it")


def adapters_of(tensors: Mapping[str, Tensor]) -> Adapters:
    """The adapters among a transformer's tensors. Raises UserError for one without its other half, or of another kind."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _ADAPTER.fullmatch(name)
        if match is not None:
            found.setdefault(match["layer"], {})[match["side"]] = tensor
        elif ".lora_" in name:
            raise UserError(f"{name} is no lora_A or lora_B of a linear layer; export a run of this version of vrlvr")
    for layer, pair in found.items():
        if len(pair) < 2 or len(pair["A"]) != pair["B"].shape[1]:
            raise UserError(
                f"the adapter of {layer} lacks a half, or its halves differ in rank; use another checkpoint"
            )
    return {layer: (pair["A"], pair["B"]) for layer, pair in found.items()}


def diffusers_lora(adapters: Adapters, alpha: float) -> dict[str, Tensor]:
    """The adapters by diffusers' names. The scale alpha / rank is in B: readers that know no alpha take alpha = rank."""
    original_names(adapters)  # none that only we know
    state = {}
    for layer, (a, b) in adapters.items():
        state[f"transformer.{layer}.lora_A.weight"] = a
        state[f"transformer.{layer}.lora_B.weight"] = b * (alpha / len(a))
    return state


def comfyui_lora(adapters: Adapters, alpha: float) -> dict[str, Tensor]:
    """The adapters by Wan's own names, as ComfyUI reads them: lora_down is A, lora_up is B, scaled by alpha / rank."""
    state = {}
    for layer, name in original_names(adapters).items():
        a, b = adapters[layer]
        state[f"diffusion_model.{name}.lora_down.weight"] = a
        state[f"diffusion_model.{name}.lora_up.weight"] = b
        state[f"diffusion_model.{name}.alpha"] = torch.tensor(alpha)
    return state


def _config_file(run_dir: Path) -> Path:
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a trained run with --run_dir")
    return path


def _transformer_tensors(folder: Path) -> dict[str, Tensor]:
    """The transformer's part of a checkpoint, by its own names."""
    if not folder.is_dir():
        others = sorted(path.name for path in folder.parent.glob("[!.]*") if path.is_dir())
        raise UserError(
            f"{folder} does not exist; --checkpoint may be {', '.join(others) or 'none: train the run first'}"
        )
    tensors = read_tensors(folder, "ema" if any(folder.glob("ema[.-]*")) else "model")
    return {name.removeprefix("dit."): tensor for name, tensor in tensors.items() if name.startswith("dit.")}


def _check_format(format: Format, config: Config, has_adapters: bool, run_dir: Path) -> Path:
    """The Diffusers folder that the run started from. Raises UserError if the format is not for the run."""
    if config.model.path is None:
        raise UserError(
            f"{run_dir} trained a model from scratch, which no other program runs; export a run with model.path"
        )
    if has_adapters and format == "diffusers":
        raise UserError(f"{run_dir} trained adapters; use --format merged, comfyui, lora-diffusers or lora-comfyui")
    if not has_adapters and (format == "merged" or format.startswith("lora-")):
        raise UserError(
            f"{run_dir} trained no adapters, so there are none for {format}; use --format diffusers or comfyui"
        )
    return Path(config.model.path)


def _merged(config: Config, source: Path, adapters: Adapters) -> WanTransformer:
    from vrlvr.lora import add_lora, load_lora_state, merge_lora  # needs peft

    lora = config.model.lora
    dit = load_transformer(source, torch.device("cpu"), DTYPES[config.model.dtype])
    add_lora(dit, lora.rank, lora.alpha, lora.targets, seed=0)
    load_lora_state(
        dit,
        {
            f"{layer}.lora_{side}.weight": w
            for layer, pair in adapters.items()
            for side, w in zip("AB", pair, strict=True)
        },
    )
    merge_lora(dit)
    return dit


def _fine_tuned(config: Config, source: Path, tensors: dict[str, Tensor]) -> WanTransformer:
    """The source's transformer with these weights, in the types that it computes with (averages are float32)."""
    with torch.device("meta"):
        dit = WanTransformer(read_config(source)).to(DTYPES[config.model.dtype])
    types = {name: tensor.dtype for name, tensor in dit.state_dict().items()}
    try:
        dit.load_state_dict({name: t.to(types.get(name, t.dtype)) for name, t in tensors.items()}, assign=True)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(
            f"the checkpoint's weights do not fit the model of {source} ({line}); check model.path"
        ) from error
    return dit


def _write_file(out: Path, name: str, tensors: dict[str, Tensor], card: str) -> None:
    """A folder of one safetensors file and the card."""
    if out.exists() and not (out / EXPORT_MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} is not empty and no earlier export (no {EXPORT_MARK} there); choose another folder")
    with replacing_folder(out) as folder:
        (folder / EXPORT_MARK).write_text("{}\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        try:
            save_file({key: t.contiguous() for key, t in tensors.items()}, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"safetensors: {error}") from error  # it reports a full disk so
