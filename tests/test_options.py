"""Bad options end with code 2 and one line that names value and remedy, before anything is written."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from tiny_run import ARGUMENTS

from vrlvr import options
from vrlvr.config import Config, check
from vrlvr.errors import UserError
from vrlvr.train import main


def refusal(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    run_dir = tmp_path / "run"
    assert main([*arguments, "--run_dir", str(run_dir)]) == 2
    assert not run_dir.exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("vrlvr: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--grpo.grup_size 8", ["grpo.grup_size", "nearest one is grpo.group_size"]),
        ("--sftt.lr 1", ["sftt.lr", "nearest one is sft.lr"]),
        ("--grpo.group_size 1", ["grpo.group_size=1", "at least 2"]),
        ("--grpo.sde_steps 5", ["grpo.sde_steps=5", "from 1 to 4", "use all"]),
        ("--grpo.sde_steps 12 --sampler.num_steps 12", ["grpo.sde_steps=12", "from 1 to 11"]),
        ("--grpo.sde_steps few", ["grpo.sde_steps", "few", "all"]),
        ("--grpo.tail_steps 0", ["grpo.tail_steps=0", "at least 1"]),
        ("--grpo.noise_level 0", ["grpo.noise_level=0.0", "above 0"]),
        ("--grpo.noise_level 1.5 --grpo.sampler cps", ["grpo.noise_level=1.5", "at most 1"]),
        ("--grpo.keep_fraction 0", ["grpo.keep_fraction=0.0", "(0, 1]"]),
        ("--grpo.micro_batch 0", ["grpo.micro_batch=0", "at least 1"]),
        ("--grpo.lr fast", ["grpo.lr=fast must be a number"]),
        ("--sft.validate_every 0", ["sft.validate_every=0", "at least 1"]),
        ("--data.num_test 0", ["data.num_test=0", "at least 1"]),
        ("--data.tasks [maze,chess]", ["chess", "one or more of maze, flowfree, sokoban"]),
        ("--data.tasks [maze,maze]", ["data.tasks=['maze', 'maze']", "each once"]),
        ("--data.tasks []", ["data.tasks=[]", "one or more"]),
        ("--data.num_frames 6", ["data.num_frames=6", "1 + 4k", "use 5"]),
        ("--data.height 18", ["data.height=18", "4x4", "use data.height=16"]),
        ("--data.height 20 --data.width 20", ["data.height=20", "use data.height=16"]),  # cells of 5 pixels
        ("--model.path wan", ["model.path", "data.encoded"]),
        ("--data.encoded encoded", ["data.encoded", "model.path"]),
        ("--model.path wan --data.encoded encoded", ["data.dir"]),
        ("--model.path wan --data.encoded encoded --data.dir data", ["model.conditioning=concat", "pin"]),
        ("--model.lora.rank 4", ["model.lora.rank=4", "model.path"]),
        ("--grpo.start model", ["grpo.start=model", "model.path"]),
        ("--grpo.reward_decoder small", ["grpo.reward_decoder=small", "model.path"]),
        ("--checkpoints_to_keep 0", ["checkpoints_to_keep=0", "at least 1"]),
        ("--data.width 20", ["data.width=20", "use data.height=16"]),  # cells of 4 pixels, 2 beside the codec's
        ("--data.sokoban.rows 5", ["5x4 board of sokoban", "use data.height=20"]),
        ("--data.maze.max_plan 8", ["data.maze", "8 moves", "use data.num_frames=9"]),
        ("--data.maze.rows 1", ["maze of 1x4", "2 to 255"]),
        ("--stage rl", ["stage=rl must be one of all, data, sft, grpo, eval"]),
        ("--engine.zero_stage 4", ["engine.zero_stage=4 must be one of 0, 1, 2, 3"]),
        ("--grpo.sde_steps some", ["grpo.sde_steps=some must be one of all or a whole number"]),
        ("--config /nowhere/x.yaml", ["/nowhere/x.yaml", "not exist"]),
    ],
)
def test_command_line(arguments: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal([*ARGUMENTS, *arguments.split()], tmp_path, capsys)
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grpo: {grup_size: 4}", ["grpo.grup_size", "nearest one is grpo.group_size"]),
        ("grop: {lr: 1.0}", ["grop", "nearest one is grpo"]),
        ("data: {maze: {row: 5}}", ["data.maze.row", "nearest one is data.maze.rows"]),
        ("grpo: 3", ["grpo=3", "section", "grpo: {option: value}"]),
        ("grpo: {lr: fast}", ["grpo.lr", "fast"]),
        ("grpo: [", ["parsing config", "line"]),
        ("grpo: {reward: {maze: {solved: 1}}}", ["no weights for flowfree", "give some of solved"]),
        ("{data: {tasks: [maze]}, grpo: {reward: {maze: {solvd: 1}}}}", ["solvd", "the components are solved"]),
    ],
)
def test_yaml(text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    line = refusal(["--config", str(path)], tmp_path, capsys)
    assert [word for word in words if word not in line] == [], line


def test_the_defaults_agree_with_each_other() -> None:
    assert options.parse([]) == Config()
    check(Config(), world_size=2)


def test_spread_weights_need_equal_passes() -> None:
    config = options.parse(["--engine.zero_stage", "3", "--sft.batch_size", "10", "--sft.micro_batch", "2"])
    check(config, world_size=5)
    with pytest.raises(UserError, match=r"sft.batch_size=10 must be divisible by the 4 processes.*; use 12"):
        check(config, world_size=4)


def test_a_group_may_be_spread_over_processes() -> None:
    config = options.parse(["--grpo.puzzles", "1", "--grpo.group_size", "4"])
    check(config, world_size=4)
    with pytest.raises(UserError, match=r"grpo.puzzles=1 of grpo.group_size=4 .* 5 processes; use at least 2 puzzles"):
        check(config, world_size=5)


@pytest.mark.parametrize("option", ["--sft.batch_size", "--data.num_val"])
def test_every_process_needs_work(option: str) -> None:
    config = options.parse([option, "3"])
    check(config, world_size=3)
    with pytest.raises(UserError, match=rf"{option[2:]}=3 .* at least 4"):
        check(config, world_size=4)


def test_later_options_override_earlier_ones_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("{seed: 5, grpo: {lr: 0.1, sde_steps: all}}")
    config = options.parse(["--config", str(path), "--grpo.lr", "0.2", "--grpo.lr=0.3"])
    assert (config.seed, config.grpo.lr, config.grpo.sde_steps) == (5, 0.3, "all")
    assert config.grpo.group_size == Config().grpo.group_size


def test_what_is_saved_reads_back_the_same(tmp_path: Path) -> None:
    arguments = ["--grpo.sde_steps", "all", "--data.maze.max_plan", "3", "--model.patch_size", "[1,2,2]", "--seed", "9"]
    arguments += ["--grpo.reward", '{"maze": {"solved": 1.0}}', "--data.tasks", "[maze]", "--grpo.tail_steps", "null"]
    config = options.parse(arguments)
    options.save(config, tmp_path / "config.yaml")
    assert options.parse(["--config", str(tmp_path / "config.yaml")]) == config
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == options.plain(asdict(config))


def test_help_tells_what_every_section_says_of_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        options.parse(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for said in (
        "resume auto goes on from the last checkpoint",
        "keep_fraction: share of samples, by largest |advantage|, that is backpropagated.",
        "rank 0: none. alpha: their scale is alpha / rank. targets: ends of module names",
        "offload: optimizer state to the CPU.",
        "encoded: a folder made by `vrlvr encode`",
    ):
        assert said in told, said
