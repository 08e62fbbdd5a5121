"""The README's commands: they exist, and those for Wan name the folders that the presets read."""

import re
import shlex
from pathlib import Path

from vrlvr import options
from vrlvr.cli import CALLED, COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def wan_commands() -> list[list[str]]:
    """The words of the commands in the Wan section's first block."""
    block = README.split("## Wan2.2-TI2V-5B", 1)[1].split("```")[1]
    return [shlex.split(line, comments=True) for line in block.strip().splitlines()]


def option(command: str, name: str) -> str:
    (words,) = (words for words in wan_commands() if words[:2] == ["vrlvr", command])
    return words[words.index(name) + 1]


def test_the_commands_and_presets_exist() -> None:
    lines = [line for block in README.split("```")[1::2] for line in block.splitlines()]
    named = [words for line in lines if (words := line.split("#")[0].split())[:1] == ["vrlvr"]]
    assert len(named) > 15
    for _, *words in named:
        several = " ".join(words).split(" | ") if "|" in words else [" ".join(words)]
        for command in several:
            first, *rest = command.split()
            assert first in COMMANDS
            if first == "eval" and not rest[0].startswith("-"):
                assert all(f"eval {name}" in CALLED for name in rest[0].split("|"))
    presets = set(re.findall(r"configs/[\w./-]+\.yaml", README)) - {"configs/X.yaml"}
    assert len(presets) > 1
    assert all((ROOT / preset).is_file() for preset in presets)


def test_the_wan_commands_fit_the_presets() -> None:
    folder = ROOT / "configs" / "wan2.2-ti2v-5b"
    sft, grpo = (options.parse(["--config", str(folder / f"{name}.yaml")]) for name in ("sft", "grpo"))
    for config in (sft, grpo):
        assert option("data", "--out") == option("encode", "--data") == config.data.dir
        assert option("encode", "--out") == config.data.encoded
        assert option("encode", "--model") == config.model.path
    assert int(option("data", "--num_train")) == sft.data.num_train + sft.data.num_val
    assert int(option("data", "--num_test")) == sft.data.num_test
    assert option("export", "--run_dir") == grpo.run_dir
    stages = [re.findall(r"in (.*); do .*/(\w+)\.yaml --stage \$stage", " ".join(words)) for words in wan_commands()]
    assert [found for line in stages for found in line] == [("data sft eval", "sft"), ("grpo eval", "grpo")]
