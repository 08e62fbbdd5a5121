"""What `vrlvr encode` is going to make, and whether it can: all that is told before anything is loaded or encoded."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from vrlvr import encoded
from vrlvr.dataset_files import SPLITS, Row, read_size
from vrlvr.encoded import Index
from vrlvr.errors import UserError
from vrlvr.models.fingerprint import fingerprints
from vrlvr.models.wan_layout import check_encoders, check_sides, check_trainable
from vrlvr.models.wan_vae import WanVAECodec


def check_arguments(
    rows: Sequence[Row],
    data: Path,
    tasks: Sequence[str] | None,
    splits: Sequence[str],
    videos: Sequence[str],
    shard_size: int,
) -> None:
    """Raises UserError for arguments that choose nothing, or what is not there."""
    for name, values in (("splits", splits), ("videos", videos)):
        if unknown := [value for value in values if value not in SPLITS]:
            raise UserError(f"{name}={','.join(values)} names {unknown[0]!r}; use any of {', '.join(SPLITS)}")
    if shard_size < 1:
        raise UserError(f"shard_size={shard_size} must be at least 1; use 256")
    found = {row.task for row in rows}
    if absent := [task for task in tasks or () if task not in found]:
        raise UserError(
            f"{data} has no {absent[0]!r} in {', '.join(splits)}; it has {', '.join(sorted(found)) or 'none'}"
        )
    if not rows:
        raise UserError(f"{data} has no instance in splits={','.join(splits)}; use any of {', '.join(SPLITS)}")


def make_index(
    rows: Sequence[Row],
    data: Path,
    model: Path,
    splits: Sequence[str],
    videos: Sequence[str],
    dtype: str,
    shard_size: int,
) -> Index:
    """What the folder will hold. Raises UserError for a model that is not trained, or does not take the data set's size."""
    size = read_size(data)
    check_encoders(model)
    models = fingerprints(model)
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
    in_split = dict.fromkeys(splits, 0)
    instances: dict[str, encoded.Place] = {}
    for row in rows:
        shard, place = divmod(in_split[row.split], shard_size)
        in_split[row.split] += 1
        instances[row.stem] = {
            "shard": f"{row.split}-{shard:05d}.safetensors",
            "row": place,
            "prompt": prompts[row.prompt],
            "puzzle": _digest(data / row.puzzle),
        }
    return {
        "version": encoded.VERSION,
        "vae": models["vae"],
        "text_encoder": models["text_encoder"],
        "num_frames": size[0],
        "height": size[1],
        "width": size[2],
        "dtype": dtype,
        "shard_size": shard_size,
        "tasks": [*dict.fromkeys(row.task for row in rows)],
        "splits": [split for split in SPLITS if split in splits],
        "videos": [split for split in SPLITS if split in splits and split in videos],
        "latent_shape": list(_latent_shape(model, *size)),
        "prompts": list(prompts),
        "instances": instances,
    }


def shards_of(rows: Sequence[Row], index: Index) -> dict[str, list[Row]]:
    """The instances of each shard, in the order of its rows."""
    shards: dict[str, list[Row]] = {}
    for row in rows:
        shards.setdefault(index["instances"][row.stem]["shard"], []).append(row)
    return shards


def check_room(out: Path, index: Index, shards: dict[str, list[Row]]) -> None:
    """Raises UserError if the disk has no room for the shards that are not there yet."""
    channels, frames, height, width = index["latent_shape"]
    frame_bytes = channels * height * width * getattr(torch, index["dtype"]).itemsize
    needed = sum(
        frame_bytes * (1 + (frames if row.split in index["videos"] else 0))
        for name, members in shards.items()
        if not (out / name).is_file()
        for row in members
    )
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{out} needs {needed / 1e9:.1f} GB more for latents, but {free / 1e9:.1f} GB are free there; free some disk "
            "space, choose another disk, or encode fewer --videos, --splits or --tasks"
        )


def _latent_shape(model: Path, num_frames: int, height: int, width: int) -> tuple[int, ...]:
    """(C, F, H, W) by the configurations alone: sizes that do not fit are told before anything is encoded."""
    from diffusers import AutoencoderKLWan  # costs seconds

    transformer = check_trainable(model)

    try:
        config = AutoencoderKLWan.load_config(str(model / "vae"), local_files_only=True)
    except OSError as error:
        raise UserError(f"{model / 'vae'} has no readable config.json; download the model again") from error
    with torch.device("meta"):
        codec = WanVAECodec(AutoencoderKLWan.from_config(config))
    check_sides(transformer, codec.pixels_per_latent, height, width)
    return codec.latent_shape(num_frames, height, width)


def _digest(puzzle: Path) -> str:
    try:
        return encoded.file_digest(puzzle)
    except OSError as error:
        raise UserError(
            f"{puzzle} cannot be read ({error.strerror}); complete the data set with `vrlvr data`"
        ) from error
