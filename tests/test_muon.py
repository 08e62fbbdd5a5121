"""Muon on convolutions: what a step does to their weights, and that the rest is AdamW's."""

import pytest
import torch
from torch import nn

from vrlvr.muon import muon_with_adamw


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(5, 24, 3), nn.PReLU(24), nn.Conv3d(24, 4, 1))


def test_a_step_is_orthogonal_in_convolutions_and_adamws_in_the_rest(network: nn.Sequential) -> None:
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    step = muon_with_adamw(network, weight_decay=0.0)
    network(torch.randn(64, 5, 3, 3, 3)).square().sum().backward()
    signs = {name: p.grad.sign() for name, p in network.named_parameters() if p.grad is not None}
    step(0.01)
    moved = {name: before[name] - p.detach() for name, p in network.named_parameters()}
    for name in ("0.weight", "2.weight"):
        matrix = moved[name].movedim(1, -1).flatten(1)
        values = torch.linalg.svdvals(matrix) / (0.01 * 0.2 * max(matrix.shape) ** 0.5)
        assert values.max() < 1.3  # about 1 each, as five steps of Newton and Schulz leave them
        assert values.median() > 0.6
        assert (moved[name] * signs[name]).sum() > 0
    for name in ("0.bias", "1.weight", "2.bias"):
        torch.testing.assert_close(moved[name], 0.01 * signs[name], atol=1e-4, rtol=0)
    assert all(p.grad is None for p in network.parameters())


def test_it_learns(network: nn.Sequential) -> None:
    x, target = torch.randn(64, 5, 3, 3, 3), torch.randn(64, 4, 1, 1, 1)
    step, losses = muon_with_adamw(network, weight_decay=0.01), []
    for _ in range(60):
        loss = (network(x) - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        step(0.02)
    assert losses[-1] < 0.2 * losses[0]
