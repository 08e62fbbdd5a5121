"""The folder of a run: begun afresh, or gone on with if its options allow it."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from vrlvr import __version__, options
from vrlvr.atomic_write import recover, writing
from vrlvr.config import Config
from vrlvr.distributed import World
from vrlvr.errors import UserError
from vrlvr.verifier_version import verifier_version

# Options, and sections of them, that may differ between the sessions of one run: how it is computed and kept, not what.
_FREE = {"stage", "resume", "run_dir", "init_from", "eval", "engine", "checkpoints_to_keep"}
_FREE |= {"model.attention", "model.recompute", "sft.micro_batch", "grpo.micro_batch", "grpo.rollout_puzzles"}
_FREE |= {"sft.save_every_epochs", "grpo.save_every"}


def open_run(config: Config) -> str | None:
    """Prepares run_dir and writes config.yaml; returns a sentence for the user, if there is something to say.

    A run that starts from scratch moves a former one aside. One that goes on must agree with what was trained: raises
    UserError with the options that differ, or if a stage would be trained over its own checkpoints without --resume auto.
    """
    run_dir, said = Path(config.run_dir), None
    from_scratch = config.resume == "never" and config.stage in ("all", "data")
    try:
        if from_scratch and run_dir.is_dir() and any(run_dir.iterdir()):
            aside = next(p for i in range(1, 10**6) if not (p := run_dir.with_name(f"{run_dir.name}.{i}")).exists())
            run_dir.rename(aside)
            said = f"the former {run_dir} is now {aside}"
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir={run_dir} cannot be used ({error}); choose another one") from error
    if config.stage != "eval":  # which may be while the run is trained on elsewhere
        recover(run_dir / "checkpoints")
    if (run_dir / "config.yaml").exists():
        _check_drift(config, run_dir)
    if config.resume == "never" and (run_dir / "checkpoints" / f"latest-{config.stage}").exists():
        raise UserError(
            f"{run_dir} already holds checkpoints of stage {config.stage}; go on with --resume auto, or choose another "
            f"--run_dir (with --init_from {run_dir} to start from its SFT policy)"
        )
    if config.init_from and not (run_dir / "checkpoints" / "latest-sft").exists():
        _adopt(config, Path(config.init_from), run_dir)
    options.save(config, run_dir / "config.yaml")
    return said


def check_shared(run_dir: Path, world: World) -> None:
    """Raises UserError, on all ranks, if some do not see the folder that `open_run` has prepared."""
    seen = world.gather((run_dir / "config.yaml").exists())
    if blind := [str(rank) for rank, sees in enumerate(seen) if not sees]:
        raise UserError(
            f"run_dir={run_dir} is not there for rank {', '.join(blind)}; name a folder that all nodes share, the same from "
            "every working directory"
        )


def _adopt(config: Config, source: Path, run_dir: Path) -> None:
    """Copies another run's puzzles, codec and SFT policy. Raises UserError if it lacks one, or was made otherwise."""
    codec = ["codec"] if config.model.path is None else []  # a pretrained model has its own
    parts = ["config.yaml", "puzzles", *codec, "checkpoints/sft-final", "checkpoints/latest-sft"]
    if missing := [part for part in parts if not (source / part).exists()]:
        raise UserError(f"init_from={source} lacks {', '.join(missing)}; name a run whose data and SFT are complete")
    former, new = _read_options(source), options.plain(asdict(config))
    if drift := [d for section in ("data", "model") for d in _differences(former.get(section), new[section], section)]:
        raise UserError(f"init_from={source} has other options: {'; '.join(drift)}; use these, or another run")
    with writing(run_dir):
        for part in parts[1:]:
            target = run_dir / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if (source / part).is_dir():
                shutil.copytree(source / part, target, copy_function=_link, dirs_exist_ok=True)
            else:
                shutil.copyfile(source / part, target)


def _link(source: str, target: str) -> None:
    """A second name for a file, which at full size has 70 GB and is never changed in place; a copy on another disk."""
    Path(target).unlink(missing_ok=True)  # of a start that was broken off
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _read_options(run_dir: Path) -> dict[str, Any]:
    """A run's config.yaml. Raises UserError if it is damaged."""
    try:
        return dict(yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{run_dir / 'config.yaml'} is damaged ({type(error).__name__}); restore it, or remove the run"
        ) from error


def _check_drift(config: Config, run_dir: Path) -> None:
    former = _read_options(run_dir)
    for stage in ("sft", "grpo"):
        if not (run_dir / "checkpoints" / f"latest-{stage}").exists():
            former.pop(stage, None)
    new = options.plain(asdict(config))
    drift = [d for section in former for d in _differences(former[section], new.get(section), section)]
    if drift:
        raise UserError(
            f"{run_dir} was trained with other options: {'; '.join(drift)}; use these, or another --run_dir"
        )


def _differences(former: Any, new: Any, name: str) -> Iterator[str]:
    if name in _FREE:
        return
    if isinstance(former, dict) and isinstance(new, dict):
        for key in sorted(former.keys() | new.keys()):
            yield from _differences(former.get(key), new.get(key), f"{name}.{key}")
    elif former != new:
        yield f"{name} was {former}, now {new}"


def facts(config: Config, command: list[str], world_size: int) -> dict[str, Any]:
    """What a reader needs to judge or repeat a run: command, commit, versions, hardware."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": shlex.join(command),
        "processes": world_size,
        "seed": config.seed,
        "vrlvr": __version__,
        "verifier": verifier_version(),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hardware": gpu or f"{os.cpu_count()} CPU cores ({platform.machine()}, {sys.platform})",
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    """The checkout's commit, marked if files differ from it; `unknown` outside a git checkout."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "")
