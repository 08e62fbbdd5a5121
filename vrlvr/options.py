"""The command line and YAML of a run, over the dataclasses of vrlvr.config."""

import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from vrlvr.atomic_write import write_text
from vrlvr.cli_errors import explain
from vrlvr.config import Config
from vrlvr.errors import UserError


def parse(arguments: Sequence[str] | None = None, prog: str = "vrlvr train") -> Config:
    """The configuration of a command line: defaults, then --config FILE, then --section.field VALUE, in their order.

    Raises UserError, one line, for an unknown key (naming the nearest one) or a value of the wrong kind.
    """
    parser = ArgumentParser(
        prog=prog, description="Trains a video policy: data, SFT, SDE-GRPO, evaluation.", exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_class_arguments(Config)
    sections = {"Config": Config(), **dict(_sections(Config()))}
    for key, group in (parser.groups or {}).items():  # the docstrings tell what each option is
        group.title, group.description = f"{key} options", inspect.getdoc(sections[key])
    try:
        parsed = parser.parse_args(arguments)
        for key, _ in _sections(Config()):
            if not isinstance(parsed[key], Namespace):
                raise UserError(f"{key}={parsed[key]!r} must be a section of options; write {key}: {{option: value}}")
        options = parser.instantiate(parsed)
        return Config(**{field.name: options[field.name] for field in fields(Config)})
    except (ArgumentError, ValueError) as error:  # ValueError: an option's own check, such as a puzzle's difficulty
        raise UserError(_explain(str(error))) from error


def save(config: Config, path: Path) -> None:
    """Writes every option, resolved, as YAML that --config reads back."""
    write_text(path, yaml.safe_dump(plain(asdict(config)), sort_keys=False))


def plain(value: Any) -> Any:
    """Nested options as YAML holds them: tuples become lists."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _keys(section: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(section):
        value = getattr(section, field.name)
        yield prefix + field.name
        if is_dataclass(value):
            yield from _keys(value, f"{prefix}{field.name}.")


def _sections(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields(section):
        if is_dataclass(value := getattr(section, field.name)):
            yield prefix + field.name, value
            yield from _sections(value, f"{prefix}{field.name}.")


def _explain(message: str) -> str:
    """One line from jsonargparse's message, with the nearest key where it rejects one."""
    line = " ".join(message.split())
    patterns = (
        r"[Uu]nrecognized arguments: --(?P<key>[\w.]+)",
        r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'",
        r"Option '(?P<key>[\w.]+)' is not accepted",
    )
    for pattern in patterns:
        if found := re.search(pattern, line):
            parts = found.groupdict()
            key = f"{parts['group']}.{parts['key']}" if "group" in parts else parts["key"]
            near = difflib.get_close_matches(key, list(_keys(Config())), n=1, cutoff=0.0)[0]
            return f"option {key} does not exist; the nearest one is {near} (--help lists all)"
    return explain(line, "train", list(_keys(Config())))
