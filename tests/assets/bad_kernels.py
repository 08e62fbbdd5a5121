"""One kernel for each thing that the compile gate refuses, and a good one; its argument is `--cases bad_kernels.py`."""

from kernel_cases import Case, bf16, f32, int32

from vrlvr_kernels.optional_triton import tl, triton

BLOCK = 1024


@triton.jit
def good(x, scale, out, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(scale)
    tl.store(out + at, (tl.load(x + at).to(tl.float32) * factor).to(tl.bfloat16))


@triton.jit
def spills(x, out, BLOCK: tl.constexpr):
    """One warp holds the whole row: 512 values a thread."""
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at)
    tl.store(out + at, value - tl.sum(value))


@triton.jit
def narrow(x, shift, out, BLOCK: tl.constexpr):
    """An offset that the compiler knows nothing of: one bfloat16 at a time."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    offset = tl.load(shift)
    tl.store(out + at, tl.load(x + offset + at))


@triton.jit
def local_memory(x, out, BLOCK: tl.constexpr):
    """libdevice's cosine keeps the words of a large argument in an array."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.cos(tl.load(x + at)))


@triton.jit
def atomic(x, out, BLOCK: tl.constexpr):
    tl.atomic_add(out, tl.sum(tl.load(x + tl.arange(0, BLOCK))))


CASES = [
    Case("good", lambda: good[(4,)](bf16(4 * BLOCK), f32(1), bf16(4 * BLOCK), BLOCK), {"scale": "one value"}),
    Case("unlisted", lambda: good[(4,)](bf16(4 * BLOCK), f32(1), bf16(4 * BLOCK), BLOCK)),
    Case("spills", lambda: spills[(1,)](f32(16 * BLOCK), f32(16 * BLOCK), 16 * BLOCK, num_warps=1)),
    Case("narrow", lambda: narrow[(1,)](bf16(2 * BLOCK), int32(1), bf16(BLOCK), BLOCK), {"shift": "one value"}),
    Case("local_memory", lambda: local_memory[(1,)](f32(BLOCK), f32(BLOCK), BLOCK)),
    Case("atomic", lambda: atomic[(1,)](f32(BLOCK), f32(1), BLOCK)),
]
