"""Counter-based Gaussian noise: Philox4x32-10 (Salmon et al., SC'11), then Box-Muller.

The noise of element i of sample s at denoising step k is a pure function of (seed, stream, s, k, i): no generator state to
save or restore, and shards, batch shapes and devices all see the same numbers, to the last bit. For that Box-Muller uses only
what IEEE 754 rounds correctly (float32 sums, products and square roots, conversions of integers), in one fixed order and
never fused, with minimax polynomials of ours for ln, sin and cos in place of a library's. Against exact arithmetic a value
of radius r is within 4e-7 max(1, r).
"""

import math

import torch
from torch import Tensor

from vrlvr_kernels.launch import runs_triton
from vrlvr_kernels.optional_triton import tl, triton

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# Coefficients from the highest power down, each rounded to float32 before the lower ones were fitted.
# -2 ln(1 + f) = f LOG(f) for 1 + f from sqrt(1/2) to sqrt(2), within 1e-7 sqrt(f).
_LOG = (
    0.20365703105926514,
    -0.32620885968208313,
    0.3453187644481659,
    -0.39781126379966736,
    0.4993477165699005,
    -0.6667041182518005,
    1.0000085830688477,
    -2.0,
)
# sin(pi t) = t SIN(t^2) within 8e-9 and cos(pi t) = COS(t^2) within 2e-9, for |t| <= 1/2.
_SIN = (0.07643340528011322, -0.5976253151893616, 2.549957752227783, -5.1677021980285645, 3.141592502593994)
_COS = (
    -0.02396378107368946,
    0.23468375205993652,
    -1.335161566734314,
    4.0587053298950195,
    -4.934802055358887,
    1.0,
)
_MINUS_2_LN_2 = -2 * math.log(2)
_SQRT_HALF_BITS = 0x3F3504F3  # sqrt(1/2) as a float32

# 8 elements a thread, so that it loads and stores 16 bytes of bfloat16 at a time.
BLOCK = 2048
WARPS = 8


# As tensors, since small operations take twice as long with Python numbers.
_LOG_0D, _SIN_0D, _COS_0D = (torch.tensor(c, dtype=torch.float32).unbind() for c in (_LOG, _SIN, _COS))
_HALF_0D, _SCALE_0D, _MINUS_2_LN_2_0D = torch.tensor([0.5, 2.0**-32, _MINUS_2_LN_2], dtype=torch.float32).unbind()
_WORDS_0D = torch.tensor([_MASK, 32, *_MULTIPLIERS]).unbind()


def philox_4x32_reference(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds on four int64 tensors that hold unsigned 32-bit words (they broadcast); returns four such tensors."""
    mask, half, m0, m1 = _WORDS_0D
    keys = torch.tensor([[(k + i * weyl) & _MASK for i in range(10)] for k, weyl in zip(key, _WEYL, strict=True)])
    c0, c1, c2, c3 = counter
    for k0, k1 in zip(*keys.unbind(), strict=True):
        # The 64-bit products wrap to the right bits in int64. Above its low 32 bits a word may hold anything until the mask.
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = ((p1 >> half) ^ c1 ^ k0) & mask, p1, ((p0 >> half) ^ c3 ^ k1) & mask, p0
    return c0, c1 & mask, c2, c3 & mask


def _polynomial_reference(x: Tensor, coefficients: tuple[Tensor, ...]) -> Tensor:
    y = x * coefficients[0]
    for c in coefficients[1:-1]:
        y.add_(c).mul_(x)
    return y.add_(coefficients[-1])


def _box_muller_reference(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent normals, float32, of two int64 words below 2**32.

    r (cos, sin)(2 pi w / 2^32) with r^2 = -2 ln u and u = (word + 1/2) / 2^32, never 0.
    """
    bits = radius_word.float().add_(_HALF_0D).mul_(_SCALE_0D).view(torch.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32).sub_(1)
    # With exponent 0, u - 1 comes from the integer instead: float32(u) has lost the digits of a small radius. As a signed
    # word it is 2^32 lower.
    near_1 = radius_word.int().float().add_(_HALF_0D).mul_(_SCALE_0D)
    f = torch.where(exponent.bool(), f, near_1)
    square = _polynomial_reference(f, _LOG_0D).mul_(f).add_(exponent.float().mul_(_MINUS_2_LN_2_0D))
    radius = square.double().sqrt_().float()  # torch's float32 square root is not correctly rounded on every CPU

    # The angle is a multiple of pi, which only changes the sign, plus pi t.
    word = angle_word.int()
    sign = (word + 2**30) & -(2**31)
    t = (word << 1).float().mul_(_SCALE_0D)
    radius = (radius.view(torch.int32) ^ sign).view(torch.float32)
    t2 = t * t
    cos, sin = _polynomial_reference(t2, _COS_0D), _polynomial_reference(t2, _SIN_0D).mul_(t)
    return cos.mul_(radius), sin.mul_(radius)


def normal_reference(seed: int, stream: int, samples_B: Tensor, step: int, numel: int) -> Tensor:
    """See `normal`."""
    device = samples_B.device
    quads = torch.arange(-(-numel // 4), device=device)[None, :]
    counter = (quads, samples_B[:, None], *(torch.tensor(word, device=device) for word in (step, stream)))
    w0, w1, w2, w3 = philox_4x32_reference(counter, (seed & _MASK, (seed >> 32) & _MASK))
    # Both pairs at once, (B, quads, 2): on a CPU small operations cost their start.
    first, second = _box_muller_reference(torch.stack((w0, w2), -1), torch.stack((w1, w3), -1))
    return torch.stack((first, second), -1).flatten(1)[:, :numel]


# The same for Triton. Launch with enable_fp_fusion=False: a fused multiply-add rounds once where the reference rounds twice.
_M0, _M1, _W0, _W1 = (tl.constexpr(word) for word in (*_MULTIPLIERS, *_WEYL))
_LOG_TERMS, _SIN_TERMS, _COS_TERMS = tl.constexpr(_LOG), tl.constexpr(_SIN), tl.constexpr(_COS)
_LN_SCALE, _SQRT_HALF = tl.constexpr(_MINUS_2_LN_2), tl.constexpr(_SQRT_HALF_BITS)


@triton.jit
def philox_4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds on uint32 words, which broadcast."""
    for _ in tl.static_range(10):
        p0, p1 = c0.to(tl.uint64) * _M0, c2.to(tl.uint64) * _M1
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1, p0.to(tl.uint32)
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def _polynomial(x, coefficients: tl.constexpr, N: tl.constexpr):
    y = x * coefficients[0]
    for i in tl.static_range(1, N - 1):
        y = (y + coefficients[i]) * x
    return y + coefficients[N - 1]


@triton.jit
def exponent_and_fraction(x):
    """x = 2^exponent (1 + fraction) with 1 + fraction from sqrt(1/2) to sqrt(2); x: float32, positive and normal."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF) >> 23
    return exponent, (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0


@triton.jit
def minus_2_log(exponent, fraction):
    """-2 ln(2^exponent (1 + fraction))."""
    return _polynomial(fraction, _LOG_TERMS, 8) * fraction + exponent.to(tl.float32) * _LN_SCALE


@triton.jit
def _box_muller(radius_word, angle_word):
    exponent, f = exponent_and_fraction((radius_word.to(tl.float32) + 0.5) * 2.0**-32)
    near_1 = (radius_word.to(tl.int32, bitcast=True).to(tl.float32) + 0.5) * 2.0**-32
    radius = tl.sqrt_rn(minus_2_log(exponent, tl.where(exponent == 0, near_1, f)))
    sign = (angle_word + 0x40000000) & 0x80000000
    radius = (radius.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    t = (angle_word << 1).to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-32
    t2 = t * t
    return radius * _polynomial(t2, _COS_TERMS, 6), radius * (_polynomial(t2, _SIN_TERMS, 5) * t)


@triton.jit
def normal_4(quad, sample, step, stream, key0, key1):
    """The four normals of a counter: of elements 4 quad to 4 quad + 3. quad: a block; all are words, of any integer type."""
    w0, w1, w2, w3 = philox_4x32(
        quad.to(tl.uint32), tl.cast(sample, tl.uint32), tl.cast(step, tl.uint32), tl.cast(stream, tl.uint32),
        tl.cast(key0, tl.uint32), tl.cast(key1, tl.uint32),
    )  # fmt: skip
    n0, n1 = _box_muller(w0, w1)
    n2, n3 = _box_muller(w2, w3)
    return n0, n1, n2, n3


@triton.jit
def normal_block(block, sample, step, stream, key0, key1, BLOCK: tl.constexpr):
    """Noise of elements block * BLOCK to (block + 1) * BLOCK - 1, neighbours within a thread."""
    quad = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    n0, n1, n2, n3 = normal_4(quad, sample, step, stream, key0, key1)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit(do_not_specialize=["step", "stream", "key0", "key1"])
def _normal_noise(out, samples, numel, step, stream, key0, key1, BLOCK: tl.constexpr):
    """One program BLOCK elements of a sample."""
    row, block = tl.program_id(0), tl.program_id(1)
    noise = normal_block(block, tl.load(samples + row), step, stream, key0, key1, BLOCK)
    element = block * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + row.to(tl.int64) * numel + element, noise, mask=element < numel)


def key_words(seed: int) -> tuple[int, int]:
    """The two words of a 64-bit seed as signed 32-bit integers, whose type a kernel then always knows as int32."""
    return tuple((word & _MASK ^ 2**31) - 2**31 for word in (seed, seed >> 32))  # type: ignore[return-value]


def int64(seed: int) -> int:
    """The same 64 bits as a signed integer, which an op takes."""
    return (seed & (2**64 - 1) ^ 2**63) - 2**63


def _normal(seed: int, stream: int, samples_B: Tensor, step: int, numel: int) -> Tensor:
    out = torch.empty(len(samples_B), numel, dtype=torch.float32, device=samples_B.device)
    if out.numel():
        _normal_noise[(len(samples_B), triton.cdiv(numel, BLOCK))](
            out, samples_B.contiguous(), numel, step, stream, *key_words(seed), BLOCK,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return out


normal_op = torch.library.custom_op("vrlvr::normal", mutates_args=())(_normal)


@normal_op.register_fake
def _(seed, stream, samples_B, step, numel):
    return samples_B.new_empty((len(samples_B), numel), dtype=torch.float32)


def normal(seed: int, stream: int, samples_B: Tensor, step: int, numel: int) -> Tensor:
    """Standard normal noise, float32 (B, numel).

    seed: run seed, 64 bits. stream: what the noise is for (initial noise, SDE noise, ...). samples_B: int64 global sample
    numbers below 2**32. step: denoising step. The counter is (element // 4, sample, step, stream), the key is the seed.
    """
    if not runs_triton(samples_B):
        return normal_reference(seed, stream, samples_B, step, numel)
    return normal_op(int64(seed), stream, samples_B, step, numel)
