"""What a command line says of a model, checked as far as can be without its weights.

Models are folders in Diffusers' layout, or the hub's ids of such. Of these, JSON, tokenizers and safetensors are downloaded, no
other files; and their components must be classes of diffusers and transformers: nothing that a model brings along is executed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vrlvr.distributed import pick_device
from vrlvr.errors import UserError
from vrlvr.evaluation.lora_file import lora_path
from vrlvr.evaluation.pipelines import Family, components, family_of

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Offload = Literal["none", "model", "sequential"]
_LIBRARIES = ("diffusers", "transformers")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")  # what is downloaded of a hub's model
_INDEX = "model_index.json"
_COMPONENT = re.compile(r"\w+")


@dataclass(frozen=True)
class Settings:
    """How a model is run. height, width, num_frames: None for what fits the first frame and the data best."""

    steps: int
    guidance: float
    negative_prompt: str | None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None


@dataclass(frozen=True)
class Spec:
    """A model to load, all that can be checked without its weights being checked. dtypes: by component, and `default`."""

    folder: Path
    index: Mapping[str, Any]
    family: Family
    settings: Settings
    dtypes: Mapping[str, torch.dtype]
    device: torch.device
    lora: Path | None
    lora_2: Path | None
    shift: float | None
    offload: Offload


def specify(
    model: str,
    lora: Path | None = None,
    lora_2: Path | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    shift: float | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    offload: Offload = "none",
) -> Spec:
    """Checks the options of a model and fills in its family's settings where None is given.

    model: a Diffusers folder, or a hub's id. lora, lora_2: LoRA files for the transformer and, of Wan2.2-I2V-A14B, for its
    second expert. shift: of the timesteps; the folder's scheduler has its own. dtype: auto is bfloat16 on a GPU, float32
    without. offload: components (`model`) or layers (`sequential`) wait in the CPU's memory.
    Raises UserError for a model that is not supported and options that do not fit it.
    """
    folder = model_folder(model)
    index = read_index(folder)
    family = family_of(model, index, read_json(folder / "transformer" / "config.json"))
    settings = settings_for(family, height, width, num_frames, steps, guidance, negative_prompt)
    where = pick_device(device)
    if offload != "none" and where.type == "cpu":
        raise UserError(f"offload={offload} spares a GPU's memory, but the device is the CPU; use offload=none")
    if lora_2 is not None and "transformer_2" not in components(index):
        raise UserError(f"lora_2={lora_2} is for a second expert, which {model} lacks; use --lora")
    if shift is not None and (family.shift is None or shift <= 0):
        raise UserError(f"shift={shift} does not fit {family.name}; give a positive one to Wan or HunyuanVideo models")
    return Spec(
        folder=folder,
        index=index,
        family=family,
        settings=settings,
        dtypes=dtypes_for(family, dtype, where),
        device=where,
        lora=None if lora is None else lora_path(lora),
        lora_2=None if lora_2 is None else lora_path(lora_2),
        shift=shift,
        offload=offload,
    )


def settings_for(
    family: Family,
    height: int | None,
    width: int | None,
    num_frames: int | None,
    steps: int | None,
    guidance: float | None,
    negative_prompt: str | None,
) -> Settings:
    """The family's settings, with those given in their place. Raises UserError for what it cannot do."""
    for name, side in (("height", height), ("width", width)):
        if side is not None and (side < family.multiple or side % family.multiple):
            near = max(1, round(side / family.multiple)) * family.multiple
            raise UserError(f"{name}={side} must be a multiple of {family.multiple} for {family.name}; use {near}")
    if (height is None) != (width is None):
        raise UserError("height and width belong together; give both or none")
    rows, columns = family.limits
    if height is not None and width is not None and (height > rows or width > columns):
        raise UserError(f"{height}x{width} exceeds {rows:g}x{columns:g}, beyond which {family.name} knows no positions")
    if num_frames is not None and (num_frames < 2 or num_frames % family.frame_step != 1):
        near = family.frames_for(num_frames)
        raise UserError(f"num_frames={num_frames} must be 1 + {family.frame_step}k for {family.name}; use {near}")
    if steps is not None and steps < 1:
        raise UserError(f"steps={steps} must be at least 1; use {family.steps}")
    if negative_prompt is not None and family.negative_prompt is None:
        raise UserError(f"negative_prompt does nothing in {family.name}, whose guidance is learnt; leave it out")
    return Settings(
        family.steps if steps is None else steps,
        family.guidance if guidance is None else guidance,
        family.negative_prompt if negative_prompt is None else negative_prompt,
        height,
        width,
        num_frames,
    )


def model_folder(model: str) -> Path:
    """The folder of a model, downloaded first if `model` is a hub's id (JSON, tokenizers and safetensors only)."""
    if Path(model).is_dir():
        return Path(model)
    if not _HUB_ID.fullmatch(model):
        raise UserError(f"model={model} is neither a folder nor a hub's id (OWNER/NAME); give either")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model={model} is no folder, and cannot be downloaded ({reason}); check its name") from error


def read_index(folder: Path) -> dict[str, Any]:
    """A folder's model_index.json. Raises UserError if it names anything but classes of diffusers and transformers."""
    if not (folder / _INDEX).is_file():
        raise UserError(f"{folder} has no {_INDEX}, so it is no Diffusers folder; give one (often named -Diffusers)")
    index = read_json(folder / _INDEX)
    for name, value in index.items():
        if not isinstance(value, list) or name.startswith("_"):
            continue
        known = value == [None, None] or (len(value) == 2 and value[0] in _LIBRARIES and isinstance(value[1], str))
        # A file of the library's name in a component's folder would be imported in its place (by diffusers, not all versions).
        if not known or not _COMPONENT.fullmatch(name) or any((folder / name).glob("*.py")):
            raise UserError(
                f"{folder / _INDEX}: component {name[:40]!r} is {str(value)[:80]} with code of its own, but only classes of "
                f"{' and '.join(_LIBRARIES)} are loaded; use a model without"
            )
    return index


def dtypes_for(family: Family, dtype: Dtype, device: torch.device) -> dict[str, torch.dtype]:
    """Of every component. What a model card keeps more precisely than the rest is the VAE."""
    if dtype == "float32" or (dtype == "auto" and device.type == "cpu"):
        return {"default": torch.float32}
    default = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    vae = default if family.vae_dtype is None else getattr(torch, family.vae_dtype)
    return {"default": default, "vae": vae}


def read_json(path: Path, remedy: str = "download the model completely") -> dict[str, Any]:
    """The object in a JSON file. Raises UserError, which ends with the remedy, if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no object; {remedy}")
    return content
