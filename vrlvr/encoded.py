"""What `vrlvr encode` leaves, and its reader: prompts, first frames and videos as a Wan model's encoders see them.

    OUT/index.json                   what was encoded, by which model, and where each instance lies (see Index)
        prompts.safetensors          embeddings (num_prompts, L, text_dim)
        {split}-00000.safetensors    first (N, C, 1, H, W) and, where the split has videos, video (N, C, F, H, W)
        *.sha256                     each shard's checksum, in the format of `sha256sum`

Latents are normalised as vrlvr.models.wan_vae does it; F counts the latent frames after the first, which is `first`.
A shard is complete once it lies there under its name, its checksum beside it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypedDict

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vrlvr import puzzles
from vrlvr.errors import UserError
from vrlvr.models.fingerprint import fingerprints
from vrlvr.puzzles import Puzzle

VERSION = 1
INDEX = "index.json"
PROMPTS = "prompts.safetensors"
_OPEN_SHARDS = 4
_THREADS = 8  # hashing leaves the interpreter's lock alone
# What is too long to be shown in a message.
_LONG = {
    "vae": "another VAE",
    "text_encoder": "another text encoder",
    "prompts": "other prompts",
    "instances": "other puzzles",
}


class Place(TypedDict):
    """Where an instance lies: a row of a shard; its prompt's number; the SHA-256 of its puzzle's JSON."""

    shard: str
    row: int
    prompt: int
    puzzle: str


class Index(TypedDict):
    """The content of index.json, a pure function of the command's arguments and of the files that they name.

    vae, text_encoder: their `fingerprint`s. videos: the splits whose videos are there. latent_shape: C, F, H, W.
    instances: by stem, as `train/maze/00000`.
    """

    version: int
    vae: str
    text_encoder: str
    height: int
    width: int
    num_frames: int
    dtype: str
    shard_size: int
    tasks: list[str]
    splits: list[str]
    videos: list[str]
    latent_shape: list[int]
    prompts: list[str]
    instances: dict[str, Place]


class EncodedData:
    """An encoded data set, read row by row from memory-mapped shards: neither whole shards nor many files stay open.

    Reads are safe from several threads. Raises UserError if the folder holds no complete one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder)
        self.latent_shape: tuple[int, int, int, int] = tuple(self.index["latent_shape"])  # type: ignore[assignment]
        self.shards = [*dict.fromkeys(place["shard"] for place in self.index["instances"].values())]
        for name in (PROMPTS, *self.shards):
            if not (folder / name).is_file() or not checksum_path(folder / name).is_file():
                raise UserError(f"{folder} lacks {name}; complete it by the same `vrlvr encode` command")
        self._stems: dict[tuple[str, str], list[str]] = {}
        for stem in self.index["instances"]:
            split, task, _ = stem.split("/")
            self._stems.setdefault((split, task), []).append(stem)
        self._handle = lru_cache(maxsize=_OPEN_SHARDS)(self._open)
        self.prompt_table: Tensor = self._rows(PROMPTS, "text", range(len(self.index["prompts"])))
        if len(self.prompt_table) != len(self.index["prompts"]):
            raise _damaged(folder / PROMPTS, "it holds fewer prompts than the index")

    def stems(self, split: str, task: str) -> list[str]:
        """The instances of a task in a split, in the data set's order."""
        return self._stems.get((split, task), [])

    def stems_of(self, batch: Sequence[Puzzle]) -> list[str]:
        """Where each puzzle lies. Raises UserError for one that was not encoded."""
        digests = [hashlib.sha256(puzzles.to_text(puzzle).encode()).hexdigest() for puzzle in batch]
        if missing := sum(digest not in self._stem_of for digest in digests):
            raise UserError(
                f"{self.folder} does not hold {missing} of the run's puzzles; encode the folder of data.dir, or start the run "
                "anew with the data set that is encoded"
            )
        return [self._stem_of[digest] for digest in digests]

    @cached_property
    def _stem_of(self) -> dict[str, str]:
        return {place["puzzle"]: stem for stem, place in self.index["instances"].items()}

    def puzzle(self, stem: str, data: Path) -> Puzzle:
        """The puzzle of an instance, read from the data set in `data`. Raises UserError if another lies there now."""
        path = data / puzzle_path(stem)
        try:
            if file_digest(path) == self._place(stem)["puzzle"]:
                return puzzles.load(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); give the data set that was encoded") from error
        raise UserError(f"{path} is not the puzzle that {self.folder} encodes; encode {data} into another folder")

    def prompt_of(self, stems: Sequence[str]) -> Tensor:
        """Rows of prompt_table, int64 (B,)."""
        return torch.tensor([self._place(stem)["prompt"] for stem in stems], dtype=torch.int64)

    def first(self, stems: Sequence[str]) -> Tensor:
        """first_BC1HW of some instances, float32."""
        return self._gather("first", stems)

    def videos(self, stems: Sequence[str]) -> Tensor:
        """latents_BCFHW of some planner's videos, float32. Raises UserError if their split was encoded without."""
        return self._gather("video", stems)

    def check(self, model: Path, height: int, width: int, num_frames: int) -> None:
        """Raises UserError unless this was encoded by the VAE and the text encoder of `model` at this size."""
        wanted = {"height": height, "width": width, "num_frames": num_frames, **fingerprints(model)}
        compare(self.folder, self.index, wanted)

    def verify(self) -> None:
        """Reads everything, and shows how far it is. Raises UserError for the first shard that differs from its checksum."""
        names = (PROMPTS, *self.shards)
        with ThreadPoolExecutor(_THREADS) as pool:
            intact = track(
                pool.map(is_intact, [self.folder / name for name in names]), f"checking {self.folder}", len(names)
            )
            damaged = [name for name, good in zip(names, intact, strict=True) if not good]
        if damaged:
            raise _damaged(self.folder / damaged[0], "its checksum differs")

    def _place(self, stem: str) -> Place:
        try:
            return self.index["instances"][stem]
        except KeyError as error:
            raise UserError(f"{self.folder} does not hold {stem}; encode the data set that has it") from error

    def _gather(self, name: str, stems: Sequence[str]) -> Tensor:
        """Rows in the order of stems, read shard by shard."""
        by_shard: dict[str, list[int]] = {}
        for b, stem in enumerate(stems):
            by_shard.setdefault(self._place(stem)["shard"], []).append(b)
        channels, frames, height, width = self.latent_shape
        out = torch.empty(len(stems), channels, frames if name == "video" else 1, height, width)
        for shard, batch in by_shard.items():
            found = self._rows(shard, name, [self._place(stems[b])["row"] for b in batch])
            if found.shape[1:] != out.shape[1:] or len(found) != len(batch):
                raise _damaged(self.folder / shard, f"its {name} are not of the index's shape or number")
            out[batch] = found.float()
        return out

    def _rows(self, shard: str, name: str, rows: Sequence[int]) -> Tensor:
        handle = self._handle(shard)
        if name not in handle.keys():  # noqa: SIM118  (a safe_open is no dict)
            raise UserError(f"{self.folder / shard} holds no {name}; encode with `--videos` naming its split")
        try:
            tensor = handle.get_slice(name)
            return torch.cat([tensor[row : row + 1] for row in rows])
        except SafetensorError as error:
            raise _damaged(self.folder / shard, error) from error

    def _open(self, shard: str) -> Any:
        try:
            return safe_open(self.folder / shard, framework="pt")
        except (OSError, SafetensorError) as error:
            raise _damaged(self.folder / shard, error) from error


def _damaged(shard: Path, why: object) -> UserError:
    return UserError(f"{shard} is damaged ({why}); the same `vrlvr encode` command makes it anew")


def read_index(folder: Path) -> Index:
    """The index of a folder. Raises UserError if there is none, or one that cannot be read."""
    path = folder / INDEX
    if not path.is_file():
        raise UserError(f"{path} is missing; give a folder made by `vrlvr encode`")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        missing = Index.__required_keys__ - index.keys()
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is broken ({error}); encode into another folder") from error
    compare(folder, index, {"version": VERSION})
    if missing:
        raise UserError(f"{path} is broken (it lacks {min(missing)}); encode into another folder")
    if not _is_index(index):
        raise UserError(f"{path} is broken (entries of another kind); encode into another folder")
    return index


def _is_index(index: dict[str, Any]) -> bool:
    """Whether the entries that are read are of the right kinds, and name files of their own folder only."""
    shape, prompts, places = index["latent_shape"], index["prompts"], index["instances"]
    if not (isinstance(shape, list) and isinstance(prompts, list) and isinstance(places, dict)):
        return False
    return (
        len(shape) == 4
        and len(prompts) > 0
        and all(type(size) is int and size > 0 for size in shape)
        and all(isinstance(place, dict) and Place.__required_keys__ <= place.keys() for place in places.values())
        and all(
            stem.count("/") == 2 and Path(str(place["shard"])).name == place["shard"] for stem, place in places.items()
        )
        and all(type(place["row"]) is int and place["row"] >= 0 for place in places.values())
        and all(type(place["prompt"]) is int and 0 <= place["prompt"] < len(prompts) for place in places.values())
        and all(isinstance(place["puzzle"], str) for place in places.values())
    )


def compare(folder: Path, former: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError naming the first of the `wanted` entries that an index has otherwise."""
    for key, value in wanted.items():
        if former.get(key) != value:
            other = _LONG.get(key) or f"{key}={former.get(key)}, not {value}"
            raise UserError(f"{folder} was encoded with {other}; repeat the former arguments or choose another folder")


def puzzle_path(stem: str) -> Path:
    """An instance's puzzle, relative to the data set."""
    return Path(f"{stem}.json")


def checksum_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.sha256")


def is_intact(shard: Path) -> bool:
    """Whether a shard is there, complete, and as its checksum says. Reads it."""
    try:
        return checksum_path(shard).read_text(encoding="utf-8").split() == [file_digest(shard), shard.name]
    except (OSError, UnicodeDecodeError):
        return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
