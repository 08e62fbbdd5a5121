"""The sizes that the scripts here run at: the 5B model for a GPU, a tiny one that shows on a CPU that they run at all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from vrlvr.models.dit import WanConfig

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Size:
    """latents: (C, F, H, W) by number of tokens, the first frame among them. dtype: of the weights."""

    config: WanConfig
    latents: dict[int, tuple[int, int, int, int]]
    num_text_tokens: int
    dtype: torch.dtype


SIZES = {
    "tiny": Size(
        WanConfig(
            num_attention_heads=2,
            attention_head_dim=32,
            in_channels=8,
            out_channels=8,
            text_dim=32,
            freq_dim=32,
            ffn_dim=256,
            num_layers=2,
        ),
        {48: (8, 3, 8, 8), 96: (8, 6, 8, 8)},
        num_text_tokens=8,
        dtype=torch.float32,
    ),
    # 480x832 and 704x1280 pixels in 81 and 121 frames.
    "5b": Size(
        WanConfig(),
        {8190: (48, 21, 30, 52), 27280: (48, 31, 44, 80)},
        num_text_tokens=512,
        dtype=torch.bfloat16,
    ),
}


def default_size(device: torch.device) -> str:
    return "5b" if device.type == "cuda" else "tiny"


def default_layers(device: torch.device) -> int | None:
    """All, but for a GPU that cannot hold the 5B model with its gradients and optimizer: 84 GiB."""
    if device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < 100 * 2**30:
        return 20
    return None


def random_model(make: Callable[[], Model], size: Size, device: torch.device) -> Model:
    """make(), a transformer with random weights in the size's dtype, on the device. The same weights every time."""
    torch.manual_seed(0)
    with torch.device(device):
        model = make()
    return model.bfloat16() if size.dtype == torch.bfloat16 else model


def random_inputs(size: Size, num_tokens: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """latents_BCFHW float32, timestep_B and text_BLM of a batch."""
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(1)
    latents = torch.randn(batch, *size.latents[num_tokens], generator=generator, device=device)
    text_shape = (batch, size.num_text_tokens, size.config.text_dim)
    text = torch.randn(text_shape, generator=generator, device=device, dtype=size.dtype)
    return latents, torch.linspace(300.0, 900.0, batch, device=device), text
