"""The console script: vrlvr train | data | import | encode | distill-decoder | eval | table | estimate | export | verify."""

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from vrlvr import dataset, puzzles
from vrlvr.cli_errors import explain
from vrlvr.errors import UserError
from vrlvr.evaluation.videos import shown_size
from vrlvr.outside.hostile_video import shared_decoder
from vrlvr.outside.sandbox import printable
from vrlvr.puzzles.verdict import reward

USAGE = """usage: vrlvr COMMAND [options]

  train    train a video policy: data, SFT, SDE-GRPO, evaluation (all options of configs/*.yaml)
  data     make puzzle videos:   --out DIR --num_train N --num_test N [--seed S] [--height H] [--width W] ...
  import   puzzles that others made, as a data set for eval: FILE... --format boxoban|numberlink|maze --out DIR ...
  encode   a data set's prompts, first frames and videos by a Wan model's encoders: --data DIR --model DIR --out DIR ...
  distill-decoder
           a small decoder for rewards, learnt from a Wan model's: --model DIR --out DIR [--data DIR] [--steps N] ...
  eval     test a trained run:   --run_dir DIR
           or any system's answers to a data set's test puzzles: eval videos|model|provider|llm|vbvr ...
           or the verifiers themselves: eval verifiers|search ...
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
        print(f"vrlvr: {printable(str(error))}", file=sys.stderr)  # it may hold a name that strangers chose
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
    if arguments and f"eval {arguments[0]}" in CALLED:
        return _call(f"eval {arguments[0]}", arguments[1:])
    if arguments and not arguments[0].startswith("-"):
        systems = [name.removeprefix("eval ") for name in CALLED if name.startswith("eval ")]
        raise UserError(f"eval {arguments[0]} does not exist; use one of {', '.join(systems)}, or eval --run_dir DIR")
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
    parser = _parser("data", dataset.build)
    parser.add_function_arguments(dataset.build, skip={"tasks", "difficulties"}, as_group=False)
    parser.add_argument("--tasks", type=str, default=",".join(puzzles.ROOMS), help="tasks, comma separated")
    options = _parsed(parser, arguments).as_dict()
    dataset.build(**options | {"tasks": options["tasks"].split(",")})
    return 0


def _encode(arguments: Sequence[str]) -> int:
    from vrlvr.encode import SPLITS, encode

    parser = _parser("encode", encode)
    parser.add_function_arguments(encode, skip={"tasks", "splits", "videos"}, as_group=False)
    parser.add_argument("--tasks", type=str | None, default=None, help="tasks, comma separated; all by default")
    parser.add_argument("--splits", type=str, default=",".join(SPLITS), help="splits, comma separated")
    parser.add_argument("--videos", type=str, default="train", help="splits whose videos are encoded; empty for none")
    options = _parsed(parser, arguments).as_dict()
    lists = {name: options[name].split(",") if options[name] else [] for name in ("splits", "videos")}
    encode(**options | lists | {"tasks": options["tasks"].split(",") if options["tasks"] else None})
    return 0


def _estimate(arguments: Sequence[str]) -> int:
    from vrlvr.estimate import run  # imports torch

    return run(arguments)


def _verify(arguments: Sequence[str]) -> int:
    """Judges a video. Exit code 0 if it is solved, 1 if not.

    The PNG beside the puzzle, as `vrlvr data` writes it, tells in which size the board was drawn; videos of another size are
    then fitted as by `vrlvr eval videos`. Without one, the board is taken to be drawn for the video's own size.
    """
    parser = _parser("verify", _verify)
    parser.add_argument("video", type=str, help="an mp4 file of any size")
    parser.add_argument("--puzzle", type=str, required=True, help="the puzzle's JSON, as written by vrlvr data")
    parser.add_argument("--json", action="store_true", help="print the whole verdict as JSON")
    options = _parsed(parser, arguments)
    try:
        puzzle = puzzles.load(Path(options.puzzle))
        drawn = Path(options.puzzle).with_suffix(".png")
        first_frame = puzzles.render_first_frame(puzzle, *shown_size(drawn)) if drawn.is_file() else None
        decoded = shared_decoder().read(Path(options.video), first_frame)
        verdict = puzzles.verify(puzzle, decoded.video_TYXC)
    except ValueError as error:
        raise UserError(str(error)) from error
    dense = reward(verdict, puzzles.DENSE_REWARD[puzzle.task])
    if options.json:
        more = {"reward": dense, "f1": verdict.f1, "fit": decoded.fit}
        print(json.dumps(asdict(verdict) | more, sort_keys=True))
    else:
        why = f", {verdict.broken_rule} at frame {verdict.frame}" if verdict.broken_rule else ""
        fit = f" ({decoded.note})" if decoded.note else ""
        print(f"{'solved' if verdict.solved else 'not solved'}{why}; reward {dense:.3f}, F1 {verdict.f1:.3f}{fit}")
    return 0 if verdict.solved else 1


def _call(command: str, arguments: Sequence[str]) -> int:
    """Calls the function of CALLED with the command line's options, its parameters. Its module is imported only now."""
    path, positional = CALLED[command]
    module, _, name = path.rpartition(".")
    function = getattr(importlib.import_module(module), name)
    parser = _parser(command, function)
    for parameter, number in positional.items():
        parser.add_argument(parameter, type=Path, nargs=number)
    parser.add_function_arguments(function, skip=set(positional), as_group=False)
    function(**_parsed(parser, _with_true(arguments, inspect.signature(function))).as_dict())
    return 0


def _parser(command: str, function: Callable[..., object]) -> ArgumentParser:
    """A parser whose help tells what the function does, in the words of its docstring."""
    return ArgumentParser(prog=f"vrlvr {command}", description=inspect.getdoc(function), exit_on_error=False)


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
        actions = [action for action in parser._actions if action.dest != "help"]
        names = (
            [action.dest for action in actions if bool(action.option_strings) == wanted] for wanted in (True, False)
        )
        raise UserError(explain(str(error), parser.prog.removeprefix("vrlvr "), *names)) from error


# Each a function of this package, and how many values those of its parameters take that are positional.
CALLED: dict[str, tuple[str, dict[str, str | None]]] = {
    "import": ("vrlvr.importing.import_puzzles", {"files": "+"}),
    "distill-decoder": ("vrlvr.distill.distill_decoder", {}),
    "eval videos": ("vrlvr.evaluation.videos.evaluate_videos", {"videos": None}),
    "eval model": ("vrlvr.evaluation.model.evaluate_model", {}),
    "eval provider": ("vrlvr.evaluation.provider.evaluate_provider", {}),
    "eval llm": ("vrlvr.evaluation.llm.evaluate_llm", {}),
    "eval vbvr": ("vrlvr.evaluation.vbvr.evaluate_vbvr", {}),
    "eval search": ("vrlvr.evaluation.search_attack.evaluate_search", {}),
    "eval verifiers": ("vrlvr.evaluation.verifiers.evaluate_verifiers", {}),
    "table": ("vrlvr.evaluation.merge.table", {"results": "*"}),
    "export": ("vrlvr.export.export", {}),
}
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "data": _data,
    "import": partial(_call, "import"),
    "encode": _encode,
    "distill-decoder": partial(_call, "distill-decoder"),
    "eval": _eval,
    "table": partial(_call, "table"),
    "estimate": _estimate,
    "export": partial(_call, "export"),
    "verify": _verify,
}
