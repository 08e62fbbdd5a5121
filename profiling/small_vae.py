"""A small VAE of Wan2.2's real class, trained on our videos: boards' pixels are far simpler than the world's.

What made it learn within half an hour on one core, where AdamW on planners' videos alone had not after an hour:
- **Random labels.** In a planner's video few cells change. Half of the training videos show a random label in every cell,
  many of which change from frame to frame: every pixel teaches.
- **Muon** (Jordan et al. 2024) for the convolutions: at equal steps the error was half of AdamW's, for a quarter more time.
- **No clamp in training.** diffusers' `decode` cuts pixels to [-1, 1], where a pixel that is too bright has no gradient.
- **Blocks that start as their shortcut:** the last convolution of each residual block starts at zero.

Shapes: B videos, C channels, F latent frames, T/Y/X video frames/rows/columns.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vrlvr.dataset import Recipe
from vrlvr.imperfect import draw_video
from vrlvr.muon import muon_with_adamw

SIZES: dict[str, Any] = {  # those that differ from the class's defaults as Wan2.2's do, but for the widths
    "base_dim": 8,
    "decoder_base_dim": 16,
    "z_dim": 48,
    "num_res_blocks": 1,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}
ABSOLUTE = 0.1  # the weight of the absolute error against the squared one
SCRAMBLED = 0.5  # of the training videos have random labels
LATENT_NOISE = 0.05  # of the latents' deviation: what is near in latents is then near in pixels
_WARMUP_STEPS = 100
_STREAM, _STATISTICS_STREAM, _STATISTICS_VIDEOS = 11, 12, 96


def train_vae(recipe: Recipe, steps: int, batch: int, lr: float, seed: int, report: Callable[[float], None]) -> Any:
    """An AutoencoderKLWan with latents_mean and latents_std of its own, in eval mode.

    batch: videos a step. report: called after every step with the root mean square error in levels.
    """
    import diffusers

    torch.manual_seed(seed)
    neutral = {"latents_mean": [0.0] * SIZES["z_dim"], "latents_std": [1.0] * SIZES["z_dim"]}
    vae = diffusers.AutoencoderKLWan(**SIZES, **neutral).train()
    for module in vae.modules():
        if isinstance(module, diffusers.models.autoencoders.autoencoder_kl_wan.WanResidualBlock):
            nn.init.zeros_(module.conv2.weight)
    optimizer_step = muon_with_adamw(vae, weight_decay=0.0)
    for step in range(steps):
        rng = np.random.default_rng(np.random.SeedSequence([seed, _STREAM, step]))
        pixels = draw_pixels(recipe, batch, rng, SCRAMBLED)
        with torch.autocast("cpu", torch.bfloat16):  # a tenth less time, and the same errors
            latents = vae.encode(pixels).latent_dist.mode().float()
            noise = LATENT_NOISE * latents.detach().std() * torch.randn_like(latents)
            error = decode(vae, latents + noise).float() - pixels
        (error.square().mean() + ABSOLUTE * error.abs().mean()).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer_step(lr * min(1.0, (step + 1) / _WARMUP_STEPS) * (1 + np.cos(np.pi * step / steps)) / 2)
        report(127.5 * error.detach().square().mean().sqrt().item())
    decorrelate(vae.eval(), recipe, np.random.default_rng(np.random.SeedSequence([seed, _STATISTICS_STREAM])))
    return vae


@torch.no_grad()
def decorrelate(vae: Any, recipe: Recipe, rng: np.random.Generator) -> None:
    """Turns latents to their principal axes, which the 1x1x1 convolutions on either side take in: pixels stay as they were.

    A policy learns such latents sooner. latents_std counts the training's noise too, lest axes below it be blown up.
    """
    latents = vae.encode(draw_pixels(recipe, _STATISTICS_VIDEOS, rng)).latent_dist.mode()
    flat = latents.movedim(1, 0).flatten(1).double()
    variances, axes = torch.linalg.eigh(torch.cov(flat))
    axes = axes.float()
    channels, (into, out_of) = len(axes), (vae.quant_conv, vae.post_quant_conv)
    into.weight[:channels] = torch.einsum("za,z...->a...", axes, into.weight[:channels])
    into.bias[:channels] = axes.T @ into.bias[:channels]
    out_of.weight.copy_(torch.einsum("za,oz...->oa...", axes, out_of.weight))
    std = (variances + (LATENT_NOISE * flat.std()) ** 2).sqrt()
    vae.register_to_config(latents_mean=(axes.T @ flat.float().mean(1)).tolist(), latents_std=std.tolist())


def decode(vae: Any, latents_BCFHW: Tensor) -> Tensor:
    """pixels_BCTYX as diffusers' `decode` makes them, latent frame by latent frame, but not cut to [-1, 1]."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    vae.clear_cache()
    frames = []
    for i, latent in enumerate(vae.post_quant_conv(latents_BCFHW).split(1, dim=2)):
        vae._conv_idx = [0]
        frames.append(vae.decoder(latent, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0))
    vae.clear_cache()
    return unpatchify(torch.cat(frames, dim=2), patch_size=vae.config.patch_size)


def draw_pixels(recipe: Recipe, number: int, rng: np.random.Generator, scrambled: float = 0.0) -> Tensor:
    """pixels_BCTYX in [-1, 1] of training puzzles' videos, planner's and spoiled, and a share of random labels."""
    videos = [draw_video(recipe, "train", int(rng.integers(2**31)), rng, scrambled)[1] for _ in range(number)]
    return torch.from_numpy(np.stack(videos)).movedim(-1, 1).float() / 127.5 - 1
