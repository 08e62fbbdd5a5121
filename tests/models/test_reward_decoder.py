"""The small reward decoder: its shapes, its cost, what it depends on, and its files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vrlvr.errors import UserError
from vrlvr.models import reward_decoder
from vrlvr.models.dit import WanConfig
from vrlvr.models.flops import tokens_of, total_flops
from vrlvr.models.reward_decoder import RewardDecoder, RewardDecoderConfig
from vrlvr.models.wan_vae import levels

CPU = torch.device("cpu")
TINY = RewardDecoderConfig(latent_channels=5, pixels_per_latent=8, side=2, width=12, depth=2)


@pytest.fixture
def decoder() -> RewardDecoder:
    """With every parameter away from its initial value."""
    torch.manual_seed(0)
    decoder = RewardDecoder(TINY).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return decoder


def random_latents(videos: int = 3) -> torch.Tensor:
    return torch.randn(videos, 5, 4, 3, 2, generator=torch.Generator().manual_seed(0))


def test_decode_is_the_network_in_levels(decoder, monkeypatch):
    latents = random_latents()
    video = decoder.decode(latents[:, :, :1], latents[:, :, 1:])
    assert video.shape == (3, 1 + 4 * 3, 3 * 2, 2 * 2, 3)
    assert video.dtype == np.uint8
    np.testing.assert_array_equal(video, levels(decoder(latents)).numpy())
    assert video.std() > 3
    monkeypatch.setattr(reward_decoder, "MAX_LATENTS", 1)  # one video at a time
    assert np.abs(decoder.decode(latents[:, :, :1], latents[:, :, 1:]).astype(int) - video).max() <= 1


def test_nothing_looks_ahead_in_time_and_everything_looks_around(decoder):
    """What a pixel depends on: earlier latent frames and near positions. That of latent frame f gives frames 4f - 3 to 4f."""
    latents = torch.randn(1, 5, 6, 9, 9, generator=torch.Generator().manual_seed(0))
    other = latents.clone()
    other[:, :, 3, 4, 4] += 1
    moved = (decoder(other) - decoder(latents)).abs().amax((0, 1)) > 1e-6
    frames = moved.any(2).any(1).nonzero().flatten()
    assert (frames.min(), frames.max()) == (4 * 3 - 3, 20)
    assert not decoder_moves_first_frame(decoder)
    near = moved[9:13].any(0).view(9, 2, 9, 2).any(3).any(1)
    reach = 1 + TINY.depth
    assert near[4 - reach : 5 + reach, 4 - reach : 5 + reach].all()
    assert near.sum() == (2 * reach + 1) ** 2


def decoder_moves_first_frame(decoder: RewardDecoder) -> bool:
    latents = random_latents(1)
    other = latents.clone()
    other[:, :, 1:] = 0
    return not torch.equal(decoder(latents)[:, :, 0], decoder(other)[:, :, 0])


def test_each_pixel_has_its_place():
    """A network whose last layer alone speaks: its bias is then the pattern of every latent position, frame by frame."""
    decoder = RewardDecoder(TINY).requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.zero_()
    pattern = torch.randn(3, 4, 2, 2)  # colours, frames, rows, columns
    decoder.exit.bias.copy_(pattern.flatten())
    pixels = decoder(random_latents(1))[0]
    assert torch.equal(pixels[:, 0], pattern[:, 3].repeat(1, 3, 2))
    assert torch.equal(pixels[:, 1:5], pattern.repeat(1, 1, 3, 2))
    assert torch.equal(pixels[:, 9:13], pattern.repeat(1, 1, 3, 2))


def test_cost_at_full_size():
    """The goal is 0.3 of a forward of the 5B transformer at 480x832x81; counted on the meta device, the default takes 0.01."""
    with torch.device("meta"):
        decoder, latents = RewardDecoder(RewardDecoderConfig()), torch.empty(1, 48, 21, 30, 52)
    with FlopCounterMode(display=False) as counter:
        pixels = decoder(latents)
    assert pixels.shape == (1, 3, 81, 120, 208)
    config = WanConfig()
    assert counter.get_total_flops() < 0.012 * total_flops(config, tokens_of(config, 81, 480, 832))


def test_saved_and_loaded(decoder, tmp_path: Path):
    decoder.save(tmp_path / "decoder", {"vae": "abc", "steps": 7})
    assert json.loads((tmp_path / "decoder" / "config.json").read_text())["about"]["steps"] == 7
    loaded = RewardDecoder.from_pretrained(tmp_path / "decoder", CPU, vae="abc")
    assert loaded.config == TINY
    assert torch.equal(loaded(random_latents()), decoder(random_latents()))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    half = RewardDecoder.from_pretrained(tmp_path / "decoder", CPU, torch.bfloat16)
    latents = random_latents()
    video = half.decode(latents[:, :, :1], latents[:, :, 1:])
    assert np.abs(video - levels(decoder(latents)).numpy().astype(float)).mean() < 2


def test_made_for_another_vae(decoder, tmp_path: Path):
    decoder.save(tmp_path, {"vae": "abc"})
    with pytest.raises(UserError, match=r"made for another VAE \(abc\) than this model's \(xyz\); run"):
        RewardDecoder.from_pretrained(tmp_path, CPU, vae="xyz")
    latents = torch.zeros(1, 48, 2, 3, 2)
    with pytest.raises(UserError, match=r"latents of 48 channels .* which has 5; run"):
        decoder.decode(latents[:, :, :1], latents[:, :, 1:])


@pytest.mark.parametrize("damage", ["missing", "config", "sizes", "weights", "truncated"])
def test_damaged_files(decoder, tmp_path: Path, damage: str):
    decoder.save(tmp_path, {"vae": "abc"})
    weights, config = tmp_path / "reward_decoder.safetensors", tmp_path / "config.json"
    if damage == "missing":
        weights.unlink()
    elif damage == "config":
        config.write_text("{")
    elif damage == "sizes":
        config.write_text(config.read_text().replace('"width": 12', '"width": 16'))
    elif damage == "weights":
        weights.write_bytes(b"not safetensors")
    else:
        weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"holds no reward decoder .*; make one with `vrlvr distill-decoder`") as caught:
        RewardDecoder.from_pretrained(tmp_path, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"side": 3}, "side=3 must divide the VAE's 16 pixels a latent position; use 2"),
        ({"width": 0}, "width=0 of a reward decoder"),
        ({"depth": 2.5}, "depth=2.5 of a reward decoder"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(UserError, match=message):
        RewardDecoderConfig(**sizes)
