"""Float32 masters: training in bfloat16 that follows float32's, and resumes bit for bit."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vrlvr.errors import UserError
from vrlvr.masters import MasterAdamW
from vrlvr.models.dit import WanConfig, WanTransformer
from vrlvr.optim import clip_gradients

BF16 = torch.bfloat16
SIZES = WanConfig(
    num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=3, text_dim=8, freq_dim=8, ffn_dim=24,
    num_layers=1,
)  # fmt: skip
LR, STEPS = 1e-5, 150


def model(dtype: torch.dtype) -> WanTransformer:
    """The same bfloat16 numbers in either dtype. As in every Wan model, some parameters are float32 in both."""
    torch.manual_seed(0)
    return WanTransformer(SIZES).to(BF16).to(dtype)


def inputs(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x, text = torch.randn(4, 3, 1, 4, 4, generator=generator), torch.randn(4, 3, 8, generator=generator)
    return x, 1000 * torch.rand(4, generator=generator), text


def train(dit: WanTransformer, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """A target that does not move, so that steps of one sign add up."""
    for step in steps:
        optimizer.zero_grad()
        x, timestep, text = inputs(step % 4)
        for part in range(2):  # two micro-batches
            rows = slice(2 * part, 2 * part + 2)
            (dit(x[rows], timestep[rows], text[rows]) - x[rows].flip(1)).square().mean().backward()
        clip_gradients(dit, 1.0)
        optimizer.step()


def moved(weights: Iterable[Tensor]) -> Tensor:
    """How far those weights that are of half precision in BF16 models have moved from the start."""
    rows = zip(weights, model(torch.float32).parameters(), model(BF16).parameters(), strict=True)
    return torch.cat([(now.detach().float() - start.detach()).flatten() for now, start, p in rows if p.dtype == BF16])


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_masters_follow_float32_where_bfloat16_stalls() -> None:
    exact, pure, mastered = model(torch.float32), model(BF16), model(BF16)
    optimizer = MasterAdamW(mastered.parameters(), lr=LR, weight_decay=0.0)
    train(exact, torch.optim.AdamW(exact.parameters(), lr=LR, weight_decay=0.0), range(STEPS))
    train(pure, torch.optim.AdamW(pure.parameters(), lr=LR, weight_decay=0.0), range(STEPS))
    train(mastered, optimizer, range(STEPS))
    wanted = moved(exact.parameters())
    assert distance(moved(optimizer.param_groups[0]["params"]), wanted) < 0.02  # measured: 0.004
    assert distance(moved(mastered.parameters()), wanted) < 0.4  # 0.27: what rounding the weights costs
    assert distance(moved(pure.parameters()), wanted) > 0.9  # 0.99


def test_weights_are_their_masters_rounded() -> None:
    dit = model(BF16)
    optimizer = MasterAdamW(dit.parameters(), lr=1e-3)
    train(dit, optimizer, range(3))
    masters = optimizer.param_groups[0]["params"]
    assert {m.dtype for m in masters} == {torch.float32}
    for weight, master in zip(dit.parameters(), masters, strict=True):
        assert torch.equal(weight, master.to(weight.dtype))
        assert (weight is master) == (weight.dtype == torch.float32)


def test_micro_batches_are_summed_in_float32() -> None:
    summed, plain = (nn.Parameter(torch.ones(2, dtype=BF16)) for _ in range(2))
    optimizer = MasterAdamW([summed], lr=1e-3)
    for weight in (summed, plain):
        for _ in range(300):
            weight.sum().backward()
    assert summed.grad is not None
    assert summed.grad.dtype == torch.float32
    assert summed.grad.tolist() == [300, 300]
    assert plain.grad is not None
    assert plain.grad.tolist() == [256, 256]
    optimizer.zero_grad(set_to_none=False)
    assert summed.grad.tolist() == [0, 0]
    optimizer.zero_grad()
    assert summed.grad is None


def test_clipping_is_exact() -> None:
    dit = model(BF16)
    MasterAdamW(dit.parameters(), lr=LR)
    x, timestep, text = inputs(0)
    dit(x, timestep, text).square().sum().backward()
    before = [p.grad.clone() for p in dit.parameters() if p.grad is not None]
    norm = torch.stack([g.norm() for g in before]).norm().item()
    assert {g.dtype for g in before} == {torch.float32}
    assert clip_gradients(dit, norm / 3) == pytest.approx(norm, rel=1e-6)
    after = [p.grad for p in dit.parameters() if p.grad is not None]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old / 3, rtol=1e-5, atol=0)  # of bfloat16: 4e-3


def test_float32_parameters_are_stepped_as_by_adamw() -> None:
    ours, theirs = model(torch.float32), model(torch.float32)
    train(ours, MasterAdamW(ours.parameters(), lr=1e-3, weight_decay=0.1), range(4))
    train(theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.1), range(4))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def fresh(dtype: torch.dtype = BF16) -> tuple[WanTransformer, MasterAdamW]:
    dit = model(dtype)
    return dit, MasterAdamW(dit.parameters(), lr=LR, weight_decay=0.1)


def save(optimizer: MasterAdamW, path: Path) -> None:
    """Plain tensors, by parameter and key, as in a checkpoint."""
    state = optimizer.state_dict()["state"]
    save_file({f"{i}.{key}": value for i, values in state.items() for key, value in values.items()}, path)


def load(optimizer: MasterAdamW, path: Path) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(path).items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


@pytest.mark.parametrize("done", [0, 5])
def test_resume_is_exact(tmp_path: Path, done: int) -> None:
    dit, optimizer = fresh()
    train(dit, optimizer, range(done))
    save(optimizer, tmp_path / "optimizer.safetensors")
    weights = {name: weight.clone() for name, weight in dit.state_dict().items()}
    resumed, other = fresh()
    with torch.no_grad():
        for parameter in (*resumed.parameters(), *other.param_groups[0]["params"]):
            parameter.add_(1)  # all must come from the checkpoint
    resumed.load_state_dict(weights)
    load(other, tmp_path / "optimizer.safetensors")
    train(dit, optimizer, range(done, done + 4))
    train(resumed, other, range(done, done + 4))
    assert all(torch.equal(a, b) for a, b in zip(dit.parameters(), resumed.parameters(), strict=True))
    torch.testing.assert_close(optimizer.state_dict()["state"], other.state_dict()["state"], rtol=0, atol=0)
    half = sum(p.dtype == BF16 for p in dit.parameters())
    assert sum("master" in values for values in optimizer.state_dict()["state"].values()) == half > 0


def test_masters_alone_bring_the_weights_back(tmp_path: Path) -> None:
    dit, optimizer = fresh()
    train(dit, optimizer, range(2))
    save(optimizer, tmp_path / "optimizer.safetensors")
    resumed, other = fresh()
    load(other, tmp_path / "optimizer.safetensors")
    for a, b in zip(dit.parameters(), resumed.parameters(), strict=True):
        assert a.dtype != BF16 or torch.equal(a, b)


@pytest.mark.parametrize(("saved", "resumed"), [(BF16, torch.float32), (torch.float32, BF16)])
def test_a_state_of_another_precision_is_refused(tmp_path: Path, saved: torch.dtype, resumed: torch.dtype) -> None:
    dit, optimizer = fresh(saved)
    train(dit, optimizer, range(1))
    save(optimizer, tmp_path / "optimizer.safetensors")
    with pytest.raises(UserError, match=r"float32 masters.*model\.dtype"):
        load(fresh(resumed)[1], tmp_path / "optimizer.safetensors")
