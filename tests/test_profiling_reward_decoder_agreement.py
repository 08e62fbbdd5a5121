"""profiling/reward_decoder_agreement.py, whose training is cut to a few steps; and what its parts promise."""

import json
from pathlib import Path

import decoder_measures
import numpy as np
import pytest
import reward_decoder_agreement
import small_vae
import torch
from decoder_measures import Cells, Pair, PublishedCost

from vrlvr import puzzles
from vrlvr.config import DataConfig
from vrlvr.puzzles.verdict import Verdict

diffusers = pytest.importorskip("diffusers")

NEUTRAL = {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
STEPS = ["--vae_steps", "2", "--decoder_steps", "2", "--decoder_width", "16", "--decoder_depth", "1"]
COUNTS = ["--num_train", "2", "--sft_steps", "1", "--updates", "1", "--samples", "4", "--audited_updates", "1"]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VAE and audits that take less time; the rest is as it is run."""
    monkeypatch.setitem(small_vae.SIZES, "base_dim", 4)
    monkeypatch.setitem(small_vae.SIZES, "decoder_base_dim", 4)
    monkeypatch.setattr(reward_decoder_agreement, "_DAMAGES", (0.0, 0.4))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def test_it_makes_and_measures(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = work / "out" / "agreement.json"
    monkeypatch.setattr("sys.argv", ["x.py", "--work", str(work), "--out", str(out), *STEPS, *COUNTS])
    assert reward_decoder_agreement.main() == 0
    assert "RL rollouts" in capsys.readouterr().out
    result = json.loads(out.read_text())
    agreement = result["agreement"]
    assert list(agreement) == ["alone", "30 levels", "20 levels"]
    for rows in agreement.values():
        assert {kind: row["samples"] for kind, row in rows.items()} == {
            "planner's videos": 4, "imperfect videos": 4, "SFT samples": 4, "RL rollouts": 4, "SFT and RL": 8,
        }  # fmt: skip
    assert [row["audited"] for row in result["audits"]] == [2] * 2  # 2 % of 96, rounded up
    cost = result["cost"]
    assert cost["small_dit_forwards_480x832x81"] < 0.012  # as tests/models/test_reward_decoder.py counts it
    assert 4 < cost["full_dit_forwards_480x832x81"] < 6.1  # design: 597 TFLOP by diffusers, less by our decoder
    assert cost["small_gflop"] < cost["full_gflop"]
    alone, anew = (agreement[name]["SFT and RL"] for name in ("alone", "20 levels"))
    assert (alone["reread"], anew["reread"]) == (0, 1)  # after two steps all is in doubt, everywhere
    assert anew["cells"] == 20
    assert anew["verdict_equal"] == 1  # by the windowed decode of the whole board
    assert alone["dit_forwards_480x832x81"] == cost["small_dit_forwards_480x832x81"]
    assert "work" not in result["options"]  # no path of the machine


MAZE = puzzles.generate("maze", puzzles.maze.Difficulty(), 0, "test", 0)
BLANK = puzzles.Reading(np.zeros((1, 4, 5), np.int16), np.zeros((1, 4, 5), np.float32))


def verdict(solved: bool, rule: str | None = None, **components: float) -> Verdict:
    return Verdict(solved, {"solved": float(solved), "progress": 1.0, "error": 0.0} | components, rule, None, 0.0, 0.0)


def test_what_counts_as_equal() -> None:
    good, bad = verdict(True), verdict(False, "wall", progress=0.5)
    near = verdict(True, error=0.04)
    row = decoder_measures.compare(
        [Pair(MAZE, BLANK, small, full) for small, full in ((good, good), (near, good), (bad, good), (bad, bad))]
    )
    assert (row["verdict_equal"], row["solved_equal"], row["rule_equal"]) == (0.75, 0.75, 0.75)
    assert row["solved_by_full_decode"] == 0.75
    assert row["reward_difference_max"] == pytest.approx(0.6 + 0.5 * 0.4)
    assert row["reward_difference"] == pytest.approx((0.04 * 0.2 + 0.8) / 4)
    assert row["misses"] == {"maze: no rule broken -> wall": 1}
    low, high = row["verdict_equal_ci95"]
    assert low < 0.75 < high


def test_a_box_of_cells_costs_a_fraction_at_full_size() -> None:
    cost = PublishedCost()
    one, four, most = (cost.reread("maze", Cells(side, side)) for side in (1, 2, 9))
    assert 0.3 < one < four < most < cost.full
    assert cost.reread("flowfree", Cells(1, 1)) > one  # whose boards have fewer and larger cells
    pair = Pair(MAZE, BLANK, verdict(True), verdict(True))
    assert cost.settled([pair] * 3) == cost.small
    pairs = [pair] * 3 + [pair._replace(box=Cells(1, 1))]
    assert cost.settled(pairs) == pytest.approx(cost.small + one / 4)
    larger = cost.reread("maze", Cells(3, 2))  # a row of 4, a column of 5, of 9 by 9
    assert cost.settled(pairs, as_shares=True) == pytest.approx(cost.small + larger / 4)


@pytest.fixture(scope="module")
def recipe(work: Path):
    return reward_decoder_agreement.make_data(work / "data", DataConfig(height=64, width=80, num_train=2))


def test_principal_axes_leave_pixels_as_they_were(recipe) -> None:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(**small_vae.SIZES, **NEUTRAL).eval().requires_grad_(False)
    pixels = small_vae.draw_pixels(recipe, 8, np.random.default_rng(0))
    before = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    torch.testing.assert_close(small_vae.decode(vae, vae.encode(pixels).latent_dist.mode()).clamp(-1, 1), before)
    small_vae.decorrelate(vae, recipe, np.random.default_rng(1))
    latents = vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(vae.decode(latents).sample, before, atol=1e-4, rtol=0)
    std = torch.tensor(vae.config.latents_std)
    correlation = torch.corrcoef(latents.movedim(1, 0).flatten(1))
    assert (correlation - torch.eye(48)).abs().mean() < 0.1  # on other videos than the axes are of; 0.19 before
    assert (latents.std((0, 2, 3, 4)) / std).median() == pytest.approx(1, abs=0.3)


def test_steps_train_every_weight(recipe) -> None:
    """Muon's matrices are views of the convolutions' weights: a step through them moves the VAE."""
    losses: list[float] = []
    vae = small_vae.train_vae(recipe, steps=2, batch=2, lr=1e-2, seed=0, report=losses.append)
    assert len(losses) == 2
    torch.manual_seed(0)
    before = type(vae)(**small_vae.SIZES, **NEUTRAL).state_dict()
    moved = {name for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in before if name.endswith("conv1.weight")} <= moved
