"""Norm and rotation of queries and keys against their definitions in float64: outputs and every gradient."""

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, assert_near, random
from torch import Tensor, nn

from vrlvr_kernels.launch import implementation
from vrlvr_kernels.qk_norm_rope import backward_op, forward_op, qk_norm_rope, qk_norm_rope_reference

EPS = 1e-6
# Parts and weights as in self-attention (q, k, v), for cross-attention's queries, for its keys and values; and q, k alone.
KINDS = [(3, 2), (1, 1), (2, 1), (2, 2)]
# B, N, H, E: odd sizes, one row, heads padded to a tile, two tiles of which one is partial, a head as wide as a tile.
SHAPES = [(2, 5, 3, 12), (1, 1, 1, 2), (1, 3, 5, 16), (2, 3, 12, 128), (1, 2, 2, 1100)]
# Each is compiled anew on a GPU, for seconds: in half precision only an odd and a full tile.
CASES = [(shape, dtype) for dtype in DTYPES for shape in (SHAPES if dtype == torch.float32 else SHAPES[:4:3])]


def rope_table(N: int, E: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turns by different angles for every token and pair: cosines at even places, sines at odd ones."""
    angle = 3 * random((N, E // 2), 7).double()
    return torch.stack((angle.cos(), angle.sin()), dim=-1).flatten(1).to(dtype)


def defined(packed: Tensor, weights: list[Tensor], rope: Tensor | None, H: int) -> list[Tensor]:
    """From the definition of RMSNorm, and the rotation as diffusers' Wan writes it: by halves of neighbouring pairs."""
    D = len(weights[0])
    parts = list(packed.split(D, -1))
    for i, weight in enumerate(weights):
        parts[i] = parts[i] / (parts[i].square().mean(-1, keepdim=True) + EPS).sqrt() * weight
    heads = [part.unflatten(-1, (H, D // H)) for part in parts]
    if rope is not None:
        cos, sin = rope[:, None, 0::2], rope[:, None, 1::2]
        for i in range(len(weights)):
            first, second = heads[i][..., 0::2], heads[i][..., 1::2]
            turned = torch.empty_like(heads[i])
            turned[..., 0::2] = first * cos - second * sin
            turned[..., 1::2] = first * sin + second * cos
            heads[i] = turned
    return heads


def make(kind: tuple[int, int], B: int, N: int, H: int, E: int, dtype: torch.dtype, strided: bool = False):
    packed = random((B, N, kind[0] * H * E), 1, dtype, strided)
    return packed, [random((H * E,), 2 + i, dtype) for i in range(kind[1])]


def compare(packed: Tensor, weights: list[Tensor], rope: Tensor | None, H: int) -> tuple[Tensor, ...]:
    """`qk_norm_rope` and its gradients, whatever it runs on, against `defined` in float64."""
    inputs = [tensor.detach().requires_grad_() for tensor in (packed, *weights)]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    outs = qk_norm_rope(inputs[0], tuple(inputs[1:]), rope, H, EPS)
    expected = defined(wide[0], wide[1:], None if rope is None else rope.double(), H)
    for out, target in zip(outs, expected, strict=True):
        assert out.dtype == packed.dtype
        assert_near(out, target, packed.dtype)
    upstream = [random(tuple(out.shape), 20 + i, packed.dtype) for i, out in enumerate(outs)]
    found = torch.autograd.grad(outs, inputs, upstream)
    wanted = torch.autograd.grad(expected, wide, [grad.double() for grad in upstream])
    for tensor, actual, target in zip(inputs, found, wanted, strict=True):
        assert actual.dtype == tensor.dtype
        # Differences of sums over a row; where a row has two channels, they nearly cancel.
        assert_near(actual, target, packed.dtype, factor=4)
    return outs


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_outputs_and_gradients(
    shape: tuple[int, int, int, int], kind: tuple[int, int], rotates: bool, dtype: torch.dtype
) -> None:
    B, N, H, E = shape
    outs = compare(*make(kind, B, N, H, E, dtype), rope_table(N, E) if rotates else None, H)
    assert all(out.is_contiguous() for out in outs)
    assert len({out.untyped_storage().data_ptr() for out in outs}) == kind[0]


@pytest.mark.parametrize("kind", KINDS)
def test_strided_input(kind: tuple[int, int]) -> None:
    """Tokens lie apart; weights and the table too; and channels that are not neighbours in memory."""
    packed, weights = make(kind, 2, 5, 2, 8, torch.float32, strided=True)
    rope = random((5, 16), 9)[:, ::2].copy_(rope_table(5, 8))
    assert not packed.is_contiguous()
    compare(packed, [random((32,), 3 + i)[::2] for i in range(len(weights))], rope, 2)
    compare(packed.transpose(1, 2).contiguous().transpose(1, 2), weights, rope, 2)


def test_many_rows() -> None:
    """More rows than programs: each sums its share of the weight gradients."""
    compare(*make((3, 2), 3, 13, 2, 4, torch.float32), rope_table(13, 4), 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_weights(dtype: torch.dtype) -> None:
    packed, weights = make((3, 2), 2, 3, 2, 8, dtype)
    compare(packed, [weight.float() for weight in weights], rope_table(3, 8), 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rotates", [True, False])
def test_reference(kind: tuple[int, int], rotates: bool) -> None:
    """It computes in float64 for float64, rounds bfloat16 once, and has the same gradients."""
    packed, weights = make(kind, 2, 3, 2, 6, torch.float32)
    rope = rope_table(3, 6) if rotates else None
    with implementation("reference"):
        compare(packed, weights, rope, 2)
    wide, halves = (
        [tensor.double() for tensor in (packed, *weights)],
        [tensor.bfloat16() for tensor in (packed, *weights)],
    )
    precise = qk_norm_rope_reference(wide[0], wide[1:], rope, 2, EPS)
    rounded = qk_norm_rope_reference(halves[0], halves[1:], rope, 2, EPS)
    expected = defined(wide[0], wide[1:], None if rope is None else rope.double(), 2)
    expected_of_halves = defined(
        halves[0].double(), [half.double() for half in halves[1:]], None if rope is None else rope.double(), 2
    )
    for actual, target in zip(precise, expected, strict=True):
        assert (actual - target).abs().max() < 1e-14
    for actual, target in zip(rounded, expected_of_halves, strict=True):
        assert actual.dtype == torch.bfloat16
        assert ((actual.double() - target).abs() <= target.abs() * 2**-8 + 1e-6).all()


def test_is_the_rms_norm_of_torch() -> None:
    packed, (weight,) = make((1, 1), 2, 3, 4, 8, torch.float32)
    norm = nn.RMSNorm(32, eps=EPS, device=DEVICE)
    norm.weight.data.copy_(weight)
    (q,) = qk_norm_rope(packed, (norm.weight,), None, 4, EPS)
    assert_near(q.flatten(2), norm(packed).detach().double(), torch.float32)


def test_rotation_keeps_norms_and_depends_on_differences_only() -> None:
    """Each pair keeps its length; turning q and k by the same further angle leaves their products as they were."""
    packed, weights = make((2, 2), 1, 4, 2, 6, torch.float32)
    packed[:] = packed[:, :1].clone()  # the same token everywhere, so that only positions differ
    step = torch.arange(4, device=DEVICE)[:, None] * torch.tensor([0.3, 1.1, 2.0], device=DEVICE)
    rope = torch.stack((step.cos(), step.sin()), dim=-1).flatten(1)
    plain, turned = (qk_norm_rope(packed, tuple(weights), table, 2, EPS) for table in (None, rope))
    for before, after in zip(plain, turned, strict=True):
        lengths = [heads.unflatten(-1, (-1, 2)).norm(dim=-1) for heads in (before, after)]
        assert_near(lengths[1], lengths[0], torch.float32)
    q, k = turned
    products = torch.einsum("nhe,mhe->hnm", q[0].double(), k[0].double())
    assert_near(products[:, 1:, 1:], products[:, :-1, :-1], torch.float32, factor=4)
    assert (products[:, 0, 1] - products[:, 0, 0]).abs().max() > 1e-2


def test_one_gradient_alone() -> None:
    """A loss that reads only q, or only v, gives the other parts the gradient zero."""
    packed, weights = make((3, 2), 1, 3, 2, 4, torch.float32)
    for part in range(3):
        inputs = [tensor.detach().requires_grad_() for tensor in (packed, *weights)]
        wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
        qk_norm_rope(inputs[0], tuple(inputs[1:]), rope_table(3, 4), 2, EPS)[part].square().sum().backward()
        defined(wide[0], wide[1:], rope_table(3, 4).double(), 2)[part].square().sum().backward()
        for tensor, target in zip(inputs, wide, strict=True):
            assert tensor.grad is not None
            assert_near(
                tensor.grad, torch.zeros_like(target) if target.grad is None else target.grad, torch.float32, 16
            )


def test_gradients_in_any_memory_order() -> None:
    """Attention may return gradients that lie as (B, H, N, E)."""
    packed, weights = make((3, 2), 2, 3, 2, 4, torch.float32)
    rope, grads = rope_table(3, 4), [random((2, 3, 2, 4), 30 + i) for i in range(3)]
    apart = [grad.transpose(1, 2).contiguous().transpose(1, 2) for grad in grads]
    for found, expected in zip(
        backward_op(packed, weights, rope, 2, EPS, apart),
        backward_op(packed, weights, rope, 2, EPS, grads),
        strict=True,
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    packed = random((*shape, 24), 1).requires_grad_()
    weights = tuple(random((8,), 2 + i).requires_grad_() for i in range(2))
    outs = qk_norm_rope(packed, weights, rope_table(shape[1], 4), 2, EPS)
    sum(out.sum() for out in outs).backward()
    assert [tuple(out.shape) for out in outs] == [(*shape, 2, 4)] * 3
    assert packed.grad is not None
    assert packed.grad.shape == packed.shape
    for weight in weights:
        assert weight.grad is not None
        assert not weight.grad.any()


def test_rows_do_not_depend_on_their_place() -> None:
    """A video alone, and the same video in a batch, give the same bits: replay and rollout may batch differently."""
    packed, weights = make((3, 2), 3, 4, 2, 8, torch.float32)
    rope = rope_table(4, 8)
    together, alone = (qk_norm_rope(x, tuple(weights), rope, 2, EPS) for x in (packed, packed[1:2]))
    assert all(torch.equal(many[1:2], one) for many, one in zip(together, alone, strict=True))


def test_two_runs_are_bit_equal() -> None:
    packed, weights = make((3, 2), 2, 9, 2, 8, torch.float32)
    rope, grads = rope_table(9, 8), [random((2, 9, 2, 8), 30 + i) for i in range(3)]
    runs = [
        (*forward_op(packed, weights, rope, 2, EPS), *backward_op(packed, weights, rope, 2, EPS, grads))
        for _ in range(2)
    ]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_sizes_that_do_not_fit_are_refused() -> None:
    packed, weight, rope = torch.zeros(1, 2, 24), torch.ones(8), torch.zeros(2, 4)
    for arguments, message in [
        ((packed, (weight, torch.ones(4)), rope, 2), r"\[\(8,\), \(4,\)\] must be one or two of \(8,\)"),
        ((packed, (weight,) * 3, rope, 2), "must be one or two"),
        ((packed, (weight, weight), rope, 3), "num_heads=3 must divide the 8 channels"),
        ((packed, (weight,), rope, 2), "24 packed channels must be 1 or 2 parts of 8"),
        ((packed[..., :20], (weight, weight), rope, 2), "20 packed channels must be 2 or 3 parts of 8"),
        ((packed, (weight, weight), rope[:1], 2), r"rope is torch.float32 \(1, 4\); it must be float32 \(2, 4\)"),
        ((packed, (weight, weight), rope.double(), 2), "rope is torch.float64"),
        ((packed, (weight, weight), torch.zeros(2, 1), 8), "even"),
    ]:
        with pytest.raises(ValueError, match=message):
            qk_norm_rope(*arguments, EPS)


@pytest.mark.parametrize("kind", KINDS)
def test_custom_op(kind: tuple[int, int]) -> None:
    packed, weights = make(kind, 1, 3, 2, 4, torch.float32)
    rope, grads = rope_table(3, 4), [random((1, 3, 2, 4), 30 + i) for i in range(kind[0])]
    torch.library.opcheck(backward_op, (packed, weights, rope, 2, EPS, grads))
    inputs = packed.requires_grad_(), [weight.requires_grad_() for weight in weights]
    torch.library.opcheck(forward_op, (*inputs, rope, 2, EPS))
    torch.library.opcheck(forward_op, (*inputs, None, 2, EPS))


@pytest.mark.parametrize("kind", KINDS)
def test_survives_compile(kind: tuple[int, int]) -> None:
    packed, weights = make(kind, 1, 3, 2, 4, torch.float32)
    inputs = [tensor.requires_grad_() for tensor in (packed, *weights)]

    def loss(packed: Tensor, *weights: Tensor) -> Tensor:
        outs = qk_norm_rope(packed, weights, rope, 2, EPS)
        return torch.stack([(i + 1) * out.square().sum() for i, out in enumerate(outs)]).sum()

    rope = rope_table(3, 4)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(loss(*inputs), inputs)
    for actual, expected in zip(torch.autograd.grad(compiled(*inputs), inputs), eager, strict=True):
        assert torch.equal(actual, expected)
