"""Wan models in Diffusers' folder layout: the transformer read and written, and whole pipelines exported.

A folder holds model_index.json (which names the class of every component) and a folder a component; a transformer's has
config.json and its weights as diffusion_pytorch_model.safetensors, or as shards with an index. Only safetensors are read.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vrlvr import __version__
from vrlvr.atomic_write import replacing_folder
from vrlvr.errors import UserError
from vrlvr.models.dit import WanConfig, WanTransformer
from vrlvr.models.recompute import Policy as RecomputePolicy
from vrlvr.models.wan_layout import (
    CLASS,
    MODEL_INDEX,
    component_class,
    conditioning_of,
    read_config,
    read_index,
    read_json,
)

WEIGHTS = "diffusion_pytorch_model"
MAX_SHARD_BYTES = 5 * 2**30
EXPORT_MARK = "vrlvr_export.json"  # in every folder that `export_pipeline` made
_FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them: what a transformer's weights may be stored in


def load_transformer(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    recompute: RecomputePolicy = "none",
    attention: str = "auto",
    name: str = "transformer",
) -> WanTransformer:
    """A folder's transformer on the device, in dtype; what the model keeps in float32 stays so.

    The weights stream from their files to the device one tensor at a time: at no moment is there a second copy of more
    than one. Names, shapes and types are checked in the files' headers before any weight is read. Raises UserError if the
    folder is no Diffusers folder of an image-to-video Wan model, or incomplete.
    """
    config = read_config(folder, name)
    conditioning_of(folder, name)
    with torch.device("meta"):
        dit = WanTransformer(config, recompute, attention)
    dit = dit.to(dtype)  # gives each parameter on the meta device the type that it is to have
    files = _weight_files(folder / name)
    wanted = dit.state_dict()
    _check_headers(files, wanted, folder / name)
    state = {}
    for file in files:
        with _opened(file, device) as reader:
            for key in reader.keys():  # noqa: SIM118  # not a mapping
                # What the CPU reads is a view of the mapped file, which must not outlive it.
                state[key] = reader.get_tensor(key).to(wanted[key].dtype, copy=device.type == "cpu")
    dit.load_state_dict(state, assign=True)
    return dit


def save_transformer(
    dit: WanTransformer, folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES, name: str = "transformer"
) -> None:
    """Writes folder/name as diffusers' `from_pretrained` reads it, in the parameters' own types; whole or not at all.

    A shard is copied to the CPU at a time. Raises UserError if the model is wrapped (LoRA) or sharded, so that its
    parameters are not those of the plain model, or if the disk refuses.
    """
    state = _plain_state(dit)
    with replacing_folder(folder / name) as partial:
        _write_transformer(dit.config, state, partial, max_shard_bytes)


def export_pipeline(
    source: Path, dit: WanTransformer, out: Path, max_shard_bytes: int = MAX_SHARD_BYTES, name: str = "transformer"
) -> None:
    """Writes a complete Diffusers folder: this transformer, with copies of the source's other components.

    Links are followed, so that a folder of a download's cache is copied too. An earlier export at `out` is replaced.
    Raises UserError if the source is incomplete, `out` holds anything else, or the disk refuses.
    """
    index, state = read_index(source), _plain_state(dit)
    real_source, real_out = source.resolve(), out.resolve()
    if real_out.is_relative_to(real_source) or real_source.is_relative_to(real_out):
        raise UserError(f"out={out} and the source {source} must not lie within each other; choose another folder")
    if out.exists() and not (out / EXPORT_MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} is not empty and no earlier export (no {EXPORT_MARK} there); choose another folder")
    others = [key for key in index if component_class(index, key) and key != name]
    for component in others:
        if not component.isidentifier() or not (source / component).is_dir():  # a path could lead anywhere
            raise UserError(
                f"{source} has no folder {component}, which its {MODEL_INDEX} names; download it completely"
            )
    with replacing_folder(out) as partial:
        for component in others:
            shutil.copytree(source / component, partial / component)
        for file in [source / MODEL_INDEX, *source.glob("LICENSE*")]:
            shutil.copy(file, partial / file.name)
        (partial / name).mkdir()
        _write_transformer(dit.config, state, partial / name, max_shard_bytes)
        _write_json(partial / EXPORT_MARK, {"vrlvr": __version__, "source": real_source.name})


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors of a component. Raises UserError if there are none or some are missing."""
    index, single = folder / f"{WEIGHTS}.safetensors.index.json", folder / f"{WEIGHTS}.safetensors"
    if not index.is_file():
        if not single.is_file():
            raise UserError(
                f"{folder} has neither {single.name} nor {index.name}; download the model's safetensors (pickled .bin "
                "weights and variants are not read)"
            )
        return [single]
    weight_map = read_json(index).get("weight_map")
    named = {str(file) for file in weight_map.values()} if isinstance(weight_map, dict) else set()
    files = [folder / file for file in sorted(named)]
    missing = [file.name for file in files if file.parent != folder or not file.is_file()]
    if missing or not files:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(files)} shards ({_some(missing)}) of its index; download it again"
        )
    return files


def _check_headers(files: list[Path], wanted: Mapping[str, Tensor], folder: Path) -> None:
    """Raises UserError unless the files hold exactly the wanted tensors, by name and shape, as plain floats."""
    found: dict[str, tuple[list[int], str]] = {}
    for file in files:
        with _opened(file, torch.device("cpu")) as reader:
            for key in reader.keys():  # noqa: SIM118
                part = reader.get_slice(key)
                found[key] = part.get_shape(), part.get_dtype()
    _check_names(wanted, found, str(folder))
    for key, (shape, dtype) in found.items():
        if shape != list(wanted[key].shape):
            raise UserError(
                f"{folder}: {key} has shape {shape}, but config.json asks for {list(wanted[key].shape)}; download both again"
            )
        if dtype not in _FLOATS:
            raise UserError(
                f"{folder}: {key} is stored as {dtype}, but must be one of {', '.join(_FLOATS)}; use weights that are not "
                "quantised"
            )


def _check_names(wanted: Iterable[str], found: Iterable[str], where: str) -> None:
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unexpected:
        raise UserError(
            f"{where} must have the tensors of a {CLASS} of its config.json: {len(missing)} are missing ({_some(missing)}), "
            f"{len(unexpected)} unexpected ({_some(unexpected)}); use a plain Wan model (adapters merged), downloaded whole"
        )


def _plain_state(dit: WanTransformer) -> dict[str, Tensor]:
    """The state dict. Raises UserError unless its names and shapes are the plain model's."""
    state = dit.state_dict()
    with torch.device("meta"):
        plain = WanTransformer(dit.config).state_dict()
    _check_names(plain, state, "the transformer to save")
    for key, tensor in state.items():
        if tensor.shape != plain[key].shape:
            raise UserError(
                f"{key} to save has shape {list(tensor.shape)} instead of {list(plain[key].shape)}; gather sharded "
                "parameters first"
            )
    return state


def _write_transformer(config: WanConfig, state: Mapping[str, Tensor], folder: Path, max_shard_bytes: int) -> None:
    _write_json(folder / "config.json", {"_class_name": CLASS} | config.to_diffusers())
    shards = _shards(state, max_shard_bytes)
    names = [f"{WEIGHTS}.safetensors"]
    if len(shards) > 1:
        names = [f"{WEIGHTS}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())},
            "weight_map": {key: file for file, keys in zip(names, shards, strict=True) for key in keys},
        }
        _write_json(folder / f"{WEIGHTS}.safetensors.index.json", index)
    for file, keys in zip(names, shards, strict=True):
        tensors = {key: state[key].detach().cpu().contiguous() for key in keys}
        try:
            save_file(tensors, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"safetensors: {error}") from error  # it reports a full disk so


def _shards(tensors: Mapping[str, Tensor], max_bytes: int) -> list[list[str]]:
    """Names of tensors in their order, in shards of at most max_bytes (a larger tensor has one of its own)."""
    shards: list[list[str]] = []
    size = 0
    for key, tensor in tensors.items():
        if not shards or size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += tensor.nbytes
    return shards


@contextmanager
def _opened(file: Path, device: torch.device) -> Iterator[Any]:
    """A safetensors reader. Raises UserError if the file is damaged."""
    try:
        with safe_open(file, framework="pt", device=str(device)) as reader:
            yield reader
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is no readable safetensors file ({error}); download it again") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _some(names: list[str], number: int = 3) -> str:
    """The first few names."""
    return ", ".join(names[:number]) + (", ..." if len(names) > number else "") or "none"
