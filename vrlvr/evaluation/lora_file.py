"""LoRA files for diffusers' pipelines: read as safetensors only, and loaded only if every layer of theirs finds its place."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from vrlvr.errors import UserError

_DEFAULT_NAME = "pytorch_lora_weights.safetensors"  # diffusers' own
_DOWN = re.compile(r"(.+)\.(lora_A|lora_down)(\.default)?\.weight")
_WAN = "diffusion_model."  # what diffusers' converter expects before Wan's own names


def lora_path(given: Path) -> Path:
    """The file that --lora means: itself, or that of diffusers' name in a folder. Raises UserError if it is none to read."""
    path = given / _DEFAULT_NAME if given.is_dir() else given
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is no .safetensors file, and other formats can run code when they are read; convert it on the machine "
            "that made it"
        )
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a LoRA's .safetensors file, or a folder with {_DEFAULT_NAME}")
    return path


def load_lora(pipeline: Any, path: Path, component: str = "transformer") -> None:
    """Adds a LoRA to a pipeline's transformer (or transformer_2), for generating.

    Names may be diffusers', ComfyUI's, or Wan's own without a prefix, as DiffSynth-Studio writes them. Raises
    UserError if the file is damaged, or holds a layer that the model lacks.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); download it again") from error
    wanted = sum(_DOWN.fullmatch(name) is not None for name in names)
    second = {"load_into_transformer_2": True} if component == "transformer_2" else {}
    bare_wan = any(name.startswith("blocks.") and re.search(r"\.(self|cross)_attn\.|\.ffn\.\d", name) for name in names)
    try:
        if bare_wan:
            state = {_WAN + name.replace(".default.weight", ".weight"): t for name, t in load_file(path).items()}
            pipeline.load_lora_weights(state, adapter_name=component, **second)
        else:
            where = {"weight_name": path.name, "use_safetensors": True, "local_files_only": True}
            pipeline.load_lora_weights(str(path.parent), adapter_name=component, **where, **second)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path} does not fit the model ({_line(error)}); give a LoRA trained on this very model"
        ) from error
    loaded = sum(component in getattr(module, "lora_A", {}) for module in getattr(pipeline, component).modules())
    if not wanted or loaded != wanted:
        raise UserError(
            f"{path} has LoRA weights for {wanted} layers, of which the model has {loaded}; give a LoRA trained on this model"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
