"""Recomputation policies: the same results bit for bit, what runs twice, what is kept."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from vrlvr.memory import LiveBytes
from vrlvr.models.attention import attend
from vrlvr.models.recompute import POLICIES, Policy, is_kept, run


class SmallBlock(nn.Module):
    """The kinds of operations of a transformer block, in their order; two inputs, two outputs."""

    def __init__(self, dim: int = 32, num_heads: int = 2) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.gate = nn.Parameter(torch.rand(dim))

    def forward(self, x_BND: Tensor, text_BLD: Tensor) -> tuple[Tensor, Tensor]:
        h = functional.layer_norm(x_BND, x_BND.shape[-1:])
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in self.qkv(h).chunk(3, dim=-1))
        x_BND = x_BND + self.gate * self.out(attend(q.cos(), k.cos(), v, "flash").flatten(2))
        scores_BNL = torch.bmm(functional.layer_norm(x_BND, x_BND.shape[-1:]), text_BLD.transpose(1, 2))
        x_BND = x_BND + self.gate * torch.bmm(scores_BNL.sigmoid(), text_BLD)
        update_BND = self.ffn(functional.layer_norm(x_BND, x_BND.shape[-1:]))
        return x_BND + self.gate * update_BND, update_BND.sin()


FORWARD_KERNELS = ("addmm", "bmm", "_scaled_dot_product_flash_attention_for_cpu", "native_layer_norm", "gelu", "cos")


class Calls(TorchDispatchMode):
    """How often each operator runs; what a cached output answers is not run."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func._schema.name.partition("::")[2]] += 1
        return func(*args, **(kwargs or {}))


def network_and_inputs() -> tuple[nn.ModuleList, list[Tensor]]:
    torch.manual_seed(0)
    blocks = nn.ModuleList([SmallBlock(), SmallBlock()])
    return blocks, [torch.randn(2, 24, 32, requires_grad=True), torch.randn(2, 5, 32, requires_grad=True)]


def forward(blocks: nn.ModuleList, inputs: list[Tensor], policy: Policy) -> Tensor:
    x_BND, text_BLD = inputs
    for block in blocks:
        x_BND, update_BND = run(block, x_BND, text_BLD, policy=policy)
        x_BND = x_BND + 0.5 * update_BND
    return x_BND


def results(policy: Policy) -> list[Tensor]:
    """The output and every gradient."""
    blocks, inputs = network_and_inputs()
    output = forward(blocks, inputs, policy)
    output.square().sum().backward()
    return [output.detach(), *(x.grad for x in inputs), *(p.grad for p in blocks.parameters())]


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_nothing_changes(policy: Policy) -> None:
    for ours, expected in zip(results(policy), results("none"), strict=True):
        assert torch.equal(ours, expected)


def calls(policy: Policy) -> dict[str, int]:
    """Of each kind of forward operator; the backward pass of the second product, bmm, uses it too."""
    blocks, inputs = network_and_inputs()
    with Calls() as counted:
        forward(blocks, inputs, policy).square().sum().backward()
    return {name: counted.count[name] for name in FORWARD_KERNELS}


def test_what_runs_twice() -> None:
    once, selective, full = calls("none"), calls("selective"), calls("full")
    assert once["addmm"] == 2 * 4
    assert once["_scaled_dot_product_flash_attention_for_cpu"] == 2
    kept = ("addmm", "bmm", "_scaled_dot_product_flash_attention_for_cpu")
    assert {name: selective[name] - once[name] for name in kept} == dict.fromkeys(kept, 0)
    assert {name: full[name] - once[name] for name in kept} == {
        "addmm": 2 * 4,
        "bmm": 2 * 2,
        "_scaled_dot_product_flash_attention_for_cpu": 2,
    }
    recomputed = [name for name in FORWARD_KERNELS if name not in kept]
    assert {name: selective[name] - once[name] for name in recomputed} == {"native_layer_norm": 6, "gelu": 2, "cos": 4}
    assert {name: full[name] - once[name] for name in recomputed} == {"native_layer_norm": 6, "gelu": 2, "cos": 4}


def test_what_is_kept() -> None:
    kept: dict[Policy, int] = {}
    for policy in POLICIES:
        blocks, inputs = network_and_inputs()
        with LiveBytes([*inputs, *blocks.parameters()]) as memory:
            output = forward(blocks, inputs, policy)
            kept[policy] = memory.live
        del output
        assert memory.live == 0
    products = 3 * 32 + 32 + 5 + 32 + 4 * 32 + 32  # channels of a token: qkv, out, the two bmm, ffn
    attention = 32 + 2  # output and log-sum-exp
    between = 32 + 32  # the second block's input and the network's output; its input is not counted
    row_bytes = 2 * 24 * 4
    assert kept["full"] == row_bytes * between
    assert kept["selective"] == row_bytes * (2 * (products + attention) + between)
    assert kept["none"] > 1.5 * kept["selective"]


def test_nothing_is_kept_without_gradients() -> None:
    for policy in POLICIES:
        blocks, inputs = network_and_inputs()
        with torch.no_grad(), LiveBytes([*inputs, *blocks.parameters()]) as memory:
            output = forward(blocks, inputs, policy)
            assert memory.live == output.nbytes


def test_the_random_state_is_left_alone() -> None:
    blocks, inputs = network_and_inputs()
    before = torch.get_rng_state()
    forward(blocks, inputs, "full").sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("policy", POLICIES)
def test_compiles(policy: Policy) -> None:
    blocks, inputs = network_and_inputs()
    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    output = compiled(blocks, inputs, policy)
    output.square().sum().backward()
    ours = [output.detach(), *(x.grad for x in inputs), *(p.grad for p in blocks.parameters())]
    for mine, expected in zip(ours, results(policy), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)


def test_attention_packages_and_fused_operators() -> None:
    with torch.library._scoped_library("flash_attn_3", "FRAGMENT") as flash3:
        flash3.define("recompute_test_fwd(Tensor q) -> Tensor")
        assert is_kept(torch.ops.flash_attn_3.recompute_test_fwd.default)
    with torch.library._scoped_library("vrlvr", "FRAGMENT") as ours:
        ours.define("recompute_test(Tensor q) -> Tensor")
        assert not is_kept(torch.ops.vrlvr.recompute_test.default)
    aten = torch.ops.aten
    assert is_kept(aten._scaled_dot_product_cudnn_attention.default)
    assert not any(is_kept(op) for op in (aten._softmax.default, aten.gelu.default, aten.cat.default, aten.mul.Tensor))
