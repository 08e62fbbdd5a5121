"""The Wan VAE's decoder on the weights of diffusers' `AutoencoderKLWan`, computed in large chunks of frames.

diffusers 0.42 (`autoencoder_kl_wan.py`, Apache-2.0) decodes one latent frame at a time, in some ten passes over memory
between two convolutions. The function is the same here, to rounding; what differs is how it is computed:
- After latent frame 0, which alone is not doubled in time, any number of latent frames go through at once. Every causal
  convolution keeps the last frames of its input for the next chunk.
- Activations are channels-last. A norm, its SiLU and the frames kept from before are written straight into the buffer that
  the convolution reads; its spatial zeros are the convolution's own padding.
- Doubling rows and columns and the 3x3 convolution after it are one convolution of 2x2 taps with an output for each of the
  four pixels (Shi et al., arXiv 1609.05158): 4/9 of the multiplications, and nothing is enlarged before them.
- Nothing is captured in CUDA graphs: four latent frames of 480x832 are 105 TFLOP in some 420 kernels, which are launched long
  before they are due.
- A window of the pixels costs little more than its share of them: attention, which looks everywhere, is over before anything
  is enlarged, and from there on each stage computes just what the window's convolutions see.

Shapes: B videos, C channels, F latent frames, T video frames, H/W rows/columns of the stage at hand.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Past = dict[Any, Tensor]  # by causal convolution: the last frames of its input so far


class Window(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of latent positions."""

    top: int
    bottom: int
    left: int
    right: int


class WanDecoder:
    """Decodes with the weights of an AutoencoderKLWan, whose convolutions are set to channels-last."""

    def __init__(self, vae: Any) -> None:
        """vae: frozen from here on. Copies of the convolutions after an upsampling are kept, 16/9 of their size."""
        self._vae = vae
        for conv in (module for module in vae.decoder.modules() if isinstance(module, torch.nn.Conv3d)):
            weight = conv.weight.data
            conv.weight.data = weight.contiguous(memory_format=torch.channels_last_3d)
            if (
                weight.is_cuda
            ):  # loaded on another stream than this one, which must not reuse the memory before it is read
                weight.record_stream(torch.cuda.current_stream(weight.device))
        upsamplers = (_upsampler(block) for block in vae.decoder.up_blocks)
        self._pixel_weights = {u: pixel_weights(u.resample[1].weight) for u in upsamplers if u is not None}

    @torch.no_grad()
    def chunks(self, latents_BCFHW: Tensor, chunk_frames: int, window: Window | None = None) -> Iterator[Tensor]:
        """Pixels (B, 3, T, Y, X) in [-1, 1]: of latent frame 0 (T = 1), then of chunk_frames more at a time (T = 4 each).

        window: the positions whose pixels are wanted, by default all; they are those of the whole, to rounding.
        """
        past: Past = {}
        vae = self._vae
        window = window or Window(0, latents_BCFHW.shape[3], 0, latents_BCFHW.shape[4])
        x = functional.conv3d(latents_BCFHW, vae.post_quant_conv.weight, vae.post_quant_conv.bias)
        for i, chunk in enumerate((x[:, :, :1], *x[:, :, 1:].split(chunk_frames, dim=2))):
            if chunk.shape[2]:
                pixels = self._decode(chunk.contiguous(memory_format=torch.channels_last_3d), past, i == 0, window)
                yield unpatchify(pixels, vae.config.patch_size or 1).clamp_(-1, 1)

    def _decode(self, x: Tensor, past: Past, first: bool, window: Window) -> Tensor:
        """A chunk through the decoder. first: it is latent frame 0, which has no frames before it and is not doubled."""
        decoder = self._vae.decoder
        whole = held = Window(0, x.shape[3], 0, x.shape[4])
        sides = 1  # of x, for each of the latents'
        x = causal_conv(decoder.conv_in, x, past)
        mid = decoder.mid_block
        x = residual_block(mid.resnets[0], x, past)
        for attention, block in zip(mid.attentions, mid.resnets[1:], strict=True):
            x = residual_block(block, attention(x).contiguous(memory_format=torch.channels_last_3d), past)
        for up_block, margin in zip(decoder.up_blocks, margins(decoder.up_blocks), strict=True):
            x, held = crop(x, held, widened(window, whole, sides, margin))
            entry = x
            for block in up_block.resnets:
                x = residual_block(block, x, past)
            if (upsampler := _upsampler(up_block)) is not None:
                if upsampler.mode == "upsample3d" and not first:
                    x = double_frames(upsampler.time_conv, x, past)
                x = double_sides(self._pixel_weights[upsampler], upsampler.resample[1].bias, x)
            if (shortcut := getattr(up_block, "avg_shortcut", None)) is not None:
                add_repeated(x, entry, shortcut, first)
            if upsampler is not None:
                sides, held = 2 * sides, Window(*(2 * edge for edge in held))
        x = norm_silu_conv(decoder.norm_out, decoder.conv_out, x, past)
        return crop(x, held, widened(window, whole, sides, 0))[0]


def _upsampler(up_block: Any) -> Any:
    """A block's upsampler, or None: Wan2.2's blocks have one, Wan2.1's a list of one."""
    upsamplers = getattr(up_block, "upsamplers", None)
    return upsamplers[0] if upsamplers else getattr(up_block, "upsampler", None)


def margins(up_blocks: Any) -> list[int]:
    """For each block the rows of its input that pixels depend on beyond their own, likewise the columns."""
    needed, by_block = 1, []  # conv_out sees one row further on either side
    for block in reversed(up_blocks):
        if _upsampler(block) is not None:
            needed = (needed + 1) // 2 + 1  # two rows are made of one, and its neighbours
        needed += 2 * len(block.resnets)  # of two 3x3 convolutions each
        by_block.append(needed)
    return by_block[::-1]


def widened(window: Window, whole: Window, sides: int, margin: int) -> Window:
    """A window at `sides` times the latents' resolution, with `margin` more on either side, where the whole goes so far."""
    top, bottom, left, right = (sides * edge for edge in window)
    return Window(
        max(0, top - margin),
        min(sides * whole.bottom, bottom + margin),
        max(0, left - margin),
        min(sides * whole.right, right + margin),
    )


def crop(x: Tensor, held: Window, wanted: Window) -> tuple[Tensor, Window]:
    """What is wanted of x (B, C, T, H, W), which holds a window of its own; and the window that the result holds."""
    if wanted == held:
        return x, held
    rows = slice(wanted.top - held.top, wanted.bottom - held.top)
    columns = slice(wanted.left - held.left, wanted.right - held.left)
    return x[..., rows, columns].contiguous(memory_format=torch.channels_last_3d), wanted


def causal_conv(conv: Any, x: Tensor, past: Past) -> Tensor:
    """A convolution that in time sees the present and what came before: x (B, C, T, H, W) -> (B, C', T, H, W)."""
    return _conv(conv, torch.cat((_before(conv, x, past), x), dim=2), past)


def norm_silu_conv(norm: Any, conv: Any, x: Tensor, past: Past) -> Tensor:
    """conv(silu(norm(x))), causal; the norm is that of the channels, x * sqrt(C) / |x|, with a learnt scale."""
    before = _before(conv, x, past)
    kept, frames = before.shape[2], x.shape[2]
    size = (*x.shape[:2], kept + frames, *x.shape[3:])
    joined = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    joined[:, :, :kept] = before
    present = joined[:, :, kept:]
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min_(1e-12)
    torch.mul(x, (norm.scale / length).to(x.dtype), out=present)
    functional.silu(present.mul_(norm.gamma), inplace=True)
    return _conv(conv, joined, past)


def _before(conv: Any, x: Tensor, past: Past) -> Tensor:
    """The frames that conv needs before x; zeros where there are none yet."""
    frames = conv.kernel_size[0] - 1
    return past[conv] if conv in past else x.new_zeros((*x.shape[:2], frames, *x.shape[3:]))


def _conv(conv: Any, joined: Tensor, past: Past) -> Tensor:
    """The convolution of frames that have those before them in front, the last of which are kept."""
    if (frames := conv.kernel_size[0] - 1) > 0:
        past[conv] = joined[:, :, -frames:].clone()
    _, rows, columns = conv.kernel_size
    return functional.conv3d(joined, conv.weight, conv.bias, padding=(0, rows // 2, columns // 2))


def residual_block(block: Any, x: Tensor, past: Past) -> Tensor:
    h = norm_silu_conv(block.norm1, block.conv1, x, past)
    h = norm_silu_conv(block.norm2, block.conv2, h, past)
    same = isinstance(block.conv_shortcut, torch.nn.Identity)
    return h.add_(x if same else functional.conv3d(x, block.conv_shortcut.weight, block.conv_shortcut.bias))


def double_frames(time_conv: Any, x: Tensor, past: Past) -> Tensor:
    """(B, C, T, H, W) -> (B, C, 2T, H, W): the convolution's two halves of channels are the even and the odd frames."""
    halves = causal_conv(time_conv, x, past).unflatten(1, (2, -1))
    return halves.movedim(1, 3).flatten(2, 3).contiguous(memory_format=torch.channels_last_3d)


def pixel_weights(weight_OIYX: Tensor) -> Tensor:
    """The 2x2 taps (4 O, I, 2, 2) that give the four pixels of what a 3x3 convolution makes of an enlarged image.

    Of an image whose rows are doubled, output row 2i sees rows i-1, i, i of the original, and row 2i+1 rows i, i, i+1.
    """
    weight = weight_OIYX.float()
    for dim in (-2, -1):
        a, b, c = weight.unbind(dim)
        even, odd = torch.stack((a, b + c), dim), torch.stack((a + b, c), dim)
        weight = torch.stack((even, odd))  # (x, y, O, I, 2, 2) in the end
    weight = weight.transpose(0, 1).flatten(0, 2).to(weight_OIYX.dtype)
    return weight.contiguous(memory_format=torch.channels_last)


def double_sides(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B, C', T, 2H, 2W), by the `pixel_weights` of a 3x3 convolution and its bias (C',)."""
    b, _, t, h, w = x.shape
    images = x.movedim(2, 1).flatten(0, 1)
    pixels = functional.conv2d(images, weight, bias.repeat(4), padding=1).unflatten(1, (2, 2, -1))
    size = (b * t, len(bias), 2 * h, 2 * w)
    result = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for row in (0, 1):
        for column in (0, 1):
            result[:, :, row::2, column::2] = pixels[:, row, column, :, row : row + h, column : column + w]
    return result.unflatten(0, (b, t)).movedim(1, 2)


def add_repeated(x: Tensor, entry: Tensor, shortcut: Any, first: bool) -> None:
    """Adds to x (B, C, T f, 2H, 2W) in place diffusers' DupUp3D of a block's input, entry (B, C'', T, H, W).

    f: 2 where the block doubles frames. Channel, frame, row and column of x, in this order, count entry's channels, each
    `repeats` times. first: of latent frame 0's two copies only the second is there.
    """
    factor_t = shortcut.factor_t
    source = torch.arange(x.shape[1] * factor_t * 4, device=x.device).view(-1, factor_t, 2, 2) // shortcut.repeats
    copies = source[:, -1:] if first else source
    for frame in range(copies.shape[1]):
        for row in (0, 1):
            for column in (0, 1):
                x[:, :, frame :: copies.shape[1], row::2, column::2] += entry[:, copies[:, frame, row, column]]


def unpatchify(pixels: Tensor, side: int) -> Tensor:
    """(B, 3 side^2, T, H, W) -> (B, 3, T, H side, W side); a pixel's channels count colours, then columns, then rows."""
    split = pixels.unflatten(1, (-1, side, side))
    return split.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
