"""Philox4x32-10 against Random123's known answers; the noise against float64, its promises, and itself on Triton."""

import math

import pytest
import torch
from kernel_checks import DEVICE
from torch import Tensor

from vrlvr_kernels import philox
from vrlvr_kernels.launch import implementation
from vrlvr_kernels.optional_triton import tl, triton
from vrlvr_kernels.philox import normal, normal_op, normal_reference, philox_4x32_reference

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
# The kat_vectors file of Random123 (Salmon et al., SC'11), `philox4x32 10`: counter, key, answer.
KNOWN_ANSWERS = [
    ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI[:4], PI[4:], (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
# Words where a branch, a sign or a rounding changes.
EDGES = [n + d for n in (0, 2**24, 2**29, 2**30, 2**31, 3 * 2**30, 0xB504F300, 2**32) for d in (-1, 0, 1)]
EDGES = [word for word in EDGES if 0 <= word < 2**32]


@triton.jit
def philox_kernel(words, out):
    """words: int64 counter and key."""
    c0, c1, c2 = tl.load(words).to(tl.uint32), tl.load(words + 1).to(tl.uint32), tl.load(words + 2).to(tl.uint32)
    c3, k0, k1 = tl.load(words + 3).to(tl.uint32), tl.load(words + 4).to(tl.uint32), tl.load(words + 5).to(tl.uint32)
    c0, c1, c2, c3 = philox.philox_4x32(c0, c1, c2, c3, k0, k1)
    tl.store(out, c0.to(tl.int64))
    tl.store(out + 1, c1.to(tl.int64))
    tl.store(out + 2, c2.to(tl.int64))
    tl.store(out + 3, c3.to(tl.int64))


@triton.jit
def box_muller_kernel(radius_words, angle_words, out, N: tl.constexpr):
    i = tl.arange(0, N)
    radius, angle = tl.load(radius_words + i).to(tl.uint32), tl.load(angle_words + i).to(tl.uint32)
    first, second = philox._box_muller(radius, angle)
    tl.store(out + i, first)
    tl.store(out + N + i, second)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    words = philox_4x32_reference(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in words) == answer
    out = torch.empty(4, dtype=torch.int64, device=DEVICE)
    philox_kernel[(1,)](torch.tensor([*counter, *key], device=DEVICE), out)
    assert tuple(out.tolist()) == answer


def bits(x: Tensor) -> Tensor:
    return x.cpu().view(torch.int32)


def noise(samples: list[int], numel: int = 10, seed: int = 3, stream: int = 1, step: int = 2) -> Tensor:
    return normal(seed, stream, torch.tensor(samples, device=DEVICE), step, numel)


def box_muller_64(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In float64: r cos, r sin and r."""
    r = (-2 * ((radius_word.double() + 0.5) * 2.0**-32).log()).sqrt()
    angle = 2 * math.pi * angle_word.double() * 2.0**-32
    return r * angle.cos(), r * angle.sin(), r


def test_a_million_values_have_the_same_bits_in_triton_and_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(philox, "BLOCK", 2**17 if DEVICE.type == "cpu" else philox.BLOCK)  # few programs to interpret
    samples_B = torch.arange(8) + 2**32 - 8
    arguments = 2**63 + 12345678901, 7, samples_B, 5, 2**17 + 3
    expected = normal_reference(*arguments)
    assert expected.numel() > 1e6
    found = normal(2**63 + 12345678901, 7, samples_B.to(DEVICE), 5, 2**17 + 3)
    assert torch.equal(bits(found), bits(expected))


def test_edges_have_the_same_bits_in_triton_and_pytorch() -> None:
    radius, angle = (word.flatten() for word in torch.meshgrid(torch.tensor(EDGES), torch.tensor(EDGES), indexing="ij"))
    radius, angle = (torch.nn.functional.pad(word, (0, 512 - len(word))) for word in (radius, angle))
    out = torch.empty(2, 512, device=DEVICE)
    box_muller_kernel[(1,)](radius.to(DEVICE), angle.to(DEVICE), out, 512, enable_fp_fusion=False)
    found = philox._box_muller_reference(radius, angle)
    assert torch.equal(bits(out), bits(torch.stack(found)))
    *expected, r = box_muller_64(radius, angle)
    for value, target in zip(found, expected, strict=True):
        assert ((value.double() - target).abs() <= 4e-7 * r.clamp(min=1)).all()
        assert (value.double().abs() <= r * (1 + 4e-7)).all()  # small radii keep their digits


def test_error_against_float64() -> None:
    words = torch.randint(0, 2**32, (2, 2**20), generator=torch.Generator().manual_seed(0))
    found = philox._box_muller_reference(*words)
    *expected, r = box_muller_64(*words)
    for value, target in zip(found, expected, strict=True):
        assert ((value.double() - target).abs() <= 4e-7 * r.clamp(min=1)).all()


def test_the_largest_radius_is_that_of_the_lowest_word() -> None:
    values, _ = philox._box_muller_reference(torch.tensor([0]), torch.tensor([0]))
    assert values.item() == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-6)


def test_the_noise_of_a_sample_does_not_depend_on_its_batch_or_its_size() -> None:
    samples = (5, 0, 9, 2**32 - 1)
    together = noise(list(samples), numel=11)
    assert together.dtype == torch.float32
    for row, sample in zip(together, samples, strict=True):
        assert torch.equal(noise([sample], numel=11)[0], row)
        assert torch.equal(noise([sample], numel=7)[0], row[:7])


def test_blocks_join_without_a_seam() -> None:
    whole = noise([1], numel=2 * philox.BLOCK + 1)
    assert torch.equal(noise([1], numel=philox.BLOCK + 6)[0], whole[0, : philox.BLOCK + 6])
    assert len(whole.unique()) == whole.numel()


@pytest.mark.parametrize("numel", [0, 1, 3, 4, 5, 1023])
def test_odd_sizes(numel: int) -> None:
    found = noise([0, 1, 2], numel)
    assert found.shape == (3, numel)
    assert torch.equal(bits(found), bits(normal_reference(3, 1, torch.arange(3), 2, numel)))


def test_seed_stream_sample_and_step_all_matter() -> None:
    variants = [
        noise([0]),
        noise([1]),
        noise([0], step=3),
        noise([0], stream=2),
        noise([0], seed=4),
        noise([0], seed=3 + 2**32),
        noise([0], seed=2**64 - 1),
    ]
    values = torch.cat(variants).flatten()
    assert len(values.unique()) == len(values)


def test_moments_are_those_of_independent_normals() -> None:
    with implementation("reference"):
        x = noise(list(range(64)), numel=4096).double()  # 2**18 draws: a standard error of 0.002 on the mean
    assert x.mean().abs() < 0.008
    assert (x.var() - 1).abs() < 0.012
    assert x.pow(3).mean().abs() < 0.03
    assert (x.pow(4).mean() - 3).abs() < 0.08
    for shift in (1, 2, 4):
        assert (x[:, shift:] * x[:, :-shift]).mean().abs() < 0.008
    assert (x[1:] * x[:-1]).mean().abs() < 0.008
    below = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64, device=x.device)
    share = (x.flatten()[:, None] < below).double().mean(0)
    torch.testing.assert_close(share, torch.special.ndtr(below), rtol=0, atol=0.004)


def test_tails_are_those_of_a_normal() -> None:
    with implementation("reference"):
        x = noise(list(range(64)), numel=2**16).double()  # 2**22 draws
    for bound in (2.5, 3.0, 3.5, 4.0, 4.5):
        expected = x.numel() * torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64)).item()
        for tail in (x > bound, x < -bound):
            assert abs(tail.sum().item() - expected) < 4 * math.sqrt(expected)


def test_custom_op() -> None:
    torch.library.opcheck(normal_op, (3, 1, torch.arange(3, device=DEVICE), 2, 9))


def test_survives_compile() -> None:
    samples_B = torch.arange(3, device=DEVICE)
    compiled = torch.compile(normal, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(2**64 - 5, 1, samples_B, 2, 9), normal(2**64 - 5, 1, samples_B, 2, 9))
