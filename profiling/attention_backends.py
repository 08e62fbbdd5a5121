"""Every attention backend that is installed, checked and then timed, forward and backward.

    python profiling/attention_backends.py [--tokens 8190,27280] [--heads 24] [--head_dim 128] [--out FILE.json]

A backend's output and gradients are first compared with float32 arithmetic on one head; one that is off, or not finite, is
reported and not timed. TFLOP/s counts 4 N^2 E a head forward and 2.5 times that backward, as is usual for FlashAttention
(its backward has five products, its forward two).
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import machine
import torch
from timing import ceilings, median_seconds
from torch import Tensor

from vrlvr.models.attention import attend, available, choose

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

# Largest ||difference|| / ||expected|| of output and gradients: a few roundings of the type.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-5}


def random_qkv(
    num_tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the output's gradient, (1, N, H, E) each."""
    generator = torch.Generator(device).manual_seed(num_tokens)
    shape = (1, num_tokens, heads, head_dim)
    q, k, v, grad = torch.randn(4, *shape, generator=generator, device=device).to(dtype).unbind(0)
    return q, k, v, grad


def plain_attention(q_BNHE: Tensor, k_BLHE: Tensor, v_BLHE: Tensor) -> Tensor:
    """The definition, in the inputs' type."""
    q, k, v = (x.transpose(1, 2) for x in (q_BNHE, k_BLHE, v_BLHE))
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return (scores.softmax(-1) @ v).transpose(1, 2)


def with_gradients(attention: Attention, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """The output, and its gradients by q, k and v."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out = attention(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


def largest_error(attention: Attention, inputs: tuple[Tensor, ...]) -> float:
    """The largest relative error of output and gradients on the first head, against float32; NaN if something is."""
    q, k, v, grad = (x[:, :, :1].contiguous() for x in inputs)
    expected = with_gradients(plain_attention, q.float(), k.float(), v.float(), grad.float())
    actual = with_gradients(attention, q, k, v, grad)
    errors = [(a.float() - e).norm() / e.norm() for a, e in zip(actual, expected, strict=True)]
    return torch.stack(errors).max().item()  # max hands a NaN on


def measure(
    backend: str, num_tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, repeats: int
) -> dict[str, Any]:
    """One row; without times where the backend is wrong or fails, and then with the reason."""
    q, k, v, grad = inputs = random_qkv(num_tokens, heads, head_dim, dtype, device)
    row: dict[str, Any] = {"backend": backend, "tokens": num_tokens, "problem": None}
    attention = partial(attend, backend=backend)
    try:
        error = largest_error(attention, inputs)
        if not error <= TOLERANCE[dtype]:
            return row | {"problem": f"off by {error:.2g} from float32, not within {TOLERANCE[dtype]:g}"}
        if not all(bool(x.isfinite().all()) for x in with_gradients(attention, *inputs)):
            return row | {"problem": "output or gradients are not finite"}
        with torch.no_grad():
            forward = median_seconds(lambda: attention(q, k, v), device, repeats)
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attention(*leaves)
        backward = median_seconds(lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True), device, repeats)
    except Exception as failure:  # of code that is not ours: told, and no reason to lose the others' numbers
        return row | {"problem": f"{type(failure).__name__}: {(str(failure).strip().splitlines() or [''])[0]}"}
    flops = 4 * num_tokens**2 * heads * head_dim
    return row | {
        "error": error,
        "forward_ms": forward * 1000,
        "backward_ms": backward * 1000,
        "forward_tflops": flops / forward / 1e12,
        "backward_tflops": 2.5 * flops / backward / 1e12,
    }


def main() -> int:
    device = machine.device()
    gpu = device.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", default="8190,27280" if gpu else "48,96", help="comma separated")
    parser.add_argument("--heads", type=int, default=24 if gpu else 2)
    parser.add_argument("--head_dim", type=int, default=128 if gpu else 32)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    arguments = parser.parse_args()
    dtype = torch.bfloat16 if gpu else torch.float32
    peak = ceilings(device)
    if not gpu:
        print("on a CPU, in float32: this shows that the script runs, not what attention reaches on a GPU")
    print(f"matmul {peak['matmul_tflops']:.3g} TFLOP/s ({peak['matmul_dtype']})")
    print(
        f"{'backend':>10} {'tokens':>7} {'forward ms':>11} {'TFLOP/s':>8} {'backward ms':>12} {'TFLOP/s':>8} {'error':>9}"
    )
    rows = []
    for num_tokens in (int(n) for n in arguments.tokens.split(",")):
        for backend in available(device, dtype, arguments.head_dim):
            if backend == "math" and num_tokens > 10_000:
                continue  # its N^2 scores of all heads would not fit
            row = measure(backend, num_tokens, arguments.heads, arguments.head_dim, dtype, device, arguments.repeats)
            rows.append(row)
            if row["problem"]:
                print(f"{backend:>10} {num_tokens:>7} {row['problem']}")
            else:
                print(
                    f"{backend:>10} {num_tokens:>7} {row['forward_ms']:>11.3f} {row['forward_tflops']:>8.3g} "
                    f"{row['backward_ms']:>12.3f} {row['backward_tflops']:>8.3g} {row['error']:>9.1e}"
                )
    auto = choose("auto", device, dtype, arguments.head_dim)
    print(f"auto is {auto}")
    if arguments.out:
        machine.write_json(
            arguments.out,
            {"heads": arguments.heads, "head_dim": arguments.head_dim, "ceilings": peak, "auto": auto, "rows": rows},
        )
    return int(any(row["problem"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
