"""The console script: vrlvr train | data | import | encode | distill-decoder | eval | table | estimate | export | verify."""

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from vrlvr import dataset, puzzles
from vrlvr.errors import UserError
from vrlvr.puzzles.verdict import reward
from vrlvr.video_io import read_mp4

USAGE = """usage: vrlvr COMMAND [options]

  train    train a video policy: data, SFT, SDE-GRPO, evaluation (all options of configs/*.yaml)
  data     make puzzle videos:   --out DIR --num_train N --num_test N [--seed S] [--height H] [--width W] ...
  import   puzzles that others made, as a data set for eval: FILE... --format boxoban|numberlink|maze --out DIR ...
  encode   a data set's prompts, first frames and videos by a Wan model's encoders: --data DIR --model DIR --out DIR ...
  distill-decoder
           a small decoder for rewards, learnt from a Wan model's: --model DIR --out DIR [--data DIR] [--steps N] ...
  eval     test a trained run:   --run_dir DIR
           or any system's answers to a data set's test puzzles: eval videos|model|provider|llm|vbvr|verifiers
  table    results of many systems beside the published ones: [RESULTS.json ...] [--format markdown|latex|csv|html] ...
  estimate memory and time of a run, without a GPU: --config FILE [--processes N] [--gpu_gib G] [--json] ...
  export   a trained model for diffusers or ComfyUI: --run_dir DIR --out DIR --format diffusers|merged|lora-diffusers|...
  verify   judge one video:      VIDEO.mp4 --puzzle PUZZLE.json [--json]

`vrlvr COMMAND --help` lists a command's options."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0; 2 after bad input, told in one line; 130 after Ctrl-C; verify also 1 if not
    solved."""
    arguments = [_with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    try:
        if command not in COMMANDS:
            raise UserError(f"command {command!r} does not exist; use one of {', '.join(COMMANDS)}")
        return COMMANDS[command](rest)
    except UserError as error:
        print(f"vrlvr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"vrlvr: {command} was stopped; what is complete stays (train goes on with --resume auto)", file=sys.stderr
        )
        return 130


def _train(arguments: Sequence[str]) -> int:
    from vrlvr.train import main as train  # torch takes seconds to import; data and verify do without

    return train(arguments)


def _with_underscores(word: str) -> str:
    """--base-url=X-Y as --base_url=X-Y: options are written with either."""
    name, *value = word.split("=", 1)
    return "=".join([name[:2] + name[2:].replace("-", "_"), *value]) if name.startswith("--") else word


def _eval(arguments: Sequence[str]) -> int:
    """Tests a run by the options that it was trained with, which the command line may override; or other systems."""
    if arguments and arguments[0] in EVALUATIONS:
        function, positional = EVALUATIONS[arguments[0]]
        return _call(f"vrlvr eval {arguments[0]}", function, positional, arguments[1:])
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run_dir", default="runs/tiny")
    known, others = parser.parse_known_args(list(arguments))
    if "--help" in others:
        return _train(others)
    config = Path(known.run_dir) / "config.yaml"
    if not config.exists():
        raise UserError(f"{config} does not exist; name a trained run with --run_dir")
    return _train(["--config", str(config), "--run_dir", known.run_dir, *others, "--stage", "eval"])


def _data(arguments: Sequence[str]) -> int:
    parser = ArgumentParser(prog="vrlvr data", exit_on_error=False)
    parser.add_function_arguments(dataset.build, skip={"tasks", "difficulties"})
    parser.add_argument("--tasks", type=str, default=",".join(puzzles.ROOMS), help="tasks, comma separated")
    options = _parsed(parser, arguments).as_dict()
    dataset.build(**options | {"tasks": options["tasks"].split(",")})
    return 0


def _import(arguments: Sequence[str]) -> int:
    from vrlvr.importing import import_puzzles

    parser = ArgumentParser(prog="vrlvr import", exit_on_error=False)
    parser.add_argument("files", type=Path, nargs="+", help="text files of levels, or folders of them")
    parser.add_function_arguments(import_puzzles, skip={"files"})
    import_puzzles(**_parsed(parser, _with_true(arguments, inspect.signature(import_puzzles))).as_dict())
    return 0


def _encode(arguments: Sequence[str]) -> int:
    from vrlvr.encode import SPLITS, encode

    parser = ArgumentParser(prog="vrlvr encode", exit_on_error=False)
    parser.add_function_arguments(encode, skip={"tasks", "splits", "videos"})
    parser.add_argument("--tasks", type=str | None, default=None, help="tasks, comma separated; all by default")
    parser.add_argument("--splits", type=str, default=",".join(SPLITS), help="splits, comma separated")
    parser.add_argument("--videos", type=str, default="train", help="splits whose videos are encoded; empty for none")
    options = _parsed(parser, arguments).as_dict()
    lists = {name: options[name].split(",") if options[name] else [] for name in ("splits", "videos")}
    encode(**options | lists | {"tasks": options["tasks"].split(",") if options["tasks"] else None})
    return 0


def _table(arguments: Sequence[str]) -> int:
    from vrlvr.evaluation.merge import table

    parser = ArgumentParser(prog="vrlvr table", exit_on_error=False)
    parser.add_argument("results", nargs="*", type=Path, help="results.json files; none for the published tables alone")
    parser.add_function_arguments(table, skip={"results"})
    table(**_parsed(parser, arguments).as_dict())
    return 0


def _estimate(arguments: Sequence[str]) -> int:
    from vrlvr.estimate import run  # imports torch

    return run(arguments)


def _export(arguments: Sequence[str]) -> int:
    from vrlvr.export import export  # imports torch

    parser = ArgumentParser(prog="vrlvr export", exit_on_error=False)
    parser.add_function_arguments(export)
    export(**_parsed(parser, arguments).as_dict())
    return 0


def _distill_decoder(arguments: Sequence[str]) -> int:
    from vrlvr.distill import distill_decoder

    parser = ArgumentParser(prog="vrlvr distill-decoder", exit_on_error=False)
    parser.add_function_arguments(distill_decoder)
    distill_decoder(**_parsed(parser, arguments).as_dict())
    return 0


def _verify(arguments: Sequence[str]) -> int:
    """Judges a video. Exit code 0 if it is solved, 1 if not."""
    parser = ArgumentParser(prog="vrlvr verify", exit_on_error=False)
    parser.add_argument("video", type=str, help="an mp4 file of any size that the board fits")
    parser.add_argument("--puzzle", type=str, required=True, help="the puzzle's JSON, as written by vrlvr data")
    parser.add_argument("--json", action="store_true", help="print the whole verdict as JSON")
    options = _parsed(parser, arguments)
    video = read_mp4(Path(options.video))
    try:
        puzzle = puzzles.load(Path(options.puzzle))
        verdict = puzzles.verify(puzzle, video)
    except ValueError as error:
        raise UserError(str(error)) from error
    dense = reward(verdict, puzzles.DENSE_REWARD[puzzle.task])
    if options.json:
        print(json.dumps(asdict(verdict) | {"reward": dense, "f1": verdict.f1}, sort_keys=True))
    else:
        why = f", {verdict.broken_rule} at frame {verdict.frame}" if verdict.broken_rule else ""
        print(f"{'solved' if verdict.solved else 'not solved'}{why}; reward {dense:.3f}, F1 {verdict.f1:.3f}")
    return 0 if verdict.solved else 1


def _call(command: str, function: str, positional: Sequence[str], arguments: Sequence[str]) -> int:
    """Calls `module.function` with the command line's options, which are its parameters. Its module is imported only now."""
    module, _, name = function.rpartition(".")
    target = getattr(importlib.import_module(module), name)
    parser = ArgumentParser(prog=command, exit_on_error=False)
    for parameter in positional:
        parser.add_argument(parameter, type=Path)
    parser.add_function_arguments(target, skip=set(positional))
    target(**_parsed(parser, _with_true(arguments, inspect.signature(target))).as_dict())
    return 0


def _with_true(arguments: Sequence[str], signature: inspect.Signature) -> list[str]:
    """--yes as --yes=true, where yes is a bool that no value follows."""
    flags = {f"--{name}" for name, parameter in signature.parameters.items() if parameter.annotation is bool}
    following = [*arguments, "--"][1:]
    return [
        f"{word}=true" if word in flags and after.startswith("-") else word
        for word, after in zip(arguments, following, strict=True)
    ]


def _parsed(parser: ArgumentParser, arguments: Sequence[str]):
    try:
        return parser.parse_args(arguments)
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error


# Each a function of this package and those of its parameters that are positional.
EVALUATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "videos": ("vrlvr.evaluation.videos.evaluate_videos", ("videos",)),
    "model": ("vrlvr.evaluation.model.evaluate_model", ()),
    "provider": ("vrlvr.evaluation.provider.evaluate_provider", ()),
    "llm": ("vrlvr.evaluation.llm.evaluate_llm", ()),
    "vbvr": ("vrlvr.evaluation.vbvr.evaluate_vbvr", ()),
    "search": ("vrlvr.evaluation.search_attack.evaluate_search", ()),
    "verifiers": ("vrlvr.evaluation.verifiers.evaluate_verifiers", ()),
}
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "data": _data,
    "import": _import,
    "encode": _encode,
    "distill-decoder": _distill_decoder,
    "eval": _eval,
    "table": _table,
    "estimate": _estimate,
    "export": _export,
    "verify": _verify,
}
