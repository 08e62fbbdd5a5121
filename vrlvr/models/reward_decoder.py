"""A small decoder of Wan latents, for rewards: frames just large enough for the verifier to read.

The full VAE decode of a 480x832x81 video costs six forwards of the 5B transformer. What a reward needs of it is the boards,
whose cells the verifier still reads at a quarter of each side as it does at full size (13 pixels a cell for 9x9 boards), so
this network makes `side` x `side` pixels of a latent position instead of 16 x 16. It computes at the latents' resolution
alone: convolutions over rows and columns, and causal ones over time as the VAE's own are; the last one's channels are the
pixels of four frames. Learnt by vrlvr.distill, checked in use by vrlvr.audit; never used in evaluation.

Shapes: B videos, T/Y/X video frames/rows/columns of the small frames, C latent channels, F/H/W latent frames/rows/columns,
D width.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vrlvr.atomic_write import replacing, write_text, writing
from vrlvr.errors import UserError
from vrlvr.models.wan_vae import FRAMES_PER_LATENT, levels

COLOURS = 3
# Latent positions that pass at once: at width 384 in float32 an activation is then 384 MiB, of which about 4 live at a time.
MAX_LATENTS = 262_144
_CONFIG, _WEIGHTS = "config.json", "reward_decoder.safetensors"


@dataclass(frozen=True, kw_only=True)
class RewardDecoderConfig:
    """Sizes. latent_channels, pixels_per_latent: the VAE's. side: pixels a latent position gives a side; it divides
    pixels_per_latent. width: channels. depth: residual blocks, each of which sees one row and column and two frames further.

    Raises UserError for sizes that do not fit together.
    """

    latent_channels: int = 48
    pixels_per_latent: int = 16
    side: int = 4
    width: int = 384
    depth: int = 8

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise UserError(f"{name}={value!r} of a reward decoder must be a whole number of at least 1")
        if self.pixels_per_latent % self.side:
            raise UserError(
                f"side={self.side} must divide the VAE's {self.pixels_per_latent} pixels a latent position; use "
                f"{max(s for s in range(1, self.side + 1) if self.pixels_per_latent % s == 0)}"
            )


class _Block(nn.Module):
    """x + time(silu(space(silu(x)))): a 3x3 convolution of each frame, then one of three frames, the last two before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.space = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(width, width, (3, 1, 1))
        nn.init.zeros_(self.time.weight)  # a block starts as the identity, but for the time's bias

    def forward(self, x: Tensor) -> Tensor:
        h = functional.silu(self.space(functional.silu(x)))
        return x + self.time(functional.pad(h, (0, 0, 0, 0, 2, 0)))


class RewardDecoder(nn.Module):
    """The decode side of a codec, for frames of `side` / `pixels_per_latent` of the full height and width."""

    def __init__(self, config: RewardDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.entry = nn.Conv3d(config.latent_channels, config.width, (1, 3, 3), padding=(0, 1, 1))
        self.blocks = nn.Sequential(*(_Block(config.width) for _ in range(config.depth)))
        self.exit = nn.Conv3d(config.width, FRAMES_PER_LATENT * config.side**2 * COLOURS, 1)

    def forward(self, latents_BCFHW: Tensor) -> Tensor:
        """Normalised latents, the first frame's in front -> pixels_BCTYX, about [-1, 1]; T = 1 + 4 (F - 1).

        The first latent frame is one frame: the last of the four that it would give, as in the VAE's own shortcuts.
        """
        side = self.config.side
        x = self.exit(functional.silu(self.blocks(self.entry(latents_BCFHW))))
        split = x.unflatten(1, (COLOURS, FRAMES_PER_LATENT, side, side))  # (B, 3, t, y, x, F, H, W)
        pixels = split.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return pixels[:, :, FRAMES_PER_LATENT - 1 :]

    @torch.no_grad()
    def decode(self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor) -> np.ndarray:
        """Normalised latents -> uint8 RGB video_BTYXC of the small size, T = 1 + 4 F. Raises UserError for other latents."""
        channels, weight = latents_BCFHW.shape[1], self.exit.weight
        if channels != self.config.latent_channels:
            raise UserError(
                f"latents of {channels} channels are not those of the VAE that this reward decoder was made for, which has "
                f"{self.config.latent_channels}; run `vrlvr distill-decoder` with this model"
            )
        latents = torch.cat((first_latents_BC1HW, latents_BCFHW), dim=2).to(weight.device, weight.dtype)
        videos = max(1, MAX_LATENTS // latents[0, 0].numel())
        return np.concatenate([levels(self(batch)).cpu().numpy() for batch in latents.split(videos)])

    def save(self, folder: Path, about: Mapping[str, object]) -> None:
        """Writes folder/config.json, with `about` what it was made for and from, and the weights.

        Raises UserError if the disk refuses.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / _WEIGHTS) as path:
            save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, path)
        write_text(folder / _CONFIG, json.dumps({"sizes": asdict(self.config), "about": dict(about)}, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32, vae: str | None = None
    ) -> Self:
        """What `save` wrote, frozen. vae: the fingerprint of the VAE in use.

        Raises UserError if there is none, if it is damaged, or if it was made for another VAE than that.
        """
        try:
            content = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            config, made_for = RewardDecoderConfig(**content["sizes"]), content["about"]["vae"]
            state = load_file(folder / _WEIGHTS)
            decoder = cls(config)
            decoder.load_state_dict(state)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{folder} holds no reward decoder ({reason}); make one with `vrlvr distill-decoder`"
            ) from error
        if vae is not None and vae != made_for:
            raise UserError(
                f"{folder} was made for another VAE ({made_for[:12]}) than this model's ({vae[:12]}); run "
                "`vrlvr distill-decoder` with this model"
            )
        return decoder.to(device, dtype).eval().requires_grad_(False)
