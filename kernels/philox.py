"""Counter-based Gaussian noise: Philox4x32-10 (Salmon et al., SC'11), then Box-Muller.

The noise of element i of sample s at denoising step k is a pure function of (seed, stream, s, k, i): no generator state to
save or restore, and shards, batch shapes and devices all see the same numbers.
"""

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox_4x32_reference(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds on four int64 tensors that hold unsigned 32-bit words (they broadcast); returns four such tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The 64-bit product wraps to the right bits in int64; the mask undoes the arithmetic shift's sign.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def normal_reference(seed: int, stream: int, samples_B: Tensor, step: int, numel: int) -> Tensor:
    """Standard normal noise, float32 (B, numel).

    seed: run seed, 64 bits. stream: what the noise is for (initial noise, SDE noise, ...). samples_B: int64 global sample
    numbers below 2**32. step: denoising step. The counter is (element // 4, sample, step, stream), the key is the seed.
    """
    device = samples_B.device
    quads = torch.arange(-(-numel // 4), device=device)[None, :]
    words = philox_4x32_reference(
        (
            quads,
            samples_B[:, None],
            torch.tensor(step, device=device),
            torch.tensor(stream, device=device),
        ),
        (seed & _MASK, (seed >> 32) & _MASK),
    )
    u0, u1, u2, u3 = ((word.double() + 0.5) * 2.0**-32 for word in words)  # in (0, 1), never 0
    r0, r1 = (-2 * u0.log()).sqrt(), (-2 * u2.log()).sqrt()
    a0, a1 = 2 * math.pi * u1, 2 * math.pi * u3
    quad = torch.stack((r0 * a0.cos(), r0 * a0.sin(), r1 * a1.cos(), r1 * a1.sin()), dim=-1)
    return quad.flatten(1)[:, :numel].float()
