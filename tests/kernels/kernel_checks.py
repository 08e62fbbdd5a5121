"""What every kernel test shares: where it runs, how near float64 it must come, and awkward memory layouts."""

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Triton's interpreter truncates when it rounds to bfloat16, so on a CPU kernels are tested in float32 only.
DTYPES = [torch.float32, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float32]
# Largest error against float64, relative to the largest expected value: a few roundings of the stored type.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1.6e-2}


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, factor: float = 1.0) -> None:
    """actual, finite throughout, lies within the tolerance of what was computed in float64. factor: for long sums, say why."""
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    if expected.numel():
        error = (actual.double() - expected.double()).abs().max().item()
        assert error <= factor * TOLERANCE[dtype] * max(expected.double().abs().max().item(), 1e-3)


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32, strided: bool = False) -> Tensor:
    """Normal values, the same on every device. strided: rows lie apart in memory, as a slice of a wider tensor."""
    wide = torch.randn(*shape[:-1], shape[-1] + 24, generator=torch.Generator().manual_seed(seed))
    part = wide.to(dtype).to(DEVICE)[..., 8 : 8 + shape[-1]]
    return part if strided else part.contiguous()
