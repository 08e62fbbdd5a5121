"""The moving average: its formula, in float32 whatever the weights are, and what of it is saved."""

import pytest
import torch
from torch import Tensor, nn

from vrlvr.ema import Ema

DECAY = 0.999
STEP = 10**6  # so late that the average is as long as it gets


def net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"linear": nn.Linear(3, 4).to(dtype), "norm": nn.LayerNorm(4)})


def move(model: nn.Module, to: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(to)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_steps_add_up(dtype: torch.dtype) -> None:
    """A step of 1/1000 of 2^-6 is less than bfloat16 can hold beside 1: without float32 the average would never move."""
    model, to, steps = net(dtype), 1 + 2**-6, 3000
    move(model, 1.0)
    ema = Ema(model, DECAY)
    move(model, to)
    for _ in range(steps):
        ema.update(model, STEP)
    expected = to - 2**-6 * DECAY**steps
    for name, average in ema.state_dict().items():
        assert average.dtype == torch.float32
        torch.testing.assert_close(average, torch.full_like(average, expected), rtol=0, atol=2**-6 * 0.01, msg=name)
    for name, average in ema.model.state_dict().items():
        assert torch.equal(average, ema.state_dict()[name].to(average.dtype))
        assert average.dtype == model.state_dict()[name].dtype


@pytest.mark.parametrize("model", [net(torch.bfloat16), net(torch.bfloat16).bfloat16()])
def test_early_averages_are_short(model: nn.Module) -> None:
    """Whether or not some of the weights are float32."""
    move(model, 0.0)
    ema = Ema(model, DECAY)
    move(model, 1.0)
    ema.update(model, 1)
    for average in ema.state_dict().values():
        torch.testing.assert_close(average, torch.full_like(average, 1 - 2 / 11))


def test_what_is_saved_goes_on_bit_for_bit() -> None:
    def trained(ema: Ema, model: nn.Module, seeds: range) -> dict[str, Tensor]:
        for seed in seeds:
            torch.manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(torch.randn_like(parameter))
            ema.update(model, STEP)
        return {name: tensor.clone() for name, tensor in ema.state_dict().items()}

    model, other = net(torch.bfloat16), net(torch.bfloat16)
    ema, resumed = Ema(model, DECAY), Ema(other, DECAY)
    saved = trained(ema, model, range(5))
    resumed.load_state_dict(saved)
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), ema.model.parameters(), strict=True))
    expected, found = trained(ema, model, range(5, 9)), trained(resumed, other, range(5, 9))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_is_not_trained_is_shared() -> None:
    model = net(torch.bfloat16)
    model["linear"].requires_grad_(False)  # type: ignore[index]
    ema = Ema(model, DECAY)
    averages = dict(ema.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert (averages[name] is parameter) == name.startswith("linear")
    assert ema.state_dict()["linear.weight"].dtype == torch.bfloat16
    move(model, 2.0)
    ema.update(model, STEP)
    assert 1 < averages["norm.weight"].mean() < 1.01
    assert Ema(model, 0.0).model is model
