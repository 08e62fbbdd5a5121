"""Some GRPO updates in full, for a profiler to watch: warmed up first, then between cudaProfilerStart and -Stop.

    python profiling/one_update.py [--size 5b] [--updates 1] [--num_steps 4] [--window 2]

The phases are NVTX ranges (vrlvr/phases.py). The backward pass runs in the calling thread, so that its kernels lie in their
range. Prints seconds by phase, and joules an update where NVML is at hand; see nsys_update.sh and ncu_kernel.sh.
"""

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import machine
import torch
from power import PowerSampler
from sizes import SIZES, default_layers, default_size
from update_bench import PHASES, Problem, Recipe, Update

from vrlvr.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of the update, for this script and for those that profile it."""
    device = machine.device()
    parser.add_argument("--size", choices=SIZES, default=default_size(device))
    parser.add_argument("--layers", type=int, default=default_layers(device), help="a shallower model")
    parser.add_argument("--puzzles", type=int, default=1)
    parser.add_argument("--group_size", type=int, default=4)
    parser.add_argument("--num_steps", type=int, default=4, help="denoising steps; few, since all look alike")
    parser.add_argument("--window", type=int, default=2, help="steps with noise and gradient")
    parser.add_argument("--rows", type=int, default=1, help="rows of a micro-batch")
    parser.add_argument("--recompute", choices=("auto", "none", "selective", "full"), default="auto")
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs in the rollout")
    parser.add_argument("--updates", type=int, default=1)


def prepare(arguments: argparse.Namespace) -> Update:
    """An update by all exact levers that has run once. Raises UserError for sizes that do not fit together."""
    if not 1 <= arguments.window < arguments.num_steps or arguments.group_size < 2 or arguments.puzzles < 1:
        raise UserError(
            f"--window {arguments.window} must lie below --num_steps {arguments.num_steps}, with at least 1 puzzle and a "
            "group of 2; change them"
        )
    size = SIZES[arguments.size]
    if arguments.layers:
        size = replace(size, config=replace(size.config, num_layers=arguments.layers))
    problem = Problem(size, next(iter(size.latents)), arguments.puzzles, arguments.group_size, arguments.num_steps)
    recipe = Recipe(
        trained_steps=arguments.window,
        recompute=arguments.recompute,
        cached_text=True,
        shared_noise=True,
        rows=arguments.rows,
        graphs=arguments.graphs,
    )
    update = Update(recipe, problem, machine.device())
    update.run()
    return update


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser)
    arguments = parser.parse_args()
    try:
        update = prepare(arguments)
    except UserError as error:
        print(f"one_update: {error}", file=sys.stderr)
        return 2
    watched: AbstractContextManager[object] = nullcontext()
    if update.device.type == "cuda":
        watched = torch.cuda.profiler.profile()
    with watched, torch.autograd.set_multithreading_enabled(False), PowerSampler() as power:
        for number in range(arguments.updates):
            update.run()
            seconds = "  ".join(f"{name} {update.stopwatch.seconds[name]:.3f} s" for name in PHASES)
            print(f"update {number + 1}: {seconds}")
    if power.summary is None:
        print(power.problem or "no power readings: the run was too short")
    else:
        joules = power.summary["joules"] / arguments.updates
        print(f"{joules:.0f} J an update, {power.summary['power_w']:.0f} W, SM {power.summary['sm_clock_mhz']:.0f} MHz")
    return 0


if __name__ == "__main__":
    sys.exit(main())
