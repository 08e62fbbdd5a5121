"""What the JSON files of a Wan model in Diffusers' folder layout say of it, and whether it can be trained.

A folder holds model_index.json (which names the class of every component) and a folder a component, with its config.json.
"""

import json
from pathlib import Path
from typing import Any, Literal

from vrlvr.errors import UserError
from vrlvr.models.dit import WanConfig

Conditioning = Literal["pin", "concat"]
CLASS = "WanTransformer3DModel"
MODEL_INDEX = "model_index.json"
_PUBLISHED = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
_ENCODERS = {"vae": "AutoencoderKLWan", "text_encoder": "UMT5EncoderModel"}


def read_index(folder: Path) -> dict[str, Any]:
    """The content of a Diffusers folder's model_index.json. Raises UserError if the folder is none."""
    if not (folder / MODEL_INDEX).is_file():
        what = f"has no {MODEL_INDEX}, so it is no Diffusers folder" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder} {what}; give a download of {_PUBLISHED} (not of the repository without -Diffusers)")
    return read_json(folder / MODEL_INDEX)


def read_config(folder: Path, name: str = "transformer") -> WanConfig:
    """The sizes of a folder's transformer. Raises UserError if it has none of that name, or one of another class."""
    named = component_class(read_index(folder), name)
    if named != CLASS:
        found = f"of class {named}" if named else "missing"
        raise UserError(
            f"{folder}: component {name} is {found}, but must be a {CLASS}; use a Wan model as {_PUBLISHED}"
        )
    config = read_json(folder / name / "config.json")
    if config.get("_class_name", CLASS) != CLASS:
        raise UserError(
            f"{folder / name / 'config.json'} is of class {config['_class_name']}, but must be of {CLASS}; use a Wan model"
        )
    return WanConfig.from_diffusers(config)


def component_class(index: dict[str, Any], name: str) -> str | None:
    """The class that a model_index.json names for a component; None if it has none."""
    entry = index.get(name)
    return entry[-1] if isinstance(entry, list) and entry and isinstance(entry[-1], str) else None


def conditioning_of(folder: Path, name: str = "transformer") -> Conditioning:
    """How the model takes its first frame: pinned as a clean latent frame (TI2V), or concatenated by channel (I2V).

    Published TI2V folders name the class WanPipeline like text-to-video ones: `expand_timesteps` tells them apart.
    Raises UserError for a model that takes no image.
    """
    index, config = read_index(folder), read_config(folder, name)
    if index.get("expand_timesteps"):
        return "pin"
    if config.in_channels > config.out_channels:
        return "concat"
    raise UserError(
        f"{folder} is a text-to-video model ({MODEL_INDEX} has no expand_timesteps=true, and {name} takes no image "
        f"channels: in_channels={config.in_channels}), but puzzles start from an image; use {_PUBLISHED}"
    )


def check_trainable(folder: Path) -> WanConfig:
    """The sizes of a folder's transformer. Raises UserError unless it takes its first frame as Wan2.2-TI2V does."""
    if conditioning_of(folder) != "pin":
        raise UserError(
            f"{folder} takes its first frame by channel (an I2V model); only TI2V models are trained, as Wan2.2-TI2V-5B"
        )
    return read_config(folder)


def check_encoders(folder: Path) -> None:
    """Raises UserError unless model_index.json names the classes of Wan's VAE and text encoder."""
    index = read_index(folder)
    for name, wanted in _ENCODERS.items():
        found = component_class(index, name)
        if found != wanted:
            raise UserError(
                f"{folder}: component {name} is {found or 'missing'}, but must be {wanted}; use a Wan model"
            )


def check_sides(config: WanConfig, pixels_per_latent: int, height: int, width: int) -> None:
    """Raises UserError unless the transformer's patches tile the latents of a video of this size (pixels)."""
    _, *patch = config.patch_size
    steps = [pixels_per_latent * side for side in patch]
    if height % steps[0] or width % steps[1]:
        nearest = [step * max(1, round(size / step)) for step, size in zip(steps, (height, width), strict=True)]
        raise UserError(
            f"a video of {height}x{width} pixels must have sides divisible by {' and '.join(map(str, dict.fromkeys(steps)))} "
            f"({pixels_per_latent} pixels a latent, patches of {patch[0]}x{patch[1]}); use {nearest[0]}x{nearest[1]}"
        )


def read_json(path: Path, remedy: str = "download it again") -> dict[str, Any]:
    """A JSON file's object. Raises UserError, which ends with the remedy, if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no readable JSON file ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; {remedy}")
    return content
