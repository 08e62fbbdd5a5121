"""`vrlvr encode`: a data set's prompts, first frames and videos through a Wan model's encoders, once, before training.

Afterwards neither the text encoder nor the VAE's encoder takes memory or time of a training GPU. The folder that is made
is described in vrlvr.encoded, which reads it.

What is encoded: of every instance the rendered PNG, which is what evaluation conditions on, as its first latent frame; and
where videos are wanted, the MP4 with that PNG in place of its own, H.264-coded frame 0, so that the two belong together.
Encoding is deterministic (the posterior's mode, one video at a time): a run that was broken off
goes on after its last complete shard, and on a CPU ends with the same bytes.

The text encoder computes in the dtype that is stored, as the pipelines do; the VAE in float32, on GPUs with TF32
convolutions (PyTorch's default). Latents stored in bfloat16 take half the room; rounding to it changes a value by at most
2^-8 of itself, 0.17 % root mean square (measured on normal numbers), which bfloat16 training does to its inputs anyway.
"""

import gc
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vrlvr import encoded
from vrlvr.atomic_write import replacing, write_text
from vrlvr.dataset_files import SPLITS, Reader, Row, read_metadata
from vrlvr.distributed import pick_device
from vrlvr.encode_plan import check_arguments, check_room, make_index, shards_of
from vrlvr.encoded import Index
from vrlvr.errors import UserError
from vrlvr.models.umt5 import UMT5TextEncoder
from vrlvr.models.wan_vae import WanVAECodec

_READERS = 4  # threads that read videos ahead of the encoder
Item = TypeVar("Item")
Result = TypeVar("Result")


def encode(
    data: Path,
    model: Path,
    out: Path,
    tasks: Sequence[str] | None = None,
    splits: Sequence[str] = SPLITS,
    videos: Sequence[str] = ("train",),
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    device: str = "auto",
    shard_size: int = 256,
) -> None:
    """Encodes a data set into `out`, or completes what the same arguments began there; shards that are damaged are made anew.

    data: a folder made by `vrlvr data`. model: a folder of a Wan model in Diffusers' layout. tasks: all of the data set by
    default. splits: those to encode. videos: those of them whose videos are encoded, not their first frames alone. device:
    auto is the GPU if there is one. shard_size: instances in a file. Memory holds a shard's latents twice and a few videos.
    Under torchrun, the processes share the shards. Raises UserError with one line for input that does not fit, for a folder
    of other content, and where the file system refuses.
    """
    where = pick_device(device)
    rows = [row for row in read_metadata(data) if row.split in splits and (tasks is None or row.task in tasks)]
    check_arguments(rows, data, tasks, splits, videos, shard_size)
    index = make_index(rows, data, model, splits, videos, dtype, shard_size)
    _open(out, index)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    stored = getattr(torch, dtype)
    every_shard = shards_of(rows, index)
    check_room(out, index, every_shard)
    if rank == 0 and not encoded.is_intact(out / encoded.PROMPTS):
        write_shard(out / encoded.PROMPTS, {"text": encode_prompts(index["prompts"], model, where, stored)})
        _free_memory()
    shards = [*every_shard.items()][rank::size]
    checked = track(shards, f"checking {out}", disable=rank > 0, transient=True)  # reads all that is there
    missing = {name: members for name, members in checked if not encoded.is_intact(out / name)}
    if not missing:
        if size == 1:  # of several processes others may be at work
            print(f"{out} is complete: {len(rows)} instances")
        return
    codec = WanVAECodec.from_pretrained(model / "vae", where)
    total = sum(len(members) for _, members in shards)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=rank > 0) as progress:
        done = total - sum(len(members) for members in missing.values())
        bar = progress.add_task(str(out), total=total, completed=done)
        for name, members in missing.items():
            reader = Reader(data, (index["num_frames"], index["height"], index["width"]), members[0].split in videos)
            write_shard(out / name, encode_shard(members, reader, codec, stored, lambda: progress.advance(bar)))


def encode_prompts(prompts: Sequence[str], model: Path, device: torch.device, dtype: torch.dtype) -> Tensor:
    """text_PLM, on the CPU. The text encoder lives only within this call."""
    encoder = UMT5TextEncoder.from_pretrained(model, device, dtype)
    return torch.cat([encoder.encode([prompt]).cpu() for prompt in prompts])


def encode_shard(
    rows: Sequence[Row], reader: Reader, codec: WanVAECodec, dtype: torch.dtype, advance: Callable[[], None]
) -> dict[str, Tensor]:
    """A shard's tensors, on the CPU: first_NC1HW, and video_NCFHW if the reader gives videos. advance: called after each."""
    parts: dict[str, list[Tensor]] = {"first": [], "video": []} if reader.videos else {"first": []}
    for video_TYXC in _ahead(reader.read, rows):
        parts["first"].append(codec.encode_first(video_TYXC[:1]).to(dtype).cpu())
        if reader.videos:
            parts["video"].append(codec.encode(video_TYXC[None]).to(dtype).cpu())
        advance()
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a shard's checksum, then puts the shard into its place, where a kill may have left parts of it.

    Raises UserError if the disk refuses.
    """
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        leftover.unlink(missing_ok=True)
    with replacing(path) as partial:
        try:
            save_file(tensors, partial)
        except SafetensorError as error:
            raise OSError(f"{error}") from error  # how it tells of a full disk
        write_text(encoded.checksum_path(path), f"{encoded.file_digest(partial)}  {path.name}\n")


def _ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """map(work, items) by threads that run a few items ahead of what is taken."""
    with ThreadPoolExecutor(_READERS) as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > _READERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _free_memory() -> None:
    """What the text encoder took is given back before the VAE is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _open(out: Path, index: Index) -> None:
    """Prepares the folder. Raises UserError if it holds anything but what this index describes."""
    path = out / encoded.INDEX
    try:
        out.mkdir(exist_ok=True)
        visible = {entry.name for entry in out.iterdir() if not entry.name.startswith(".")}
    except OSError as error:
        raise UserError(f"{out} cannot be used ({error.strerror}); choose a folder whose parent exists") from error
    if encoded.INDEX in visible:
        encoded.compare(out, encoded.read_index(out), index)
    elif visible:
        raise UserError(f"{out} has files but no {encoded.INDEX}; choose an empty folder")
    else:
        write_text(path, json.dumps(index) + "\n")
