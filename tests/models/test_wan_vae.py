"""The Wan VAE codec on small random VAEs of the real class, against diffusers' own encode and decode."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vrlvr.errors import UserError
from vrlvr.models.wan_vae import WanVAECodec

diffusers = pytest.importorskip("diffusers")

NUM_FRAMES = 9
STYLES: dict[str, dict[str, Any]] = {
    "wan2.1": {"base_dim": 4, "z_dim": 3, "num_res_blocks": 1},
    "wan2.2": {
        "base_dim": 4,
        "decoder_base_dim": 6,
        "z_dim": 4,
        "num_res_blocks": 1,
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_spatial": 16,
    },
}


def random_vae(style: str) -> Any:
    torch.manual_seed(0)
    config = STYLES[style]
    mean = torch.randn(config["z_dim"]).tolist()
    std = (0.2 + torch.rand(config["z_dim"])).tolist()
    return diffusers.AutoencoderKLWan(**config, latents_mean=mean, latents_std=std)


def random_video(codec: WanVAECodec, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Two videos of one latent row and two latent columns."""
    side = codec.pixels_per_latent
    shape = (2, num_frames, side, 2 * side, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(params=STYLES)
def codec(request: pytest.FixtureRequest) -> WanVAECodec:
    return WanVAECodec(random_vae(request.param))


def test_encode_is_the_normalised_mode_of_diffusers_posterior(codec: WanVAECodec) -> None:
    video = random_video(codec)
    pixels = torch.from_numpy(video).permute(0, 4, 1, 2, 3) / 255 * 2 - 1
    with torch.no_grad():
        mode = codec.vae.encode(pixels).latent_dist.mean
    mean, std = (torch.tensor(values)[:, None, None, None] for values in _statistics(codec))
    expected = (mode - mean) / std
    first, latents = codec.encode_first(video[:, 0]), codec.encode(video)
    assert first.dtype == latents.dtype == torch.float32
    assert latents.shape == (2, *codec.latent_shape(*video.shape[1:4]))
    torch.testing.assert_close(latents, expected[:, :, 1:], atol=1e-5, rtol=0)
    # Causality: the first frame alone gives latent frame 0 of the whole video.
    torch.testing.assert_close(first, expected[:, :, :1], atol=1e-5, rtol=0)
    assert torch.equal(codec.encode(video), latents)


def test_the_first_frame_moves_the_later_latents(codec: WanVAECodec) -> None:
    """Latent frames after the first depend on frame 0 too, so encoding them needs the whole video."""
    video = random_video(codec)
    other = video.copy()
    other[:, 0] = 0
    assert not torch.allclose(codec.encode(video), codec.encode(other), atol=1e-4)


def test_decode_is_diffusers_decode_in_levels(codec: WanVAECodec) -> None:
    torch.manual_seed(1)
    channels, frames, height, width = codec.latent_shape(
        NUM_FRAMES, codec.pixels_per_latent, codec.pixels_per_latent * 2
    )
    first = torch.randn(2, channels, 1, height, width)
    latents = torch.randn(2, channels, frames, height, width)
    mean, std = (torch.tensor(values)[:, None, None, None] for values in _statistics(codec))
    with torch.no_grad():
        pixels = codec.vae.decode(torch.cat((first, latents), dim=2) * std + mean).sample
    expected = (pixels / 2 + 0.5).permute(0, 2, 3, 4, 1) * 255
    video = codec.decode(first, latents)
    assert video.dtype == np.uint8
    assert video.shape == (2, NUM_FRAMES, codec.pixels_per_latent, codec.pixels_per_latent * 2, 3)
    assert video.std() > 3  # the comparison below is of a picture, not of a grey field
    assert np.abs(video - expected.numpy()).max() <= 0.501


def test_latents_serve_training_and_the_vae_is_frozen(codec: WanVAECodec) -> None:
    latents = codec.encode(random_video(codec))
    weight = torch.ones((), requires_grad=True)
    (latents * weight).sum().backward()
    assert weight.grad is not None
    assert not any(parameter.requires_grad for parameter in codec.vae.parameters())


@pytest.mark.parametrize(("style", "channels", "side"), [("wan2.1", 3, 8), ("wan2.2", 4, 16)])
def test_latent_shape(style: str, channels: int, side: int) -> None:
    codec = WanVAECodec(random_vae(style))
    assert codec.latent_channels == channels
    assert codec.latent_shape(81, 480, 832) == (channels, 20, 480 // side, 832 // side)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((8, 16, 32), r"num_frames=8 must be 1 \+ 4k with k at least 1; use 9"),
        ((1, 16, 32), r"num_frames=1 must be 1 \+ 4k with k at least 1; use 5"),
        ((9, 20, 32), "20x32 pixels must have .* divisible by the VAE's 16; use 16x32"),
        ((9, 16, 31), "16x31 pixels must have .* divisible by the VAE's 16; use 16x32"),
        ((9, 0, 32), "0x32 pixels must have .* divisible by the VAE's 16; use 16x32"),
    ],
)
def test_sizes_that_do_not_fit(size: tuple[int, int, int], message: str) -> None:
    codec = WanVAECodec(random_vae("wan2.2"))
    with pytest.raises(UserError, match=message):
        codec.latent_shape(*size)
    with pytest.raises(UserError, match=message):
        codec.encode(np.zeros((1, *size, 3), np.uint8))


def test_a_first_frame_that_does_not_fit() -> None:
    codec = WanVAECodec(random_vae("wan2.1"))
    with pytest.raises(UserError, match=r"16x12 pixels .* divisible by the VAE's 8"):
        codec.encode_first(np.zeros((1, 16, 12, 3), np.uint8))


def test_from_pretrained(tmp_path: Path) -> None:
    vae = random_vae("wan2.2")
    vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["clip_output"] = False  # in the published config, and unknown to diffusers' class
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = WanVAECodec.from_pretrained(tmp_path, torch.device("cpu"))
    video = random_video(loaded)
    torch.testing.assert_close(loaded.encode(video), WanVAECodec(vae).encode(video), atol=1e-5, rtol=0)


def test_bfloat16_is_close(codec: WanVAECodec) -> None:
    video = random_video(codec)
    expected = codec.encode(video)
    codec.vae.to(torch.bfloat16)
    latents = codec.encode(video)
    assert latents.dtype == torch.float32
    assert (latents - expected).norm() < 0.1 * expected.norm()
    assert codec.decode(codec.encode_first(video[:, 0]), latents).shape == video.shape


def test_no_checkpoint_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json; give the `vae` folder"):
        WanVAECodec.from_pretrained(tmp_path, torch.device("cpu"))


def _statistics(codec: WanVAECodec) -> tuple[list[float], list[float]]:
    return codec.vae.config.latents_mean, codec.vae.config.latents_std


def test_a_checkpoint_that_lacks_weights(tmp_path: Path) -> None:
    vae = random_vae("wan2.2")
    vae.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if k != "encoder.conv_in.weight"}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks encoder\.conv_in\.weight; download the model again"):
        WanVAECodec.from_pretrained(tmp_path, torch.device("cpu"))
    for cut in (lambda: path.write_bytes(b"cut"), path.unlink):
        cut()
        with pytest.raises(UserError, match=r"is no readable VAE \(.*download the model again") as error:
            WanVAECodec.from_pretrained(tmp_path, torch.device("cpu"))
        assert "\n" not in str(error.value)
