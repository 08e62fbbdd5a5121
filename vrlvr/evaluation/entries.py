"""Lists of checked objects as JSON files: what results.json and gains.json are made of."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrlvr.atomic_write import write_text
from vrlvr.errors import UserError

Check = Callable[[Any], bool]
Schema = Mapping[str, tuple[str, Check]]  # field -> the constraint in words, and its test


_MAX_BYTES = 64 * 1024**2


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def is_rate(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 100


def is_interval(value: Any, low: float, high: float) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(map(is_number, value))
        and low <= value[0] <= value[1] <= high
    )


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 10**12


def is_count_or_none(value: Any) -> bool:
    return value is None or is_count(value)


def is_count_or_zero(value: Any) -> bool:
    return is_count(value) or (value == 0 and isinstance(value, int) and not isinstance(value, bool))


NAME = ("a name", is_name)
RATE = ("a number in 0..100", is_rate)
OPTIONAL_COUNT = ("a positive integer or null", is_count_or_none)
COUNT_OR_ZERO = ("0 or a positive integer", is_count_or_zero)
OPTIONAL_INTERVAL = (
    "[low, high] in 0..100 or null",
    lambda value: value is None or is_interval(value, 0, 100),
)


def checked(entry: Any, schema: Schema, where: str, optional: Schema | None = None) -> dict[str, Any]:
    """The entry itself, if every field of the schema is there and valid, and those of `optional` that are there.

    Raises UserError, with the value cut to 80 characters.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be an object with {', '.join(schema)}; write the file again with `vrlvr eval`")
    present = {name: check for name, check in (optional or {}).items() if name in entry}
    for name, (constraint, check) in {**schema, **present}.items():
        if name not in entry:
            raise UserError(f"{where} has no {name}, it must be {constraint}; write the file again with `vrlvr eval`")
        if not check(entry[name]):
            value = repr(entry[name])
            shown = value if len(value) <= 80 else f"{value[:79]}…"
            raise UserError(f"{where}: {name}={shown} must be {constraint}; correct it or run `vrlvr eval` again")
    return entry


def read_json(path: Path) -> Any:
    """The content of a JSON file of at most 64 MiB. Raises OSError, ValueError or RecursionError."""
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
    return json.loads(content.decode("utf-8"))


def read_entries(path: Path) -> list[Any]:
    """The list that a JSON file holds. Raises UserError if it is missing, no JSON or no list."""
    try:
        entries = read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); run `vrlvr eval` first") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}); run `vrlvr eval` again") from error
    if not isinstance(entries, list):
        raise UserError(f"{path} holds a {type(entries).__name__}, a list is needed; run `vrlvr eval` again")
    return entries


def write_entries(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError as `atomic_write.write_text` does."""
    write_text(path, json.dumps(entries, indent=1, allow_nan=False) + "\n")
