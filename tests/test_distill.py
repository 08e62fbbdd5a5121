"""`vrlvr distill-decoder` on a random VAE of the real class; what it reaches on a trained one is in test_distill_agreement."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from wan_folder import WAN22_VAE, tiny_vae

from vrlvr.cli import main
from vrlvr.dataset import build, full_size_difficulties
from vrlvr.distill import Training, compare, decode_small, distill, draw, read_recipe
from vrlvr.errors import UserError
from vrlvr.models.fingerprint import fingerprint
from vrlvr.models.reward_decoder import RewardDecoder, RewardDecoderConfig
from vrlvr.models.wan_vae import WanVAECodec

SMALL = RewardDecoderConfig(latent_channels=6, pixels_per_latent=16, side=8, width=16, depth=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    tiny_vae(WAN22_VAE).save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    build(folder, num_train=1, num_test=0, height=64, width=80, num_frames=5, workers=1)
    return folder


@pytest.fixture(scope="module")
def codec(model: Path) -> WanVAECodec:
    return WanVAECodec.from_pretrained(model / "vae", torch.device("cpu"))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_manifest_gives_back_its_recipe(data: Path):
    recipe = read_recipe(data)
    assert (recipe.height, recipe.width, recipe.num_frames, recipe.frames_per_move) == (64, 80, 5, 1)
    assert recipe.difficulties == full_size_difficulties(5)
    full = read_recipe(None)
    assert (full.height, full.width, full.num_frames, full.frames_per_move) == (480, 832, 81, 4)


@pytest.mark.parametrize("content", [None, "[]", "{}", '{"difficulties": {"chess": {}}, "tasks": []}'])
def test_no_manifest(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"is no manifest of a data set .*; make one with `vrlvr data`"):
        read_recipe(tmp_path)


def test_targets_are_the_full_decode_of_the_same_latents_made_small(codec: WanVAECodec, data: Path):
    puzzles, first, latents = draw(codec, read_recipe(data), "train", range(6), rng())
    targets = decode_small(codec, SMALL, first, latents)
    assert [puzzle.task for puzzle in puzzles] == ["maze", "flowfree", "sokoban"] * 2
    assert targets.shape == (6, 5, 32, 40, 3)
    video = torch.from_numpy(codec.decode(first, latents)).double()
    expected = functional.avg_pool2d(video.movedim(-1, 2).flatten(0, 1), 2).unflatten(0, (6, 5)).movedim(2, -1)
    assert (targets - expected).abs().max() <= 1  # both are rounded
    one_by_one = WanVAECodec(codec.vae, max_latents=1)
    assert (decode_small(one_by_one, SMALL, first, latents).int() - targets.int()).abs().max() <= 1
    assert targets.double().std() > 3


def test_some_latents_are_mixed_with_others_of_the_same_boards(codec: WanVAECodec, data: Path, monkeypatch) -> None:
    monkeypatch.setattr("vrlvr.distill.perturb", lambda latents, rng: latents)
    recipe = read_recipe(data)
    none, some, everyone = (draw(codec, recipe, "train", range(12), rng(), mixed=share) for share in (0.0, 0.5, 1.0))
    monkeypatch.setattr("vrlvr.distill.mix", lambda latents, other, rng: other)
    others = draw(codec, recipe, "train", range(12), rng(), mixed=1.0)
    for drawn in (some, everyone, others):
        assert drawn[0] == none[0]
        assert torch.equal(drawn[1], none[1])
    differ = (some[2] != none[2]).flatten(1).any(1)
    assert 2 < differ.sum() < 10
    between = torch.minimum(none[2], others[2]) - 1e-5, torch.maximum(none[2], others[2]) + 1e-5
    assert ((everyone[2] >= between[0]) & (everyone[2] <= between[1])).all()
    assert (everyone[2] != none[2]).flatten(1).any(1).sum() > 8


def test_training_lowers_the_error(codec: WanVAECodec, data: Path):
    losses: list[float] = []
    distill(codec, read_recipe(data), SMALL, Training(steps=20, batch=4, fresh=1, pool=16, lr=1e-2), losses.append)
    assert len(losses) == 20
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])


def test_training_repeats(codec: WanVAECodec, data: Path):
    training = Training(steps=4, batch=4, fresh=1, pool=2)
    one, other = (distill(codec, read_recipe(data), SMALL, training, lambda loss: None) for _ in range(2))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_comparing_is_with_the_full_decode(codec: WanVAECodec, data: Path):
    class FullInSmall(RewardDecoder):
        """As good as can be: what the full decode shows."""

        def decode(self, first_latents_BC1HW, latents_BCFHW):
            return codec.decode(first_latents_BC1HW, latents_BCFHW)

    assert compare(codec, FullInSmall(SMALL), read_recipe(data), num_videos=10, seed=0) == [False] * 10


def test_the_command(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "decoder"
    sizes = ["--side", "8", "--width", "8", "--depth", "1", "--num_test", "3"]
    assert (
        main(["distill-decoder", "--model", f"{model}", "--data", f"{data}", "--out", f"{out}", "--steps", "2", *sizes])
        == 0
    )
    assert "of 3 held-out videos" in capsys.readouterr().out
    about = json.loads((out / "config.json").read_text())["about"]
    assert about["training"]["steps"] == 2
    assert about["held_out"]["videos"] == 3
    assert 0 <= about["held_out"]["disagreement_ci95"][0] <= about["held_out"]["disagreement"] <= 1
    decoder = RewardDecoder.from_pretrained(out, torch.device("cpu"), vae=fingerprint(model, "vae"))
    assert decoder.config == RewardDecoderConfig(latent_channels=6, pixels_per_latent=16, side=8, width=8, depth=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps=0 must be at least 1"),
        (["--side", "5"], "side=5 must divide"),
        (["--model", "/nowhere"], "/nowhere has no vae; give"),
        (["--data", "/nowhere"], "is no manifest of a data set"),
    ],
)
def test_bad_input(model: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["distill-decoder", "--model", f"{model}", "--out", f"{tmp_path / 'out'}", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
