"""The reference transformer is ours in other words, and diffusers' where that is installed: outputs and gradients."""

import pytest
import torch
from reference_dit import ReferenceWanTransformer
from torch import Tensor, nn

from vrlvr.models.dit import WanConfig, WanTransformer

CONFIG = WanConfig(
    num_attention_heads=3,
    attention_head_dim=16,
    in_channels=6,
    out_channels=6,
    text_dim=20,
    freq_dim=32,
    ffn_dim=80,
    num_layers=2,
)
GRIDS = [((3, 3, 5), 7, 1), ((2, 4, 3), 5, 0), ((4, 2, 3), 1, 2)]


def random_reference(checkpointing: bool = False) -> ReferenceWanTransformer:
    """Every parameter away from its initial value."""
    torch.manual_seed(0)
    model = ReferenceWanTransformer(CONFIG, checkpointing)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def inputs(grid: tuple[int, int, int], num_text_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    size = [patches * patch for patches, patch in zip(grid, CONFIG.patch_size, strict=True)]
    timestep = torch.tensor([331.17, 998.4])
    return torch.randn(2, 6, *size), timestep, torch.randn(2, num_text_tokens, CONFIG.text_dim)


def assert_same(model: nn.Module, velocity: Tensor, other: nn.Module, expected: Tensor) -> None:
    """Equal velocities, and equal gradients of every parameter (a missing one counts as zero)."""
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=0)
    probe = torch.randn_like(expected) / expected.numel() ** 0.5
    (velocity * probe).sum().backward()
    (expected * probe).sum().backward()
    others = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        mine, theirs = (torch.zeros_like(p) if p.grad is None else p.grad for p in (parameter, others[name]))
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("grid", "num_text_tokens", "num_clean_frames"), GRIDS)
def test_it_computes_what_ours_does(grid: tuple[int, int, int], num_text_tokens: int, num_clean_frames: int) -> None:
    reference = random_reference()
    ours = WanTransformer(CONFIG)
    ours.load_state_dict(reference.state_dict(), strict=True)
    latents, timestep, text = inputs(grid, num_text_tokens)
    arguments = (latents, timestep, text, num_clean_frames)
    assert_same(reference, reference(*arguments), ours, ours(*arguments))


@pytest.mark.parametrize(("grid", "num_text_tokens", "num_clean_frames"), GRIDS)
def test_it_computes_what_diffusers_does(
    grid: tuple[int, int, int], num_text_tokens: int, num_clean_frames: int
) -> None:
    diffusers = pytest.importorskip("diffusers")
    reference = random_reference()
    theirs = diffusers.WanTransformer3DModel(**CONFIG.to_diffusers())
    theirs.load_state_dict(reference.state_dict(), strict=True)
    latents, timestep, text = inputs(grid, num_text_tokens)
    per_token = timestep
    if num_clean_frames:
        per_token = timestep[:, None].repeat(1, grid[0] * grid[1] * grid[2])
        per_token[:, : num_clean_frames * grid[1] * grid[2]] = 0
    expected = theirs(latents, per_token, text, return_dict=False)[0]
    assert_same(reference, reference(latents, timestep, text, num_clean_frames), theirs, expected)


def test_bfloat16_casts_what_diffusers_casts_and_computes_the_same() -> None:
    diffusers = pytest.importorskip("diffusers")
    reference = random_reference().bfloat16()
    theirs = diffusers.WanTransformer3DModel(**CONFIG.to_diffusers())
    theirs.load_state_dict(reference.state_dict(), strict=True)
    kept = theirs._keep_in_fp32_modules
    for name, parameter in theirs.named_parameters():
        if not any(part in name for part in kept):
            parameter.data = parameter.data.bfloat16()
    assert {name: p.dtype for name, p in theirs.named_parameters()} == {
        name: p.dtype for name, p in reference.named_parameters()
    }
    latents, timestep, text = (x.bfloat16() if x.ndim > 1 else x for x in inputs((2, 3, 2), 4))
    per_token = timestep[:, None].repeat(1, 12)
    per_token[:, :6] = 0
    expected = theirs(latents, per_token, text, return_dict=False)[0]
    torch.testing.assert_close(reference(latents, timestep, text, 1), expected, atol=0, rtol=0)


def test_checkpointing_keeps_less_and_changes_no_gradient() -> None:
    saved: dict[bool, int] = {}
    gradients: dict[bool, list[Tensor]] = {}
    for checkpointing in (False, True):
        model, kept = random_reference(checkpointing), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            loss = model(*inputs((2, 3, 2), 3), 1).square().sum()
        saved[checkpointing] = sum(kept)
        loss.backward()
        gradients[checkpointing] = [p.grad for p in model.parameters()]
    assert saved[True] < saved[False] / 2
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients[True], gradients[False], strict=True))


def test_compiled_blocks_compute_the_same() -> None:
    plain, compiled = random_reference(), random_reference()
    compiled.compile_blocks(backend="aot_eager")
    arguments = (*inputs((2, 3, 2), 3), 1)
    assert_same(compiled, compiled(*arguments), plain, plain(*arguments))


def test_the_fused_rms_norm_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for Liger's class, of its signature: the weights are shared and the result is equal."""
    import sys
    from types import SimpleNamespace

    plain, fused = random_reference(), random_reference()
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    assert plain.fuse_rms_norm() == "torch"

    class Stand(nn.RMSNorm):
        pass

    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", SimpleNamespace(LigerRMSNorm=Stand))
    assert fused.fuse_rms_norm() == "liger"
    assert sum(isinstance(module, Stand) for module in fused.modules()) == 4 * CONFIG.num_layers
    arguments = (*inputs((2, 3, 2), 3), 1)
    assert_same(fused, fused(*arguments), plain, plain(*arguments))
