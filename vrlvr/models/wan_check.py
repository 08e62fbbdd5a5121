"""What a Wan folder must be to be trained, by its JSON files alone: told before hours are spent on encoding."""

from pathlib import Path

from vrlvr.errors import UserError
from vrlvr.models.dit import WanConfig
from vrlvr.models.wan import conditioning_of, read_config, read_index

_ENCODERS = {"vae": "AutoencoderKLWan", "text_encoder": "UMT5EncoderModel"}


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
        entry = index.get(name)
        found = entry[-1] if isinstance(entry, list) and entry else None
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
