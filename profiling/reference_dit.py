"""What ours is compared with: the Wan transformer as diffusers 0.42 runs it for TI2V, written from knowledge of that code.

Kept as it is there: one timestep per token, so that the time embedding, its projection and every block's float32 modulation
(B, N, 6, D) exist in memory; separate q, k, v projections; LayerNorm in float32; rotary embedding on strided halves; PyTorch's
default attention; checkpointing of whole blocks. State dicts are those of `vrlvr.models.dit.WanTransformer` and of diffusers.

Shapes: as in `vrlvr.models.dit`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vrlvr.models.dit import WanConfig

# `_keep_in_fp32_modules` of diffusers' class, as far as they have parameters.
FLOAT32 = ("time_embedder", "scale_shift_table", "norm2")


class Float32LayerNorm(nn.LayerNorm):
    """LayerNorm in float32, the result in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return functional.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class RotaryTables(nn.Module):
    """Cosines and sines of each axis, float32 (max_seq_len, E), every angle twice; expanded over the grid at each forward."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        side = 2 * (config.attention_head_dim // 6)
        self.sizes = [config.attention_head_dim - 2 * side, side, side]
        place = torch.arange(config.rope_max_seq_len, dtype=torch.float64)
        angles = [
            torch.outer(place, 10_000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)) for dim in self.sizes
        ]
        angle = torch.cat(angles, dim=1).repeat_interleave(2, dim=1)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, latents_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all tokens, (1, N, 1, E) each."""
        grid = [size // patch for size, patch in zip(latents_BCFHW.shape[2:], self.patch_size, strict=True)]

        def over_grid(table: Tensor) -> Tensor:
            parts = []
            for axis, part in enumerate(table.split(self.sizes, dim=1)):
                shape = [1, 1, 1, -1]
                shape[axis] = grid[axis]
                parts.append(part[: grid[axis]].view(shape).expand(*grid, -1))
            return torch.cat(parts, dim=-1).reshape(1, math.prod(grid), 1, -1)

        return over_grid(self.cos), over_grid(self.sin)


def rotate(x_BNHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of neighbours (2i, 2i + 1), written to strided halves of a new tensor."""
    even, odd = x_BNHE.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    rotated = torch.empty_like(x_BNHE)
    rotated[..., 0::2] = even * cos - odd * sin
    rotated[..., 1::2] = even * sin + odd * cos
    return rotated


class Attention(nn.Module):
    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(config.dim, config.dim)
        self.to_k = nn.Linear(config.dim, config.dim)
        self.to_v = nn.Linear(config.dim, config.dim)
        self.to_out = nn.ModuleList([nn.Linear(config.dim, config.dim)])
        self.norm_q = nn.RMSNorm(config.dim, eps=config.eps)
        self.norm_k = nn.RMSNorm(config.dim, eps=config.eps)

    def forward(self, x_BND: Tensor, context_BLD: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        q = self.norm_q(self.to_q(x_BND)).unflatten(2, (self.heads, -1))
        k = self.norm_k(self.to_k(context_BLD)).unflatten(2, (self.heads, -1))
        v = self.to_v(context_BLD).unflatten(2, (self.heads, -1))
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        out = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.to_out[0](out.transpose(1, 2).flatten(2, 3).type_as(q))


class _GeluProjection(nn.Module):
    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, ffn_dim)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_GeluProjection(dim, ffn_dim), nn.Identity(), nn.Linear(ffn_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.norm1 = Float32LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.attn1 = Attention(config)
        self.attn2 = Attention(config)
        self.norm2 = Float32LayerNorm(config.dim, config.eps) if config.cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(config.dim, config.ffn_dim)
        self.norm3 = Float32LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, text_BLD: Tensor, time: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """time: (B, N, 6, D) with a timestep per token, (B, 1, 6, D) with one per video."""
        modulation = (self.scale_shift_table.unsqueeze(0) + time.float()).chunk(6, dim=2)
        shift1, scale1, gate1, shift2, scale2, gate2 = (part.squeeze(2) for part in modulation)
        normed = (self.norm1(x.float()) * (1 + scale1) + shift1).type_as(x)
        x = (x.float() + self.attn1(normed, normed, rope) * gate1).type_as(x)
        normed = self.norm2(x.float()).type_as(x)
        x = x + self.attn2(normed, text_BLD, None)
        normed = (self.norm3(x.float()) * (1 + scale2) + shift2).type_as(x)
        return (x.float() + self.ffn(normed).float() * gate2).type_as(x)


class _TwoLinears(nn.Module):
    def __init__(self, in_dim: int, dim: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.activation = activation
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


class ConditionEmbedder(nn.Module):
    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder = _TwoLinears(config.freq_dim, config.dim, nn.SiLU())
        self.time_proj = nn.Linear(config.dim, 6 * config.dim)
        self.text_embedder = _TwoLinears(config.text_dim, config.dim, nn.GELU(approximate="tanh"))

    def forward(self, timestep_BN: Tensor, text_BLM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Time embedding (B, N, D), modulation (B, N, 6, D), text (B, L, D)."""
        half = self.freq_dim // 2
        frequency = (
            -math.log(10_000.0) * torch.arange(half, device=timestep_BN.device, dtype=torch.float32) / half
        ).exp()
        angle = timestep_BN.float().unsqueeze(-1) * frequency
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1)
        embedding = self.time_embedder(waves.to(self.time_embedder.linear_1.weight.dtype)).type_as(text_BLM)
        time = self.time_proj(functional.silu(embedding)).unflatten(-1, (6, -1))
        return embedding, time, self.text_embedder(text_BLM)


class ReferenceWanTransformer(nn.Module):
    """checkpointing: the backward pass recomputes every block."""

    def __init__(self, config: WanConfig, checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        self.rope = RotaryTables(config)
        self.patch_embedding = nn.Conv3d(config.in_channels, config.dim, config.patch_size, config.patch_size)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.norm_out = Float32LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.proj_out = nn.Linear(config.dim, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def bfloat16(self) -> "ReferenceWanTransformer":
        """Casts what diffusers casts: all but `FLOAT32` and the rotary tables."""
        for name, parameter in self.named_parameters():
            if not any(part in name for part in FLOAT32):
                parameter.data = parameter.data.bfloat16()
        return self

    def forward(self, latents_BCFHW: Tensor, timestep_B: Tensor, text_BLM: Tensor, num_clean_frames: int = 0) -> Tensor:
        """Velocity (B, out_channels, F, H, W) in the latents' dtype; arguments as of `WanTransformer.forward`.

        With clean frames every token gets its timestep, as diffusers' TI2V pipeline does; else a video has one.
        """
        dtype = self.patch_embedding.weight.dtype
        rope = self.rope(latents_BCFHW)
        embedded = self.patch_embedding(latents_BCFHW.to(dtype))
        grid = embedded.shape[2:]
        x = embedded.flatten(2).transpose(1, 2).contiguous()
        timestep_BN = timestep_B[:, None]
        if num_clean_frames:
            clean = num_clean_frames // self.config.patch_size[0] * grid[1] * grid[2]
            timestep_BN = timestep_BN.repeat(1, x.shape[1])
            timestep_BN[:, :clean] = 0
        embedding, time, text = self.condition_embedder(timestep_BN, text_BLM.to(dtype))

        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, text, time, rope, use_reentrant=False)
            else:
                x = block(x, text, time, rope)

        shift, scale = (self.scale_shift_table.unsqueeze(0) + embedding.unsqueeze(2)).chunk(2, dim=2)
        x = (self.norm_out(x.float()) * (1 + scale.squeeze(2)) + shift.squeeze(2)).type_as(x)
        patches = self.proj_out(x).unflatten(1, grid).unflatten(-1, (*self.config.patch_size, -1))
        out = patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return out.to(latents_BCFHW.dtype)

    def fuse_rms_norm(self) -> str:
        """Puts Liger's RMSNorm in place of PyTorch's where it is installed; says which one runs.

        PyTorch's own is one kernel forward and one backward on CUDA since 2.9, so that without Liger nothing is left to fuse.
        """
        try:
            from liger_kernel.transformers import LigerRMSNorm
        except ImportError:
            return "torch"
        for module in self.modules():
            if isinstance(module, Attention):
                for name in ("norm_q", "norm_k"):
                    norm = getattr(module, name)
                    fused = LigerRMSNorm(norm.weight.numel(), eps=norm.eps)
                    fused.weight = norm.weight
                    setattr(module, name, fused)
        return "liger"

    def compile_blocks(self, **options: Any) -> None:
        """torch.compile of every block, as peers do; they share one compiled graph."""
        for block in self.blocks:
            block.compile(**options)
