"""Wan2.2-I2V-A14B for evaluation: one transformer for high noise, another for low noise, and its image conditioning.

Facts are those of diffusers 0.42 `pipeline_wan_i2v.py` (Apache-2.0). Unlike TI2V, this model pins nothing: it generates
every latent frame, the first one too, and reads its image by channel: a mask of 4 channels (1 in latent frame 0) and the
latents of the clip that shows the image and then mid-grey. So here F counts latent frame 0, and `Experts` is a velocity for
`vrlvr.sampling.sample` with shape (C, F, H, W) and with `image_condition` in the place of the first frame.

Shapes: B videos, P prompts, C latent channels, F/H/W latent frames/rows/columns, L text tokens, M text dimension.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vrlvr.errors import UserError
from vrlvr.models.dit import WanTransformer
from vrlvr.models.wan import load_transformer
from vrlvr.models.wan_layout import component_class, conditioning_of, read_index
from vrlvr.models.wan_vae import FRAMES_PER_LATENT, WanVAECodec

HIGH_NOISE, LOW_NOISE = "transformer", "transformer_2"


class Experts:
    """The velocity of two transformers: the first where sigma is at least the boundary, the second below it.

    Both stay on the device: 28 GB each in bfloat16 at 14 B parameters. For evaluation only: no gradients.
    """

    def __init__(self, high: WanTransformer, low: WanTransformer, boundary: float, text_PLM: Tensor) -> None:
        """boundary: a sigma. text_PLM: embedded prompts, whose keys and values are computed here, once."""
        self.boundary = boundary
        with torch.no_grad():
            self._experts = [(dit, dit.text_context(text_PLM)) for dit in (high, low)]

    @torch.no_grad()
    def __call__(self, x_BCFHW: Tensor, sigma_B: Tensor, condition_BCFHW: Tensor, prompt_B: Tensor) -> Tensor:
        """Velocity (B, C, F, H, W), float32. sigma_B: one value for the whole batch."""
        # Compared as tensors: a sigma that equals the boundary but for float32's rounding is the first expert's.
        is_high = sigma_B >= self.boundary
        assert bool((is_high == is_high[0]).all()), "a batch must be on one side of the boundary"
        dit, context = self._experts[0 if is_high[0] else 1]
        return dit(torch.cat((x_BCFHW, condition_BCFHW), dim=1), sigma_B * 1000.0, context.of(prompt_B)).float()


def find_experts(folder: Path) -> float | None:
    """The sigma at which a folder's model hands over to its second expert; None if it has one transformer.

    Raises UserError if the folder is none of Diffusers', or names a second expert and no boundary_ratio in (0, 1).
    """
    index = read_index(folder)
    if component_class(index, LOW_NOISE) is None:
        return None
    boundary = index.get("boundary_ratio")
    if not isinstance(boundary, float) or not 0 < boundary < 1:
        raise UserError(
            f"{folder} has a {LOW_NOISE}, but boundary_ratio={boundary} in its model_index.json, which must lie between 0 "
            "and 1; set that of the published model (0.9 for Wan2.2-I2V-A14B)"
        )
    return boundary


def load_experts(
    folder: Path,
    device: torch.device,
    text_PLM: Tensor,
    dtype: torch.dtype = torch.bfloat16,
    attention: str = "auto",
) -> Experts:
    """Both experts of a folder like Wan2.2-I2V-A14B's. Raises UserError if it is not such a folder."""
    boundary = find_experts(folder)
    if boundary is None:
        raise UserError(f"{folder} has no {LOW_NOISE}; load its one transformer with `load_transformer`")
    for name in (HIGH_NOISE, LOW_NOISE):
        if conditioning_of(folder, name) != "concat":
            raise UserError(f"{folder}: {name} must take its image by channel; use Wan2.2-I2V-A14B-Diffusers")
    load = partial(load_transformer, folder, device, dtype, attention=attention)
    return Experts(load(name=HIGH_NOISE), load(name=LOW_NOISE), boundary, text_PLM)


def image_condition(codec: WanVAECodec, frames_BYXC: np.ndarray, num_frames: int) -> Tensor:
    """uint8 first frames -> float32 (B, 4 + C, F, H, W): the mask, then the latents of the image followed by mid-grey.

    Raises UserError if the sizes do not fit.
    """
    _, height, width, _ = frames_BYXC.shape
    codec.latent_shape(num_frames, height, width)
    first_BCTYX = torch.from_numpy(frames_BYXC).to(codec.vae.device).movedim(-1, 1).float().unsqueeze(2) / 127.5 - 1
    grey_BCTYX = first_BCTYX.new_zeros(1).expand(*first_BCTYX.shape[:2], num_frames - 1, height, width)
    latents_BCFHW = codec.encode_pixels(torch.cat((first_BCTYX, grey_BCTYX), dim=2))
    mask_BCFHW = torch.zeros_like(latents_BCFHW[:, :1]).repeat(1, FRAMES_PER_LATENT, 1, 1, 1)
    mask_BCFHW[:, :, 0] = 1
    return torch.cat((mask_BCFHW, latents_BCFHW), dim=1)
