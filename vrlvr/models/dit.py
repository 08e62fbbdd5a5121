"""The Wan diffusion transformer, of any size, with the parameters of diffusers' `WanTransformer3DModel`.

Facts are those of diffusers 0.42 `transformer_wan.py` (Apache-2.0) and of Wan's own `wan/modules/model.py`; the code is
ours, and state dicts go both ways unchanged. What differs is how the time modulation is applied: Wan2.2-TI2V pins its
first latent frame at timestep 0, so a video has two distinct modulations and no more. They are computed once for each
(`num_clean_tokens` splits the tokens in two contiguous ranges) and never per token, which for diffusers' 5B model is
396 MB a block at 5,376 tokens.

Shapes: B videos, C latent channels, F/H/W latent frames/rows/columns, N tokens, D model dimension, E head dimension,
P = E/2 pairs, L text tokens, M text dimension, R modulation rows: one a video, after one for the clean frames if any.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vrlvr.errors import UserError

ROPE_THETA = 10_000.0
TIME_PERIOD = 10_000.0
# Keys of diffusers' config that have one value in every Wan model without CLIP image tokens.
_FIXED_KEYS: dict[str, Any] = {
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Sizes of a Wan transformer, by the names of diffusers' config.json. The defaults are those of Wan2.2-TI2V-5B.

    Raises UserError for sizes that do not fit together.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    in_channels: int = 48
    out_channels: int = 48
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 14336
    num_layers: int = 30
    cross_attn_norm: bool = True
    eps: float = 1e-6
    rope_max_seq_len: int = 1024

    def __post_init__(self) -> None:
        if len(self.patch_size) != 3 or min(self.patch_size) < 1:
            raise UserError(f"patch_size={self.patch_size} must be three sizes of at least 1, as (1, 2, 2)")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < 1:
                raise UserError(f"{field.name}={value} must be at least 1; use a positive size")
        if self.attention_head_dim < 6 or self.attention_head_dim % 2:
            raise UserError(
                f"attention_head_dim={self.attention_head_dim} must be even and at least 6, so that time, rows and "
                "columns each have a rotating pair; use for instance 16"
            )
        if self.freq_dim % 2:
            raise UserError(f"freq_dim={self.freq_dim} must be even (cosines and sines); use {self.freq_dim + 1}")
        if self.eps <= 0:
            raise UserError(f"eps={self.eps} must be positive; use 1e-6")

    @property
    def dim(self) -> int:
        """D, the model dimension."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_diffusers(cls, config: dict[str, Any]) -> Self:
        """From the content of a transformer's config.json. Raises UserError for what this model has not."""
        known = {field.name for field in fields(cls)}
        for key, value in config.items():
            if key in _FIXED_KEYS and value != _FIXED_KEYS[key]:
                raise UserError(f"{key}={value!r} is not supported, only {_FIXED_KEYS[key]!r}; use a T2V or TI2V model")
            if key not in known and key not in _FIXED_KEYS and not key.startswith("_"):
                raise UserError(f"{key}={value!r} is no key of a Wan transformer's config; known are {sorted(known)}")
        sizes = {key: value for key, value in config.items() if key in known and value is not None}
        sizes["patch_size"] = tuple(sizes.get("patch_size", (1, 2, 2)))
        if "in_channels" in sizes:
            sizes.setdefault("out_channels", sizes["in_channels"])
        return cls(**sizes)

    def to_diffusers(self) -> dict[str, Any]:
        """The arguments of diffusers' `WanTransformer3DModel`."""
        return asdict(self) | _FIXED_KEYS


@lru_cache(maxsize=64)
def rope_table(head_dim: int, grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """The 3D rotary embedding of a grid of tokens, in (F, H, W) order: unit complex numbers, complex64 (N, 1, E/2).

    2*(E//6) of the head dimension go to rows, as much to columns and the rest to time.
    """
    side = 2 * (head_dim // 6)
    angles = []
    with torch.inference_mode(False):  # cached: a table first made while sampling must also serve training
        for axis, (dim, size) in enumerate(zip((head_dim - 2 * side, side, side), grid, strict=True)):
            frequency = ROPE_THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
            angle = torch.outer(torch.arange(size, dtype=torch.float64, device=device), frequency)
            shape = [1, 1, 1, dim // 2]
            shape[axis] = size
            angles.append(angle.view(shape).expand(*grid, -1))
        angle_N1P = torch.cat(angles, dim=-1).flatten(0, 2).unsqueeze(1)
        return torch.complex(angle_N1P.cos().float(), angle_N1P.sin().float())


def timestep_frequencies(timestep: Tensor, freq_dim: int) -> Tensor:
    """Cosines, then sines, of any real timesteps in [0, 1000]: float32 (..., freq_dim)."""
    half = freq_dim // 2
    exponent = -math.log(TIME_PERIOD) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angle = timestep.float().unsqueeze(-1) * exponent.exp()
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def patchify(latents_BCFHW: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """(B, C, F, H, W) -> (B, N, C*t*h*w): the non-overlapping patches, in the order of a 3D convolution's weights."""
    B, C, F, H, W = latents_BCFHW.shape
    t, h, w = patch_size
    patches = latents_BCFHW.reshape(B, C, F // t, t, H // h, h, W // w, w)
    return patches.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(B, -1, C * t * h * w)


def unpatchify(tokens: Tensor, grid: tuple[int, int, int], patch_size: tuple[int, int, int]) -> Tensor:
    """(B, N, t*h*w*C) -> (B, C, F, H, W); channels are last in a patch (Wan's order, not that of `patchify`)."""
    B = tokens.shape[0]
    t, h, w = patch_size
    patches = tokens.reshape(B, *grid, t, h, w, -1)
    return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(B, -1, grid[0] * t, grid[1] * h, grid[2] * w)


def scale_shift(x_BND: Tensor, shift_R1D: Tensor, scale_R1D: Tensor, num_clean_tokens: int) -> Tensor:
    """x * (1 + scale) + shift: row 0 for the first num_clean_tokens tokens, the video's own row for the rest."""
    scale_R1D = 1 + scale_R1D
    if num_clean_tokens == 0:
        return torch.addcmul(shift_R1D, x_BND, scale_R1D)
    clean = torch.addcmul(shift_R1D[:1], x_BND[:, :num_clean_tokens], scale_R1D[:1])
    noisy = torch.addcmul(shift_R1D[1:], x_BND[:, num_clean_tokens:], scale_R1D[1:])
    return torch.cat((clean, noisy), dim=1)


def norm_modulate(x_BND: Tensor, shift_R1D: Tensor, scale_R1D: Tensor, num_clean_tokens: int, eps: float) -> Tensor:
    """LayerNorm without weights, then `scale_shift`; statistics and modulation in float32, result in x's dtype."""
    normed = functional.layer_norm(x_BND.float(), x_BND.shape[-1:], eps=eps)
    return scale_shift(normed, shift_R1D, scale_R1D, num_clean_tokens).to(x_BND.dtype)


def gated_residual(x_BND: Tensor, update_BND: Tensor, gate_R1D: Tensor, num_clean_tokens: int) -> Tensor:
    """x + update * gate in float32, rows as in `scale_shift`; result in x's dtype."""
    x, update = x_BND.float(), update_BND.float()
    if num_clean_tokens == 0:
        return torch.addcmul(x, update, gate_R1D).to(x_BND.dtype)
    clean = torch.addcmul(x[:, :num_clean_tokens], update[:, :num_clean_tokens], gate_R1D[:1])
    noisy = torch.addcmul(x[:, num_clean_tokens:], update[:, num_clean_tokens:], gate_R1D[1:])
    return torch.cat((clean, noisy), dim=1).to(x_BND.dtype)


def rotate(x_BNHE: Tensor, rope_N1P: Tensor) -> Tensor:
    """Rotary embedding: neighbours (2i, 2i+1) of a head are a complex number, turned by `rope_table`'s, in float32."""
    pairs = torch.view_as_complex(x_BNHE.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope_N1P).flatten(-2).to(x_BNHE.dtype)


def fused_linear(x: Tensor, *layers: nn.Module) -> Tensor:
    """The layers' outputs side by side, (..., sum of their widths), by one matrix product.

    Layers that something else has wrapped (LoRA) are called one by one: reading their weights would bypass the wrapper.
    """
    if all(type(layer) is nn.Linear for layer in layers):
        weight = torch.cat([layer.weight for layer in layers])  # type: ignore[misc]
        return functional.linear(x, weight, torch.cat([layer.bias for layer in layers]))  # type: ignore[misc]
    return torch.cat([layer(x) for layer in layers], dim=-1)


class _Float32Parameters(nn.Module):
    """Mixin: its own parameters stay float32 when the model is cast to a half precision.

    Of what diffusers keeps in float32 (`_keep_in_fp32_modules`) and, as in Wan's own code, of the time projection.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return tensor.to(result.device) if result.dtype in (torch.bfloat16, torch.float16) else result

        if recurse:
            for child in self.children():
                child._apply(fn)
        return super()._apply(keep, recurse=False)


class _Float32Linear(_Float32Parameters, nn.Linear):
    pass


class _Float32LayerNorm(_Float32Parameters, nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with RMSNorm of queries and keys across all heads."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.to_q = nn.Linear(config.dim, config.dim)
        self.to_k = nn.Linear(config.dim, config.dim)
        self.to_v = nn.Linear(config.dim, config.dim)
        self.to_out = nn.ModuleList([nn.Linear(config.dim, config.dim)])
        self.norm_q = nn.RMSNorm(config.dim, eps=config.eps)
        self.norm_k = nn.RMSNorm(config.dim, eps=config.eps)

    def _attend(self, q_BNHE: Tensor, k_BLHE: Tensor, v_BLHE: Tensor) -> Tensor:
        heads_BHNE = functional.scaled_dot_product_attention(
            q_BNHE.transpose(1, 2), k_BLHE.transpose(1, 2), v_BLHE.transpose(1, 2)
        )
        return self.to_out[0](heads_BHNE.transpose(1, 2).flatten(2))

    def over_self(self, x_BND: Tensor, rope: Tensor) -> Tensor:
        """Self-attention: (B, N, D) -> (B, N, D)."""
        q, k, v = fused_linear(x_BND, self.to_q, self.to_k, self.to_v).chunk(3, dim=-1)
        heads = (self.num_heads, -1)
        q, k = self.norm_q(q).unflatten(-1, heads), self.norm_k(k).unflatten(-1, heads)
        return self._attend(rotate(q, rope), rotate(k, rope), v.unflatten(-1, heads))

    def over_text(self, x_BND: Tensor, text_BLD: Tensor) -> Tensor:
        """Cross-attention: (B, N, D) -> (B, N, D)."""
        k, v = fused_linear(text_BLD, self.to_k, self.to_v).chunk(2, dim=-1)
        heads = (self.num_heads, -1)
        q, k = self.norm_q(self.to_q(x_BND)).unflatten(-1, heads), self.norm_k(k).unflatten(-1, heads)
        return self._attend(q, k, v.unflatten(-1, heads))

    def over_one_text_token(self, text_B1D: Tensor) -> Tensor:
        """`over_text` for L = 1, (B, 1, D) for all tokens: the softmax over one key is 1, whatever the query."""
        return self.to_out[0](self.to_v(text_B1D))


class _GeluProjection(nn.Module):
    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, ffn_dim)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        # Place 1 is diffusers' dropout, which has no parameters and which Wan does not use.
        self.net = nn.Sequential(_GeluProjection(dim, ffn_dim), nn.Identity(), nn.Linear(ffn_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(_Float32Parameters):
    """Self-attention, cross-attention, feed-forward."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.attn1 = Attention(config)
        self.attn2 = Attention(config)
        self.norm2 = _Float32LayerNorm(config.dim, config.eps) if config.cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(config.dim, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, text_BLD: Tensor, time_R6D: Tensor, rope: Tensor, num_clean_tokens: int) -> Tensor:
        modulation_R61D = (self.scale_shift_table + time_R6D).unsqueeze(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation_R61D.unbind(1)
        normed = norm_modulate(x, shift1, scale1, num_clean_tokens, self.eps)
        x = gated_residual(x, self.attn1.over_self(normed, rope), gate1, num_clean_tokens)
        if text_BLD.shape[1] == 1:
            x = x + self.attn2.over_one_text_token(text_BLD)
        else:
            x = x + self.attn2.over_text(self.norm2(x), text_BLD)
        normed = norm_modulate(x, shift2, scale2, num_clean_tokens, self.eps)
        return gated_residual(x, self.ffn(normed), gate2, num_clean_tokens)


class _TwoLinears(nn.Module):
    """Linear, activation, linear, under diffusers' names."""

    def __init__(self, linear: type[nn.Linear], in_dim: int, dim: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear_1 = linear(in_dim, dim)
        self.linear_2 = linear(dim, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


class ConditionEmbedder(nn.Module):
    """Timesteps and text to the model's dimension."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder = _TwoLinears(_Float32Linear, config.freq_dim, config.dim, functional.silu)
        self.time_proj = _Float32Linear(config.dim, 6 * config.dim)
        self.text_embedder = _TwoLinears(nn.Linear, config.text_dim, config.dim, _gelu_tanh)

    def time(self, timestep_R: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) -> embedding (R, D) and the blocks' modulation (R, 6, D)."""
        embedding_RD = self.time_embedder(timestep_frequencies(timestep_R, self.freq_dim))
        return embedding_RD, self.time_proj(functional.silu(embedding_RD)).unflatten(-1, (6, -1))


class WanTransformer(_Float32Parameters):
    """The velocity model. With `checkpointing` the backward pass recomputes each block's activations."""

    def __init__(self, config: WanConfig, checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        # A convolution by name and shape only: its stride is its kernel size, so it is a linear layer of patches.
        self.patch_embedding = nn.Conv3d(config.in_channels, config.dim, config.patch_size, config.patch_size)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.proj_out = nn.Linear(config.dim, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def init_weights(self) -> None:
        """For training from scratch: weights uniform within 1 / sqrt(fan-in), biases zero, and so is the first velocity.

        Validation loss after 400 steps of flow matching on the three puzzles at the tiny size, two seeds: .237 and .233;
        with Wan's own initialisation (xavier, embedders of std 0.02) .313 and .342.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.proj_out.weight)

    def _grid(self, latents_BCFHW: Tensor, num_clean_frames: int) -> tuple[int, int, int]:
        """Patches per axis. Raises UserError for latents that the model cannot take."""
        _, channels, *sizes = latents_BCFHW.shape
        if channels != self.config.in_channels:
            raise UserError(f"latents have {channels} channels, the model takes in_channels={self.config.in_channels}")
        for name, size, patch in zip(("frames", "rows", "columns"), sizes, self.config.patch_size, strict=True):
            if size % patch or size < patch or size // patch > self.config.rope_max_seq_len:
                raise UserError(
                    f"{size} latent {name} must be a positive multiple of the patch size {patch}, at most "
                    f"{patch * self.config.rope_max_seq_len}; use another video size"
                )
        if not 0 <= num_clean_frames <= sizes[0] or num_clean_frames % self.config.patch_size[0]:
            raise UserError(
                f"num_clean_frames={num_clean_frames} must be a multiple of the patch size {self.config.patch_size[0]} "
                f"from 0 to the {sizes[0]} latent frames"
            )
        grid = [size // patch for size, patch in zip(sizes, self.config.patch_size, strict=True)]
        return grid[0], grid[1], grid[2]

    def forward(self, latents_BCFHW: Tensor, timestep_B: Tensor, text_BLM: Tensor, num_clean_frames: int = 0) -> Tensor:
        """Velocity (B, out_channels, F, H, W), in the latents' dtype.

        timestep_B: any reals in [0, 1000], sigma * 1000, never rounded. text_BLM: (B, L, text_dim).
        The first num_clean_frames latent frames are at timestep 0 (Wan2.2-TI2V's clean image), the rest at timestep_B.
        in_channels may exceed out_channels: the caller has then concatenated a condition to the latents.
        Raises UserError for sizes that do not fit.
        """
        config = self.config
        grid = self._grid(latents_BCFHW, num_clean_frames)
        if timestep_B.shape != latents_BCFHW.shape[:1]:
            raise UserError(f"timestep of shape {tuple(timestep_B.shape)} must be ({len(latents_BCFHW)},), one a video")
        num_clean_tokens = num_clean_frames // config.patch_size[0] * grid[1] * grid[2]
        rope = rope_table(config.attention_head_dim, grid, latents_BCFHW.device)

        dtype = self.patch_embedding.weight.dtype
        patches = patchify(latents_BCFHW.to(dtype), config.patch_size)
        x = functional.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        text = self.condition_embedder.text_embedder(text_BLM.to(dtype))
        timestep_R = functional.pad(timestep_B.float(), (1, 0)) if num_clean_tokens else timestep_B
        embedding_RD, time_R6D = self.condition_embedder.time(timestep_R)

        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, text, time_R6D, rope, num_clean_tokens, use_reentrant=False)
            else:
                x = block(x, text, time_R6D, rope, num_clean_tokens)

        shift, scale = (self.scale_shift_table + embedding_RD.unsqueeze(1)).unsqueeze(2).unbind(1)
        x = norm_modulate(x, shift, scale, num_clean_tokens, config.eps)
        return unpatchify(self.proj_out(x), grid, config.patch_size).to(latents_BCFHW.dtype)
