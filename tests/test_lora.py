"""Adapters: what they change and what they leave, against explicit low-rank sums on the plain model."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vrlvr.errors import UserError
from vrlvr.lora import adapter_off, add_lora, load_lora_state, lora_state, merge_lora
from vrlvr.memory import LiveBytes
from vrlvr.models.dit import WanConfig, WanTransformer
from vrlvr.models.recompute import Policy
from vrlvr.optim import adamw
from vrlvr_kernels.launch import implementation

ALL = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
SIZES = WanConfig(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=6,
    out_channels=6,
    text_dim=10,
    freq_dim=16,
    ffn_dim=56,
    num_layers=2,
)
RANK, ALPHA = 3, 4.5
SCALE = ALPHA / RANK
BF16 = torch.bfloat16


def base_model(dtype: torch.dtype = torch.float32) -> WanTransformer:
    torch.manual_seed(0)
    model = WanTransformer(SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.to(dtype)


def adapted_model(dtype: torch.dtype = torch.float32, targets: list[str] = ALL, b_std: float = 0.1) -> WanTransformer:
    """B away from zero, so that the adapters count."""
    model = base_model(dtype)
    add_lora(model, RANK, ALPHA, targets, seed=5)
    generator = torch.Generator().manual_seed(1)
    for name, weight in lora_state(model).items():
        if "lora_B" in name:
            weight.copy_(b_std * torch.randn(weight.shape, generator=generator))
    return model


def inputs() -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(2)
    latents, text = torch.randn(2, 6, 3, 4, 6, generator=generator), torch.randn(2, 5, 10, generator=generator)
    return latents, torch.tensor([331.17, 998.4]), text, 1


def backward(model: nn.Module) -> Tensor:
    """Fills the gradients; returns the output."""
    velocity = model(*inputs())
    velocity.square().mean().backward()
    return velocity.detach()


def test_fresh_adapters_change_nothing() -> None:
    expected, model = base_model()(*inputs()), adapted_model(b_std=0)
    torch.testing.assert_close(model(*inputs()), expected)


def test_only_adapters_are_trained() -> None:
    model = adapted_model()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(lora_state(model)) == 2 * 2 * (2 * 4 + 2)
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = adamw(model, 1e-2, 0.0)
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
    assert not any(torch.equal(p, before[name]) for name, p in trained.items())
    with adapter_off(model):
        left = model.state_dict()
    plain = base_model().state_dict()
    assert left.keys() == plain.keys()
    assert all(torch.equal(left[name], weight) for name, weight in plain.items())


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_without_adapters_it_is_the_base_model_bit_for_bit(dtype: torch.dtype) -> None:
    model = adapted_model(dtype)
    adapted, expected = model(*inputs()), base_model(dtype)(*inputs())
    with adapter_off(model):
        off = model(*inputs())
    assert torch.equal(off, expected)
    assert not off.requires_grad
    assert not torch.allclose(adapted, expected, atol=0.05)
    assert torch.equal(model(*inputs()), adapted)


def test_adapters_come_back_after_an_error() -> None:
    model = adapted_model()
    with pytest.raises(UserError, match="timestep"), adapter_off(model):
        model(inputs()[0], torch.zeros(3), inputs()[2])
    assert len(lora_state(model)) == 40


def test_gradients_are_those_of_the_low_rank_sum() -> None:
    """With W' = W + s B A: dL/dB = s dL/dW' A^T and dL/dA = s B^T dL/dW'."""
    model = adapted_model()
    merged = copy.deepcopy(model)
    merge_lora(merged)
    merged.requires_grad_(True)
    torch.testing.assert_close(backward(model), backward(merged))
    weights = dict(merged.named_parameters())
    parameters = dict(model.named_parameters())
    state = lora_state(model)
    for name in (key.removesuffix(".lora_A.weight") for key in state if "lora_A" in key):
        full = weights[f"{name}.weight"].grad
        assert full is not None
        a, b = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        for side, expected in (("A", SCALE * b.T @ full), ("B", SCALE * full @ a.T)):
            grad = parameters[f"{name}.lora_{side}.default.weight"].grad
            torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (BF16, 0.1)])
def test_merged_computes_what_adapted_does(dtype: torch.dtype, tolerance: float) -> None:
    model = adapted_model(dtype)
    adapted, base = model(*inputs()), base_model(dtype)(*inputs())
    merge_lora(model)
    assert model.state_dict().keys() == base_model().state_dict().keys()
    assert {type(m) for m in model.modules()} == {type(m) for m in base_model().modules()}
    merged = model(*inputs())
    assert (merged - adapted).norm() < tolerance * (adapted - base).norm()


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_products_are_in_the_compute_dtype(dtype: torch.dtype) -> None:
    class Products(TorchDispatchMode):
        dtypes: set[torch.dtype] = set()  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._schema.name in ("aten::addmm", "aten::mm"):
                self.dtypes.update(x.dtype for x in args if isinstance(x, Tensor))
            return func(*args, **(kwargs or {}))

    model = adapted_model(dtype)
    h = torch.randn(1, 4, SIZES.dim, dtype=dtype)
    with Products() as products:
        model.blocks[0].ffn(h).sum().backward()  # type: ignore[operator]
    assert products.dtypes == {dtype}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_adapters_stay_float32_when_the_model_is_cast() -> None:
    model = adapted_model()
    before = {name: weight.clone() for name, weight in lora_state(model).items()}
    model.to(BF16)
    assert model.blocks[0].attn1.to_q.base_layer.weight.dtype == BF16  # type: ignore[union-attr]
    torch.testing.assert_close(lora_state(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_recomputing_changes_nothing(policy: Policy) -> None:
    results = []
    for each in ("none", policy):
        model = adapted_model()
        model.recompute = each  # type: ignore[assignment]
        results.append([backward(model), *(p.grad for p in model.parameters() if p.requires_grad)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_selective_keeps_one_output_a_layer() -> None:
    """Beside what it keeps without adapters, only the low-rank inputs of B: the update is added anew, not kept."""

    def kept(model: WanTransformer) -> int:
        model.recompute = "selective"
        model(*inputs())  # fills caches
        with LiveBytes(model.parameters()) as memory:
            velocity = model(*inputs())
        assert velocity.requires_grad
        return memory.live

    tokens, text, blocks = 2 * 3 * 2 * 3, 2 * 5, 2
    low = 4 * RANK * blocks * (8 * tokens + 2 * text)
    base = base_model()
    base.requires_grad_(False)
    base.blocks.requires_grad_(True)
    smallest_output = 4 * tokens * SIZES.dim
    assert kept(adapted_model()) - kept(base) < low + smallest_output


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_the_triton_kernels_serve_adapted_layers(dtype: torch.dtype) -> None:
    results = []
    for name in ("reference", "triton"):
        model = adapted_model(dtype)
        with implementation(name):  # type: ignore[arg-type]
            velocity = backward(model)
        results.append([velocity, *(p.grad for p in model.parameters() if p.requires_grad)])
    rtol = 1e-4 if dtype == torch.float32 else 0.1
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).norm() <= rtol * expected.norm()


def test_keys_and_values_of_the_text_are_made_once() -> None:
    """`text_context` through wrapped projections, in forward and backward, equals giving the text itself."""
    whole, cached = adapted_model(), adapted_model()
    latents, timestep, text, clean = inputs()
    expected = backward(whole)
    context = cached.text_context(text)
    leaves = context.leaves()
    rows = []
    for i in range(2):
        number_B = torch.tensor([i])
        velocity = cached(latents[i : i + 1], timestep[i : i + 1], leaves.of(number_B), clean)
        (velocity.square().sum() / expected.numel()).backward()
        rows.append(velocity.detach())
    context.backward(leaves)
    torch.testing.assert_close(torch.cat(rows), expected)
    for (name, ours), theirs in zip(cached.named_parameters(), whole.parameters(), strict=True):
        if theirs.requires_grad:
            assert "attn2.to_k" not in name or ours.grad.abs().max() > 0
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_state_goes_out_and_in() -> None:
    model, other = adapted_model(), base_model()
    add_lora(other, RANK, ALPHA, ALL, seed=9)
    load_lora_state(other, {name: weight.clone() for name, weight in lora_state(model).items()})
    assert torch.equal(other(*inputs()), model(*inputs()))
    a, b = lora_state(other)["blocks.1.ffn.net.2.lora_A.weight"], lora_state(other)["blocks.1.ffn.net.2.lora_B.weight"]
    assert a.shape == (RANK, 56)
    assert b.shape == (24, RANK)


def test_adapters_of_another_kind_are_refused() -> None:
    model = adapted_model()
    few = lora_state(adapted_model(targets=["attn1.to_q"]))
    with pytest.raises(UserError, match=r"4 tensors do not fit the model's 40.*lora\.targets"):
        load_lora_state(model, few)
    wide = base_model()
    add_lora(wide, RANK + 1, ALPHA, ALL, seed=0)
    before = {name: weight.clone() for name, weight in lora_state(model).items()}
    with pytest.raises(UserError, match=r"has shape .*model\.lora\.rank"):
        load_lora_state(model, lora_state(wide))
    torch.testing.assert_close(lora_state(model), before, rtol=0, atol=0)


def test_a_seed_gives_the_same_adapters() -> None:
    one, same, other = base_model(), base_model(BF16), base_model()
    for model, seed in ((one, 3), (same, 3), (other, 4)):
        torch.manual_seed(seed + 10)  # of no effect
        add_lora(model, RANK, ALPHA, ["to_q"], seed)
    torch.testing.assert_close(lora_state(one), lora_state(same), rtol=0, atol=0)
    name = "blocks.0.attn1.to_q.lora_A.weight"
    assert not torch.equal(lora_state(one)[name], lora_state(other)[name])
    assert lora_state(one)[name].abs().max() <= SIZES.dim**-0.5
    assert not torch.equal(lora_state(one)[name], lora_state(one)["blocks.1.attn1.to_q.lora_A.weight"])


def test_targets_are_ends_of_names() -> None:
    model = base_model()
    add_lora(model, RANK, ALPHA, ["attn1.to_q", "net.2"], seed=0)
    layers = [name.removesuffix(".lora_A.weight") for name in lora_state(model) if "lora_A" in name]
    assert layers == ["blocks.0.attn1.to_q", "blocks.0.ffn.net.2", "blocks.1.attn1.to_q", "blocks.1.ffn.net.2"]


@pytest.mark.parametrize(
    ("rank", "alpha", "targets", "told"),
    [
        (4, 4, ["to_q", "to_z"], r"and to_z is none.*attn1\.to_q.*ffn\.net\.0\.proj"),
        (4, 4, ["q"], "and q is none"),
        (4, 4, [], "and nothing is none"),
        (4, 4, ["linear_1"], "and linear_1 is none"),
        (0, 4, ["to_q"], "rank=0"),
        (4, 0.0, ["to_q"], "alpha=0"),
    ],
)
def test_bad_options_are_refused(rank: int, alpha: float, targets: list[str], told: str) -> None:
    model = base_model()
    with pytest.raises(UserError, match=told):
        add_lora(model, rank, alpha, targets, seed=0)
    assert all(p.requires_grad for p in model.parameters())
