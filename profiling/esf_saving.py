"""Where the time of a GRPO update goes, and which lever saves how much: a waterfall from the published way to ours.

    python profiling/esf_saving.py [--size tiny|5b] [--group_size 4] [--num_steps 20] [--probe_steps 2] [--out DIR]

All on the same model sizes, samples and denoising steps, with random weights and synthetic rewards; the decoding and judging
of videos is not part of it. First our transformer and the reference's are compared on equal weights; nothing is timed if they
differ. Then windows of Early-Step Focus against full-step training, and the levers, each on top of the last.

Unless --probe_steps 0, a few steps are timed and multiplied by the rows of the update (update_bench.py): the JSON says so.
Beside the seconds stand DiT forwards a sample, as counted and as measured (seconds over those of one row of the rollout).
Writes esf_saving.json after every row, esf_saving.md, and esf_saving.png where matplotlib is installed.
"""

import argparse
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import torch
from reference_dit import ReferenceWanTransformer
from sizes import SIZES, default_layers, default_size, random_inputs, random_model
from timing import free
from torch import nn
from update_bench import PHASES, Probe, Problem, Recipe, first_steps, probe, whole_update

from vrlvr.errors import UserError
from vrlvr.models.dit import WanTransformer

# Largest relative difference of velocity and gradients between ours and the reference, on equal weights.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}

OURS = "our transformer and kernels"


def recipes(num_steps: int, rows: int) -> list[tuple[str, str, Recipe]]:
    """(group, name, recipe) in order. Groups: baseline, window (only that differs), lever (on top of the one before).

    rows: of a full micro-batch.
    """
    full, half = num_steps - 1, num_steps // 2
    table = [
        ("baseline", "reference: full-step, eager, full checkpointing", Recipe(model="reference", trained_steps=full)),
        (
            "baseline",
            "peers: torch.compile, 60 % of the steps, fused RMSNorm, full checkpointing",
            Recipe(model="compiled", trained_steps=round(0.6 * num_steps), sde_steps=full),
        ),
        ("lever", OURS, Recipe(trained_steps=full)),
    ]
    windows = sorted({max(1, num_steps // 10), max(1, num_steps // 4)} - {half})
    table += [("window", f"window of {window} of {num_steps}", Recipe(trained_steps=window)) for window in windows]
    recipe = table[2][2]
    for name, change in (
        (f"+ Early-Step Focus, {half} of {num_steps}", {"trained_steps": half}),
        ("+ least recomputation that fits", {"recompute": "auto"}),
        ("+ text keys and values made once", {"cached_text": True}),
        ("+ step 0 shared in a group", {"shared_noise": True}),
        (f"+ micro-batches of {rows} rows of any step", {"rows": rows}),
        ("+ CUDA graphs in the rollout", {"graphs": True}),
        (f"+ ODE tail in {max(1, half // 2)} steps (other samples)", {"tail_steps": max(1, half // 2)}),
        ("+ half of the samples trained (other gradient)", {"keep_fraction": 0.5}),
    ):
        recipe = replace(recipe, **change)
        table.append(("lever", name, recipe))
    return table


def agreement(problem: Problem, device: torch.device) -> dict[str, float]:
    """Relative differences between our transformer and the reference's on equal weights: velocity, and all gradients.

    Raises UserError if one is larger than the tolerance: what is not the same is not worth timing.
    """
    size = problem.size
    ours: nn.Module = random_model(lambda: WanTransformer(size.config, recompute="full"), size, device)
    reference = random_model(lambda: ReferenceWanTransformer(size.config, checkpointing=True), size, device)
    reference.load_state_dict(ours.state_dict(), strict=True)
    inputs = random_inputs(size, problem.num_tokens, 1, device)
    probe = torch.randn(inputs[0].shape, generator=torch.Generator(device).manual_seed(2), device=device)
    velocities = []
    for model in (ours, reference):
        velocity = model(*inputs, 1)
        (velocity * probe).sum().backward()
        velocities.append(velocity.detach())
    of_reference = dict(reference.named_parameters())
    difference = expected = 0.0
    for name, parameter in ours.named_parameters():
        grad, theirs = parameter.grad, of_reference[name].grad
        assert grad is not None
        assert theirs is not None
        difference += (grad.float() - theirs.float()).square().sum().item()
        expected += theirs.float().square().sum().item()
    result = {
        "velocity_error": ((velocities[0] - velocities[1]).norm() / velocities[1].norm()).item(),
        "gradient_error": (difference / expected) ** 0.5,
        "tolerance": TOLERANCE[size.dtype],
    }
    if not max(result["velocity_error"], result["gradient_error"]) <= result["tolerance"]:
        raise UserError(f"ours and the reference differ: {result}; nothing is timed before they agree")
    return result


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of seconds to the baselines, of all levers and of the fastest exact recipe; and the saving of the window alone."""
    timed = [row for row in rows if "seconds" in row]
    levers = [row for row in timed if row["group"] == "lever"]
    full = next((row for row in levers if row["name"] == OURS), None)
    result: dict[str, Any] = {}
    if levers:
        exact = min((row for row in levers if "(other" not in row["name"]), key=lambda row: row["seconds"])
        result["fastest_exact_recipe"] = exact["name"]
        for base in (row for row in timed if row["group"] == "baseline"):
            key = f"times_faster_than_{base['name'].split(':')[0]}"
            result[f"{key}_all_levers"] = base["seconds"] / levers[-1]["seconds"]
            result[f"{key}_exact"] = base["seconds"] / exact["seconds"]
    for row in timed:
        window = row["recipe"]["trained_steps"]
        if full and row is not full and row["recipe"] == full["recipe"] | {"trained_steps": window}:
            result[f"saved_by_window_{window}"] = 1 - row["seconds"] / full["seconds"]
    return result


def markdown(rows: list[dict[str, Any]]) -> str:
    """The waterfall as a table."""
    lines = [
        "| | s/update | rollout | replay | optimizer | forward ms | units counted | measured | recompute | GiB | kJ |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "seconds" not in row:
            lines.append(f"| {row['name']} | {row['problem']} | | | | | | | | | |")
            continue
        memory = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        energy = "" if row["joules"] is None else f"{row['joules'] / 1000:.1f}"
        phases = " | ".join(f"{row[f'seconds_{name}']:.3g}" for name in PHASES)
        lines.append(
            f"| {row['name']} | {row['seconds']:.3g} | {phases} | {row['forward_ms']:.4g} | {row['units_predicted']:.1f} "
            f"| {row['units_measured']:.1f} | {row['recompute']} | {memory} | {energy} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Stacked bars, a recipe each. Says so and returns where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: install matplotlib (pip install -e '.[profiling]')")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if "seconds" in row]
    figure, axes = pyplot.subplots(figsize=(10, 0.45 * len(rows) + 1.5), layout="constrained")
    left = [0.0] * len(rows)
    for name, colour in zip(PHASES, ("#4c78a8", "#f58518", "#54a24b"), strict=True):
        widths = [row[f"seconds_{name}"] for row in rows]
        axes.barh(range(len(rows)), widths, left=left, label=name, color=colour)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, (row, end) in enumerate(zip(rows, left, strict=True)):
        axes.text(end, place, f" {row['seconds']:.3g} s", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds per GRPO update")
    axes.margins(x=0.1, y=0.02)
    axes.set_title(title, fontsize=9)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def whole_updates(
    problem: Problem,
    rows: int,
    probes: dict[Recipe, Probe],
    num_steps: int,
    device: torch.device,
    seconds_left: float = math.inf,
) -> dict[str, Any] | None:
    """Full-step training and Early-Step Focus once more, every step of one update of two samples, nothing extrapolated.

    saved: 1 - the ratio of their seconds. extrapolation_error: of the seconds that the probes foretell for these updates.
    None where memory did not suffice for their probe, or where they would take longer than seconds_left.
    """
    problem = replace(problem, puzzles=1, group_size=2)
    levers = [recipe for group, _, recipe in recipes(problem.num_steps, rows) if group == "lever"]
    both = {"full_step": levers[0], "esf": levers[1]}
    foretold = {
        name: whole_update(recipe, problem, probes[start])["seconds"]
        for name, recipe in both.items()
        if (start := first_steps(recipe, num_steps)) in probes
    }
    if len(foretold) < len(both) or sum(foretold.values()) > seconds_left:
        print("whole updates: left out, for want of memory or time", flush=True)
        return None
    result: dict[str, Any] = {"samples": problem.num_samples}
    for name, recipe in both.items():
        seconds = sum(probe(recipe, problem, device, None, repeats=1, warmup=False).seconds.values())
        result[f"seconds_{name}"], result[f"extrapolation_error_{name}"] = seconds, foretold[name] / seconds - 1
        free(device)
    result["saved"] = 1 - result["seconds_esf"] / result["seconds_full_step"]
    print(f"whole updates: {result}", flush=True)
    return result


def run(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Measures every recipe, and writes the results after each."""
    size = SIZES[arguments.size]
    if arguments.layers:
        size = replace(size, config=replace(size.config, num_layers=arguments.layers))
    tokens = next(iter(size.latents))
    problem = Problem(size, tokens, arguments.puzzles, arguments.group_size, arguments.num_steps)
    if problem.num_steps < 4 or problem.group_size < 2 or problem.puzzles < 1:
        raise UserError("at least 1 puzzle, a group of 2 and 4 steps are needed for every lever to apply; raise them")
    num_steps = arguments.probe_steps or None
    begin = time.perf_counter()
    agree = agreement(problem, device)
    free(device)
    print(f"ours and the reference agree: {agree}", flush=True)
    head = {
        "size": arguments.size,
        "layers": size.config.num_layers,
        "tokens": tokens,
        "puzzles": problem.puzzles,
        "group_size": problem.group_size,
        "num_steps": problem.num_steps,
        "agreement": agree,
        "note": "random weights and rewards; without decoding, judging and moving averages. "
        + (
            f"{num_steps} denoising steps timed, the update is that times its rows"
            if num_steps
            else "whole updates timed"
        ),
    }
    rows: list[dict[str, Any]] = []
    probes: dict[Recipe, Probe] = {}
    for group, name, recipe in recipes(problem.num_steps, arguments.rows):
        row: dict[str, Any] = {"group": group, "name": name}
        try:
            start = first_steps(recipe, num_steps)
            if start not in probes:
                probes[start] = probe(start, problem, device, num_steps, arguments.repeats)
            row |= whole_update(recipe, problem, probes[start])
        except torch.OutOfMemoryError as error:
            row |= {"problem": str(error).split("\n")[0]}
        rows.append(row)
        free(device)
        told = f"{row['seconds']:8.3f} s/update" if "seconds" in row else row["problem"]
        print(f"[{time.perf_counter() - begin:5.0f} s] {told}  {name}", flush=True)
        machine.write_json(arguments.out / "esf_saving.json", head | {"summary": summary(rows), "rows": rows})
    title = (
        f"{size.config.num_layers} layers, {tokens} tokens x {problem.num_samples} samples, {problem.num_steps} steps, "
        f"{machine.facts()['device']}"
    )
    (arguments.out / "esf_saving.md").write_text(f"{title}\n\n{markdown(rows)}", encoding="utf-8")
    plot(rows, title, arguments.out / "esf_saving.png")
    print(markdown(rows))
    for key, value in summary(rows).items():
        print(f"{key:>40} {value if isinstance(value, str) else format(value, '.3g')}")
    if num_steps:
        left = arguments.seconds - (time.perf_counter() - begin)
        head["whole_updates"] = whole_updates(problem, arguments.rows, probes, num_steps, device, left)
        machine.write_json(arguments.out / "esf_saving.json", head | {"summary": summary(rows), "rows": rows})
    return rows


def main() -> int:
    device = machine.device()
    gpu = device.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default=default_size(device))
    parser.add_argument("--layers", type=int, default=default_layers(device), help="a shallower model")
    parser.add_argument("--puzzles", type=int, default=1)
    parser.add_argument("--group_size", type=int, default=4)
    parser.add_argument("--num_steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=2, help="rows of a full micro-batch")
    parser.add_argument("--probe_steps", type=int, default=2, help="denoising steps that are timed; 0 for all")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="whole updates that would end later are left out"
    )
    parser.add_argument("--out", type=Path, default=Path("profiling/results/esf_saving"), help="folder of the results")
    arguments = parser.parse_args()
    if not gpu:
        print(f"on a CPU, at size {arguments.size}: kernels are their PyTorch references, compiled blocks run eagerly")
    try:
        rows = run(arguments, device)
    except UserError as error:
        print(f"esf_saving: {error}", file=sys.stderr)
        return 2
    return int(any("problem" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
