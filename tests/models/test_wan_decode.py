"""The chunked decode against diffusers' frame by frame one, on small random VAEs of the real class."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from wan_folder import WAN21_VAE, WAN22_VAE, tiny_vae

from vrlvr.models.wan_decode import WanDecoder, Window, double_sides, margins, pixel_weights

STYLES = {"wan2.1": WAN21_VAE, "wan2.2": WAN22_VAE}
FRAMES = 6


@pytest.fixture(params=STYLES)
def vae(request: pytest.FixtureRequest) -> Any:
    """Norms' scales and attention's output, which start at 1 and 0, are moved too."""
    torch.manual_seed(0)
    vae = tiny_vae(STYLES[request.param])
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vae.requires_grad_(False)


def random_latents(vae: Any, frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(2, vae.config.z_dim, frames, 3, 2, generator=torch.Generator().manual_seed(1))


def decode(decoder: WanDecoder, latents: torch.Tensor, chunk_frames: int) -> torch.Tensor:
    return torch.cat(list(decoder.chunks(latents, chunk_frames)), dim=2)


@pytest.mark.parametrize("chunk_frames", [1, 2, 3, 5, 100])
def test_any_chunks_give_diffusers_decode(vae: Any, chunk_frames: int) -> None:
    latents = random_latents(vae)
    with torch.no_grad():
        expected = vae.double().decode(latents.double()).sample
        vae.float()
    assert expected.shape[2] == 1 + 4 * (FRAMES - 1)
    assert expected.std() > 0.1
    assert (expected.abs() < 1).double().mean() > 0.5  # the comparison is not of clamped values
    assert expected.diff(dim=2).abs().mean() > 0.01  # nor of a still
    pixels = decode(WanDecoder(vae), latents, chunk_frames)
    torch.testing.assert_close(pixels.double(), expected, atol=1e-5, rtol=0)


def test_one_latent_frame_is_one_frame(vae: Any) -> None:
    latents = random_latents(vae, frames=1)
    with torch.no_grad():
        expected = vae.decode(latents).sample
    pixels = decode(WanDecoder(vae), latents, chunk_frames=4)
    assert pixels.shape[2] == 1
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_chunks_hold_what_they_say(vae: Any) -> None:
    frames = [chunk.shape[2] for chunk in WanDecoder(vae).chunks(random_latents(vae), 2)]
    assert frames == [1, 8, 8, 4]


def test_two_decodes_share_nothing(vae: Any) -> None:
    """Decodes that run by turns, as on two streams, each have their own past."""
    decoder, latents = WanDecoder(vae), random_latents(vae)
    pairs = list(zip(decoder.chunks(latents, 2), decoder.chunks(-latents, 2), strict=True))
    assert torch.equal(torch.cat([pair[0] for pair in pairs], dim=2), decode(decoder, latents, 2))
    assert torch.equal(torch.cat([pair[1] for pair in pairs], dim=2), decode(decoder, -latents, 2))


def test_bfloat16_is_as_close_as_diffusers(vae: Any) -> None:
    latents = random_latents(vae)
    with torch.no_grad():
        exact = vae.decode(latents).sample
        vae.bfloat16()
        theirs = vae.decode(latents.bfloat16()).sample
    ours = decode(WanDecoder(vae), latents.bfloat16(), 3)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).norm() < 1.25 * (theirs - exact).norm()


def test_fewer_operations_than_diffusers(vae: Any) -> None:
    """By 5/9 of the convolutions after an upsampling; counted, the border that a 2x2 kernel adds included."""
    latents = torch.randn(1, vae.config.z_dim, 3, 8, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        vae.decode(latents)
    decoder = WanDecoder(vae)
    with FlopCounterMode(display=False) as ours:
        decode(decoder, latents, 2)
    assert 0.85 < ours.get_total_flops() / theirs.get_total_flops() < 0.97


WINDOWS = [
    Window(9, 11, 12, 13),
    Window(0, 3, 21, 24),
    Window(17, 20, 0, 1),
    Window(0, 20, 10, 12),
    Window(0, 20, 0, 24),
]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_is_what_the_whole_shows_there(vae: Any, window: Window) -> None:
    decoder = WanDecoder(vae)
    latents = torch.randn(1, vae.config.z_dim, 3, 20, 24, generator=torch.Generator().manual_seed(2))
    side = 8 * (vae.config.patch_size or 1)
    whole = decode(decoder, latents, 1)
    expected = whole[..., side * window.top : side * window.bottom, side * window.left : side * window.right]
    pixels = torch.cat(list(decoder.chunks(latents, 1, window)), dim=2)
    assert expected.std() > 0.1
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_a_window_depends_on_no_less_than_its_margins(vae: Any) -> None:
    """With one row less at the last stage its edge changes: what is computed beyond it is needed."""
    assert margins(vae.decoder.up_blocks)[-1] == 1 + 2 * len(vae.decoder.up_blocks[-1].resnets)
    decoder, window = WanDecoder(vae), Window(9, 11, 12, 13)
    latents = torch.randn(1, vae.config.z_dim, 1, 20, 24, generator=torch.Generator().manual_seed(2))
    expected = torch.cat(list(decoder.chunks(latents, 1, window)), dim=2)
    lean = [margin - 1 for margin in margins(vae.decoder.up_blocks)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vrlvr.models.wan_decode.margins", lambda up_blocks: lean)
        assert not torch.allclose(torch.cat(list(decoder.chunks(latents, 1, window)), dim=2), expected, atol=1e-5)


def test_a_small_window_costs_little(vae: Any) -> None:
    decoder = WanDecoder(vae)

    def cost(window: Window | None) -> int:
        with FlopCounterMode(display=False) as counter:
            list(decoder.chunks(torch.empty(1, vae.config.z_dim, 3, 30, 52, device="meta"), 2, window))
        return counter.get_total_flops()

    vae.to("meta")
    decoder = WanDecoder(vae)
    assert cost(Window(12, 15, 24, 27)) < 0.25 * cost(None)


def test_doubling_is_enlarging_then_convolving() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 4, 5, 6).double(), torch.randn(7, 3, 3, 3), torch.randn(7).double()
    expected = functional.conv2d(
        functional.interpolate(x.transpose(1, 2).flatten(0, 1), scale_factor=2, mode="nearest-exact"),
        weight.double(), bias, padding=1,
    ).unflatten(0, (2, 4)).transpose(1, 2)  # fmt: skip
    torch.testing.assert_close(double_sides(pixel_weights(weight).double(), bias, x), expected, atol=1e-5, rtol=0)
