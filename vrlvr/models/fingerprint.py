"""What tells one model's encoders from another's, without reading all of their gigabytes."""

import hashlib
import json
from pathlib import Path

from vrlvr.errors import UserError

_PIECES, _PIECE_BYTES = 16, 1 << 20


def fingerprints(model: Path) -> dict[str, str]:
    """What tells a Wan model's encoders from others': one fingerprint for its VAE, one for its tokenizer and text encoder.

    Raises UserError if `model` is no folder of a Wan model in Diffusers' layout.
    """
    return {"vae": fingerprint(model, "vae"), "text_encoder": fingerprint(model, "tokenizer", "text_encoder")}


def fingerprint(model: Path, *parts: str) -> str:
    """SHA-256 over some components of a model: names, sizes and contents of their JSON, tokenizer and safetensors files.

    JSON counts without the entries that say only by which version of a library it was saved. Of files above 16 MiB, 16
    pieces of 1 MiB at equal distances count: training changes weights everywhere, and a cut file changes its size.
    """
    total = hashlib.sha256()
    for part in parts:
        files = sorted(
            path for pattern in ("*.json", "*.model", "*.safetensors") for path in (model / part).glob(pattern)
        )
        if not files:
            raise UserError(f"{model} has no {part}; give a folder of a Wan model in Diffusers' layout")
        for path in files:
            content = _config(path) if path.name == "config.json" else _sample(path)
            total.update(f"{part}/{path.name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def _config(path: Path) -> bytes:
    try:
        entries = json.loads(path.read_text(encoding="utf-8")).items()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no model's configuration ({error}); download the model again") from error
    return json.dumps(
        {k: v for k, v in entries if not k.startswith("_") and k != "transformers_version"}, sort_keys=True
    ).encode()


def _sample(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _PIECES * _PIECE_BYTES:
            return file.read()
        pieces = [str(size).encode()]
        for i in range(_PIECES):
            file.seek(i * (size - _PIECE_BYTES) // (_PIECES - 1))
            pieces.append(file.read(_PIECE_BYTES))
    return b"".join(pieces)
