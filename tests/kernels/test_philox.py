"""Philox4x32-10 against Random123's known answers; the noise against its promises."""

import pytest
import torch
from torch import Tensor

from vrlvr_kernels.philox import normal_reference, philox_4x32_reference

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)


# The kat_vectors file of Random123 (Salmon et al., SC'11), `philox4x32 10`.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI[:4], PI[4:], (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    words = philox_4x32_reference(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in words) == answer


def noise(samples: list[int], numel: int = 10, seed: int = 3, stream: int = 1, step: int = 2) -> Tensor:
    return normal_reference(seed, stream, torch.tensor(samples), step, numel)


def test_the_noise_of_a_sample_does_not_depend_on_its_batch_or_its_size() -> None:
    together = noise([5, 0, 9, 2**32 - 1], numel=11)
    assert together.dtype == torch.float32
    for row, sample in zip(together, (5, 0, 9, 2**32 - 1), strict=True):
        torch.testing.assert_close(noise([sample], numel=11)[0], row, rtol=0, atol=0)
        torch.testing.assert_close(noise([sample], numel=7)[0], row[:7], rtol=0, atol=0)


@pytest.mark.parametrize("numel", [0, 1, 3, 4, 5, 1023])
def test_odd_sizes(numel: int) -> None:
    assert noise([0, 1, 2], numel).shape == (3, numel)


def test_seed_stream_sample_and_step_all_matter() -> None:
    variants = [
        noise([0]),
        noise([1]),
        noise([0], step=3),
        noise([0], stream=2),
        noise([0], seed=4),
        noise([0], seed=3 + 2**32),
    ]
    values = torch.cat(variants).flatten()
    assert len(values.unique()) == len(values)


def test_moments_are_those_of_independent_normals() -> None:
    x = noise(list(range(64)), numel=4096).double()  # 2**18 draws: a standard error of 0.002 on the mean
    assert x.mean().abs() < 0.008
    assert (x.var() - 1).abs() < 0.012
    assert x.pow(3).mean().abs() < 0.03
    assert (x.pow(4).mean() - 3).abs() < 0.08
    for shift in (1, 2, 4):
        assert (x[:, shift:] * x[:, :-shift]).mean().abs() < 0.008
    assert (x[1:] * x[:-1]).mean().abs() < 0.008
    below = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    share = (x.flatten()[:, None] < below).double().mean(0)
    torch.testing.assert_close(share, torch.special.ndtr(below), rtol=0, atol=0.004)
