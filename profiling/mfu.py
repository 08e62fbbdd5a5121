"""How much of the device's matrix rate a pass of the transformer reaches: FLOPs counted over seconds measured.

    python profiling/mfu.py [--size 5b] [--tokens 8190,27280] [--batch 1] [--layers 30] [--models ours,reference] [--out FILE]

The ceiling is a large matrix product on random data, measured in the same run. Counted are the model's own FLOPs (forward 1,
forward and backward 3 passes), so that recomputation lowers the share, as it should. With --layers below the model's, times
are those of the shallower model and so are the FLOPs: nothing is extrapolated.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import torch
from reference_dit import ReferenceWanTransformer
from sizes import SIZES, Size, default_size, random_inputs, random_model
from timing import ceilings, free, median_seconds, peak_gib
from torch import nn

from vrlvr.memory import step_memory
from vrlvr.models.dit import WanTransformer
from vrlvr.models.flops import total_flops
from vrlvr.models.recompute import POLICIES, Policy
from vrlvr_kernels.launch import Implementation

MODELS = ("ours", "reference", "compiled")


def build(name: str, size: Size, device: torch.device) -> nn.Module:
    """ours; the eager reference; or that with torch.compile of its blocks."""
    if name == "ours":
        return random_model(lambda: WanTransformer(size.config), size, device)
    model = random_model(lambda: ReferenceWanTransformer(size.config), size, device)
    if name == "compiled":
        model.compile_blocks(backend="inductor" if device.type == "cuda" else "aot_eager")
    return model


def measure(
    name: str, size: Size, num_tokens: int, batch: int, device: torch.device, repeats: int, peak_tflops: float
) -> list[dict[str, Any]]:
    """A row for the forward without gradients, and one for forward and backward with the least recomputation that fits."""
    latents, timestep, text = random_inputs(size, num_tokens, batch, device)
    rows = []

    def row(what: str, policy: str, passes: int, seconds: float) -> dict[str, Any]:
        flops = total_flops(size.config, num_tokens, size.num_text_tokens, batch, passes)
        tflops = flops / seconds / 1e12
        return {
            "model": name,
            "pass": what,
            "tokens": num_tokens,
            "batch": batch,
            "layers": size.config.num_layers,
            "recompute": policy,
            "ms": seconds * 1000,
            "tflops": tflops,
            "share_of_matmul": tflops / peak_tflops,
            "peak_gib": peak_gib(device),
        }

    model = build(name, size, device)
    free(device)
    with torch.no_grad():
        seconds = median_seconds(lambda: model(latents, timestep, text, 1), device, repeats, warmup=1)
    rows.append(row("forward", "none", 1, seconds))

    def forward_backward() -> None:
        model(latents, timestep, text, 1).square().mean().backward()

    policies: tuple[Policy, ...] = POLICIES if name == "ours" else ("none", "full")
    for policy in policies:
        if isinstance(model, WanTransformer):
            model.recompute = policy
        elif isinstance(model, ReferenceWanTransformer):
            model.checkpointing = policy == "full"
        try:
            seconds = median_seconds(forward_backward, device, repeats, warmup=1)
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
        else:
            predicted = predicted_gib(size, num_tokens, batch, policy, device) if name == "ours" else None
            rows.append(row("forward+backward", policy, 3, seconds) | {"predicted_gib": predicted})
            break
        free(device)  # not before the exception is gone, which holds what did not fit and would count as the next peak
    return rows


def predicted_gib(size: Size, num_tokens: int, batch: int, policy: Policy, device: torch.device) -> float:
    """What `vrlvr.memory` expects of forward and backward, weights and gradients among it; beside it stands the peak."""

    def build(layers: int, recompute: Policy) -> nn.Module:
        model = WanTransformer(replace(size.config, num_layers=layers), recompute=recompute)
        return model.bfloat16() if size.dtype == torch.bfloat16 else model

    inputs = (*random_inputs(size, num_tokens, batch, torch.device("meta")), 1)
    implementation: Implementation = "triton" if device.type == "cuda" else "reference"
    needed = step_memory(build, inputs, size.config.num_layers, policy, implementation)
    return (2 * needed.parameters + needed.activations) / 2**30  # gradients in the weights' type, and no optimizer


def table(rows: list[dict[str, Any]], say: Callable[[str], None] = print) -> None:
    say(
        f"{'model':>10} {'pass':>17} {'tokens':>7} {'layers':>6} {'recompute':>10} {'ms':>9} {'TFLOP/s':>8} "
        f"{'of matmul':>9} {'GiB':>6}"
    )
    for r in rows:
        memory = "-" if r["peak_gib"] is None else f"{r['peak_gib']:.1f}"
        say(
            f"{r['model']:>10} {r['pass']:>17} {r['tokens']:>7} {r['layers']:>6} {r['recompute']:>10} {r['ms']:>9.2f} "
            f"{r['tflops']:>8.3g} {r['share_of_matmul']:>9.1%} {memory:>6}"
        )


def main() -> int:
    device = machine.device()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default=default_size(device))
    parser.add_argument("--tokens", help="tokens a video, comma separated (default: all of the size)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, help="a shallower model")
    parser.add_argument("--models", default="ours", help=f"comma separated, of {', '.join(MODELS)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    if arguments.layers:
        size = replace(size, config=replace(size.config, num_layers=arguments.layers))
    tokens = [int(n) for n in arguments.tokens.split(",")] if arguments.tokens else list(size.latents)
    models = arguments.models.split(",")
    if unknown := [n for n in tokens if n not in size.latents] or [name for name in models if name not in MODELS]:
        known = f"{', '.join(map(str, size.latents))} tokens and the models {', '.join(MODELS)}"
        print(f"mfu: {unknown[0]} is unknown; size {arguments.size} has {known}", file=sys.stderr)
        return 2
    if device.type == "cpu":
        print(
            f"on a CPU, at size {arguments.size}: this shows that the script runs, not what the model reaches on a GPU"
        )
    peak = ceilings(device)
    print(f"matmul {peak['matmul_tflops']:.3g} TFLOP/s ({peak['matmul_dtype']}), copy {peak['copy_gbps']:.4g} GB/s")
    rows = []
    for name in models:
        for num_tokens in tokens:
            rows += measure(name, size, num_tokens, arguments.batch, device, arguments.repeats, peak["matmul_tflops"])
            free(device)
            if arguments.out:  # after each, so that a run that is cut short leaves what it has
                machine.write_json(arguments.out, {"size": arguments.size, "ceilings": peak, "rows": rows})
    table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
