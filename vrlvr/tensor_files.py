"""Named tensors in safetensors files, a shard at a time, each file's size and SHA-256 in a manifest beside them.

A folder has `{name}.safetensors` for each of its sets of tensors or, of a large one, shards `{name}-00001-of-00003.safetensors`
with `{name}.safetensors.index.json` (Hugging Face's layout). Its state.json holds {"files": {file: {"bytes", "sha256"}}} and
what the writer adds. Nothing in a folder is ever executed.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vrlvr.errors import UserError

MANIFEST = "state.json"
MAX_SHARD_BYTES = 5 * 10**9
_THREADS = 8  # hashing leaves the interpreter's lock alone


def write_tensors(folder: Path, name: str, tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int) -> None:
    """Writes a set of tensors; no more than a shard of them is held at once. Raises OSError or SafetensorError."""
    shards: list[list[str]] = []
    for shard in _shards(tensors, max_shard_bytes):
        shards.append(list(shard))
        save_file(shard, folder / f"{name}-{len(shards):05d}.safetensors")
    if len(shards) == 1:
        (folder / f"{name}-00001.safetensors").rename(folder / f"{name}.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, keys in enumerate(shards, start=1):
        file = f"{name}-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{name}-{number:05d}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(keys, file)
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}, indent=1))


def _shards(tensors: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    """At least one, even if empty."""
    shard: dict[str, Tensor] = {}
    size = 0
    for key, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[key] = _own(tensor.detach().cpu().contiguous())
        size += tensor.nbytes
    yield shard


def _own(tensor: Tensor) -> Tensor:
    """safetensors takes no part of a larger storage."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes state.json over all files that the folder has by now."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(_sha256, files)
        listed = {p.name: {"bytes": p.stat().st_size, "sha256": d} for p, d in zip(files, digests, strict=True)}
    (folder / MANIFEST).write_text(json.dumps({"files": listed} | dict(content), indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of state.json. Raises UserError if it is missing or damaged."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        listed = [(name, int(facts["bytes"]), str(facts["sha256"])) for name, facts in content["files"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(path, repr(error)) from error
    if elsewhere := [name for name, _, _ in listed if Path(name).name != name]:
        raise _unreadable(path, f"it lists {elsewhere[0]}, which is not of this folder")
    return content


def verify(folder: Path, names: Iterable[str] | None = None) -> None:
    """Compares the files of these sets of tensors, or all files, with the manifest.

    Raises UserError that names the first one that is missing, truncated, altered or not in the manifest.
    """
    listed = read_manifest(folder)["files"]
    for path in sorted(folder.glob("*.safetensors*")):
        if path.name not in listed:
            raise _unreadable(path, f"{MANIFEST} does not list it")
    if names is not None:
        wanted = tuple(names)
        listed = {
            file: facts
            for file, facts in listed.items()
            if file.startswith(tuple(f"{n}{c}" for n in wanted for c in ".-"))
        }
        if absent := [n for n in wanted if not any(file.startswith((f"{n}.", f"{n}-")) for file in listed)]:
            raise _unreadable(folder / f"{absent[0]}.safetensors", "it is not there")
    for file, facts in listed.items():
        size = (folder / file).stat().st_size if (folder / file).is_file() else None
        if size != facts["bytes"]:
            raise _unreadable(
                folder / file, "it is missing" if size is None else f"{size} bytes instead of {facts['bytes']}"
            )
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(_sha256, [folder / file for file in listed])
        for (file, facts), digest in zip(listed.items(), digests, strict=True):
            if digest != facts["sha256"]:
                raise _unreadable(folder / file, "its content is not what was saved")


class TensorFiles(Mapping[str, Tensor]):
    """A set of tensors, each read when asked for. Raises UserError if a file is missing or no safetensors file."""

    def __init__(self, folder: Path, name: str) -> None:
        index = folder / f"{name}.safetensors.index.json"
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(index, repr(error)) from error
        self._opened: dict[str, tuple[Any, Path]] = {}
        for path in [folder / file for file in files or [f"{name}.safetensors"]]:
            try:
                opened = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise _unreadable(path, str(error)) from error
            self._opened |= dict.fromkeys(opened.keys(), (opened, path))

    def __getitem__(self, key: str) -> Tensor:
        opened, path = self._opened[key]
        try:
            return opened.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, str(error)) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened)

    def __len__(self) -> int:
        return len(self._opened)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(f"{path} is no readable checkpoint ({why}); use a run whose stage is complete, or begin anew")
