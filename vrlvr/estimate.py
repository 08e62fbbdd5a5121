"""`vrlvr estimate`: what a configuration takes of memory and time, on any machine, before anything is downloaded or run.

Memory is counted and traced on the meta device (`vrlvr.footprint`); FLOPs are counted (`vrlvr.workload`); seconds follow from
them only where profiling/mfu.py has measured the same transformer on a GPU.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from vrlvr import options
from vrlvr.config import Config, check
from vrlvr.errors import UserError
from vrlvr.footprint import MARGIN, PARTS, Stage, fits, footprints, least_recompute, refusal, zero_stage
from vrlvr.memory import GIB
from vrlvr.meter import Meter
from vrlvr.models.dit import WanConfig
from vrlvr.models.recompute import Policy as RecomputePolicy
from vrlvr.workload import Sizes, backward_passes, row_flops, sizes_of, update_rows

MEASUREMENTS = Path(__file__).parents[1] / "profiling" / "results"
STAGES: tuple[Stage, ...] = ("sft", "grpo")
_MEASURED_SIZE = "5b"  # of profiling/sizes.py: that of WanConfig's defaults
_MOST_SAMPLES = 1024  # rows or samples of a group, beyond which no larger number is looked for


@dataclass(frozen=True)
class Measurement:
    """FLOP/s of a process's GPU: forward alone, and forward with backward (recomputed FLOPs counted as done)."""

    forward: float
    training: float
    source: str


def run(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="vrlvr estimate", description=__doc__, add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--processes", type=int, default=1, help="GPUs, one process each")
    parser.add_argument("--gpu_gib", type=float, default=80.0, help="memory of a GPU")
    parser.add_argument("--model_config", type=Path, help="a transformer's config.json, if model.path is not here")
    parser.add_argument("--measured", type=Path, help="an mfu.json of profiling/mfu.py; by default the newest of a GPU")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-h", "--help", action="store_true", help="print this, and all options of a run")
    try:
        own, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    if own.help:
        parser.print_help()
        rest = ["--help"]
    config = options.parse(rest, prog="vrlvr estimate")
    if own.processes < 1 or not own.gpu_gib > 0:
        raise UserError(f"--processes {own.processes} and --gpu_gib {own.gpu_gib:g} must be positive; use 1 and 80")
    check(config, own.processes)
    result = estimate(config, own.processes, own.gpu_gib, own.model_config, own.measured)
    print(json.dumps(result, indent=1) if own.json else table(result))
    return 0


def estimate(
    config: Config,
    processes: int = 1,
    gpu_gib: float = 80.0,
    model_config: Path | None = None,
    measured: Path | None = None,
) -> dict[str, Any]:
    """What `table` shows. Bytes and FLOPs are those of a process and of all processes, see the keys' names.

    Raises UserError for options that do not fit together, or files that are no such thing.
    """
    sizes = sizes_of(config, model_config)
    measurement = find_measurement(sizes.dit, sizes.num_tokens(config.model.conditioning), measured)
    meter, gpu_bytes = Meter(config, sizes), gpu_gib * GIB
    stages: dict[str, Any] = {}
    for stage in STAGES:
        recompute, phases = least_recompute(config, meter, processes, stage, gpu_bytes)
        stages[stage] = {
            "recompute": recompute,
            "phases": [asdict(phase) | {"total": phase.total} for phase in phases],
            "fits": fits(phases, gpu_bytes),
            "refusal": None if fits(phases, gpu_bytes) else refusal(phases, gpu_bytes),
            "work": work(config, sizes, stage, recompute, processes, measurement),
        }
    return {
        "model": {
            "parameters": meter.weights.total,
            "trained": meter.weights.trained,
            "dtype": config.model.dtype,
            "layers": sizes.dit.num_layers,
            "dim": sizes.dit.dim,
            "tokens": sizes.num_tokens(config.model.conditioning),
            "note": sizes.note,
        },
        "processes": processes,
        "gpu_gib": gpu_gib,
        "usable_gib": (1 - MARGIN) * gpu_gib,
        "zero_stage": zero_stage(config, processes),
        "stages": stages,
        "peak_by_zero_stage": by_zero_stage(config, meter, processes, gpu_bytes),
        "largest": largest(config, meter, processes, gpu_bytes),
        "measurement": measurement.source if measurement else None,
    }


def by_zero_stage(config: Config, meter: Meter, processes: int, gpu_bytes: float) -> list[dict[str, Any]]:
    """The largest phases of a process, in bytes, for every engine that this many processes could use with this model, each with
    the least recomputation that it allows: one that leaves more room may fill more."""
    rows = []
    every_stage: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
    for stage, offload in product(every_stage, (False, True)):
        engine = replace(config.engine, zero_stage=stage, offload=offload)
        other = replace(config, engine=engine)
        refused = (stage == 0 and offload) or (stage == 3 and config.model.lora.rank > 0)  # by vrlvr.engine
        if refused or zero_stage(other, processes) != stage:
            continue
        row: dict[str, Any] = {"zero_stage": stage, "offload": offload}
        row["configured"] = stage == zero_stage(config, processes) and offload == (config.engine.offload and stage > 0)
        for name in STAGES:
            row[f"{name}_recompute"], phases = least_recompute(other, meter, processes, name, gpu_bytes)
            row[name] = max(phase.total for phase in phases)
        rows.append(row)
    return rows


def largest(config: Config, meter: Meter, processes: int, gpu_bytes: float) -> dict[str, int]:
    """The largest sft.batch_size in one pass, grpo.micro_batch and grpo.group_size, each alone, that fit; 0 if none does."""

    # What fits at all does so with full recomputation.
    recompute = "full" if config.model.recompute == "auto" else config.model.recompute

    def fitting(stage: Stage, changed: Callable[[int], Config]) -> Callable[[int], bool]:
        def test(value: int) -> bool:
            return fits(footprints(changed(value), meter, processes, stage, recompute), gpu_bytes)

        return test

    grpo, sft = config.grpo, replace(config.sft, micro_batch=None)
    tests = {
        "sft_batch_size": fitting("sft", lambda n: replace(config, sft=replace(sft, batch_size=n * processes))),
        "micro_batch": fitting("grpo", lambda n: replace(config, grpo=replace(grpo, micro_batch=n))),
        "group_size": fitting("grpo", lambda n: replace(config, grpo=replace(grpo, group_size=n))),
    }
    found = {name: _largest(test) for name, test in tests.items()}
    return found | {"sft_batch_size": processes * found["sft_batch_size"]}


def _largest(fitting: Callable[[int], bool]) -> int:
    """The largest number up to _MOST_SAMPLES that fits, by bisection; 0 if 1 does not."""
    if fitting(_MOST_SAMPLES):
        return _MOST_SAMPLES
    low, high = 0, _MOST_SAMPLES
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fitting(middle) else (low, middle)
    return low


def work(
    config: Config,
    sizes: Sizes,
    stage: Stage,
    recompute: RecomputePolicy,
    processes: int,
    measurement: Measurement | None,
) -> dict[str, Any]:
    """Of an SFT step or a GRPO update, all processes together; decoding and judging are not part of it.

    forwards: FLOPs in units of one forward of one row. seconds: with all processes busy, None without a measurement.
    """
    training = 1 + backward_passes(config, sizes) + (1 if recompute == "full" else 0)
    if stage == "sft":
        samples, rollout, trained = config.sft.batch_size, 0, config.sft.batch_size
        times = config.sft.max_steps
    else:
        rows, times = update_rows(config), config.grpo.updates
        samples, rollout, trained = rows.samples, rows.rollout + rows.reference, rows.trained
    flops = row_flops(config, sizes)
    seconds = None
    if measurement:
        seconds = flops / processes * (rollout / measurement.forward + training * trained / measurement.training)
    return {
        "samples": samples,
        "rows_without_gradient": rollout,
        "rows_trained": trained,
        "forwards": rollout + training * trained,
        "forwards_per_sample": (rollout + training * trained) / samples,
        "flops": flops * (rollout + training * trained),
        "seconds": seconds,
        "times": times,
    }


def find_measurement(dit: WanConfig, num_tokens: int, path: Path | None) -> Measurement | None:
    """From `path`, or else from the newest file in the checkout's results that holds this transformer on a GPU, of any depth.

    The rows nearest in tokens count. Raises UserError if `path` was given and is of no use.
    """
    if replace(dit, num_layers=WanConfig().num_layers) != WanConfig():
        if path:
            raise UserError(f"{path} was measured on Wan2.2-TI2V-5B's sizes, not on this model's; leave --measured out")
        return None
    paths = [path] if path else sorted(MEASUREMENTS.glob("*/mfu.json"), reverse=True)
    for candidate in paths:
        try:
            result = json.loads(candidate.read_text(encoding="utf-8"))
            machine, rows = result["machine"], [row for row in result["rows"] if row["model"] == "ours"]
            usable = machine["cuda"] is not None and result["size"] == _MEASURED_SIZE
            passes = {what: [r for r in rows if r["pass"] == what] for what in ("forward", "forward+backward")}
            if usable and all(passes.values()):
                return _measurement(
                    passes, num_tokens, f"{candidate.name} of {candidate.parent.name}, {machine['device']}"
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{candidate} is no result of profiling/mfu.py ({error!r}); measure anew") from error
    if path:
        raise UserError(
            f"{path} has no GPU's rows of our transformer at size {_MEASURED_SIZE}; run profiling/mfu.py on one"
        )
    return None


def _measurement(passes: dict[str, list[dict[str, Any]]], num_tokens: int, source: str) -> Measurement:
    def nearest(row: dict[str, Any]) -> float:
        return abs(math.log(row["tokens"] / num_tokens))

    forward, training = (min(rows, key=nearest) for rows in passes.values())
    done = 4 / 3 if training["recompute"] == "full" else 1.0  # the file counts the model's own FLOPs, three passes
    return Measurement(
        forward=forward["tflops"] * 1e12,
        training=training["tflops"] * 1e12 * done,
        source=f"{source}, {training['tokens']:,} tokens, recompute {training['recompute']}",
    )


def table(result: dict[str, Any]) -> str:
    """For people."""
    model, usable = result["model"], result["usable_gib"]
    share = model["trained"] / model["parameters"]
    lines = [
        *([model["note"]] if model["note"] else []),
        f"{_count(model['parameters'])} parameters, {_count(model['trained'])} trained ({share:.1%}), {model['dtype']}, "
        f"{model['layers']} layers of {model['dim']}, {model['tokens']:,} tokens a video",
        f"{result['processes']} process{'es' if result['processes'] > 1 else ''}, ZeRO stage {result['zero_stage']}, "
        f"{result['gpu_gib']:g} GiB a GPU, of which {usable:.1f} are filled at most",
        "",
        f"GiB of a process at the peak of {'':<2}{'rows':>6} " + " ".join(f"{name:>11}" for name in (*PARTS, "total")),
    ]
    for stage in result["stages"].values():
        for phase in stage["phases"]:
            cells = " ".join(f"{_gib(phase[name]):>11}" for name in (*PARTS, "total"))
            over = "" if phase["total"] <= usable * GIB else "  does not fit"
            lines.append(f"{phase['phase']:<30}{phase['rows']:>6} {cells}{over}")
    lines += ["", f"{'peak GiB by engine, and recompute':<36}{'sft':>18} {'grpo':>18}"]
    for row in result["peak_by_zero_stage"]:
        name = f"ZeRO stage {row['zero_stage']}" if row["zero_stage"] else "plain"
        peaks = " ".join(f"{_gib(row[stage]):>8} {row[f'{stage}_recompute']:>9}" for stage in STAGES)
        mark = "  (this run)" if row["configured"] else ""
        lines.append(f"{name + (', optimizer on the CPU' if row['offload'] else ''):<36}{peaks}{mark}")
    big = result["largest"]
    lines += [
        "",
        f"largest that fits, each alone: sft.batch_size (one pass) {_most(big['sft_batch_size'])}, grpo.micro_batch "
        f"{_most(big['micro_batch'])}, grpo.group_size {_most(big['group_size'])}",
        "",
    ]
    for name, unit in (("sft", "step"), ("grpo", "update")):
        stage = result["stages"][name]
        done = stage["work"]
        lines.append(
            f"{name} {unit}: {done['samples']} samples, {done['forwards']:,.0f} DiT forwards "
            f"({done['forwards_per_sample']:.1f} a sample), {done['flops']:.3g} FLOP, recompute {stage['recompute']}"
            f"{_time(done)}"
        )
    if result["measurement"]:
        lines.append(
            f"seconds: counted FLOPs at the rates of {result['measurement']}; decoding and judging not included"
        )
    else:
        lines.append("seconds: no measurement of this transformer on a GPU is at hand (profiling/mfu.py makes one)")
    lines.append("")
    for name, stage in result["stages"].items():
        lines.append(f"{name} fits" if stage["fits"] else f"{name} does not fit: {stage['refusal']}")
    return "\n".join(lines)


def _count(number: int) -> str:
    return f"{number / 1e9:.3f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _gib(number: int) -> str:
    return f"{number / GIB:.1f}" if number >= GIB or number == 0 else f"{number / GIB:.3f}"


def _most(number: int) -> str:
    if number == 0:
        return "none"
    return f"{number} or more" if number >= _MOST_SAMPLES else str(number)


def _time(done: dict[str, Any]) -> str:
    if done["seconds"] is None:
        return ""
    return f", {done['seconds']:.3g} s, {done['times']} of them {done['seconds'] * done['times'] / 3600:.2g} h"
