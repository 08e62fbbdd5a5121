"""The Wan diffusion transformer, of any size, with the parameters of diffusers' `WanTransformer3DModel`.

Facts are those of diffusers 0.42 `transformer_wan.py` (Apache-2.0) and of Wan's own `wan/modules/model.py`; the code is
ours, and state dicts go both ways unchanged. What differs is how it is computed:
- Wan2.2-TI2V pins its first latent frame at timestep 0, so a video has two distinct modulations and no more. They are a
  table of S rows and a segment number per token, never a tensor per token, which for diffusers' 5B model is 396 MB a block
  at 5,376 tokens.
- A block's residual additions, gates and norms are fused at its boundaries: a block takes the residual stream x and its
  already normalised form h, and gives both to the next.
- The keys and values of the text are computed once per prompt (`text_context`) and serve every step and sample.

Shapes: B videos, P prompts, C latent channels, F/H/W latent frames/rows/columns, N tokens, D model dimension, H heads of
dimension E, L text tokens, M text dimension, S modulation segments (2 with clean frames, else 1), R = rows of them.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vrlvr.errors import UserError
from vrlvr.models.attention import attend, choose
from vrlvr.models.recompute import Policy as RecomputePolicy
from vrlvr.models.recompute import run
from vrlvr_kernels.gated_residual_layernorm_modulate import (
    gated_residual_layernorm_modulate,
    gated_residual_reference,
)
from vrlvr_kernels.gelu_tanh import gelu_tanh
from vrlvr_kernels.layernorm_modulate import layernorm_modulate
from vrlvr_kernels.qk_norm_rope import qk_norm_rope

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
        sides = self.patch_size if isinstance(self.patch_size, tuple) else ()
        if len(sides) != 3 or not all(type(side) is int and side > 0 for side in sides):
            raise UserError(f"patch_size={self.patch_size} must be three sizes of at least 1, as (1, 2, 2)")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and not (type(value) is int and value > 0):
                raise UserError(f"{field.name}={value!r} must be a whole number of at least 1; use a positive size")
        if self.attention_head_dim < 6 or self.attention_head_dim % 2:
            raise UserError(
                f"attention_head_dim={self.attention_head_dim} must be even and at least 6, so that time, rows and "
                "columns each have a rotating pair; use for instance 16"
            )
        if self.freq_dim % 2:
            raise UserError(f"freq_dim={self.freq_dim} must be even (cosines and sines); use {self.freq_dim + 1}")
        if not (isinstance(self.eps, float) and self.eps > 0):
            raise UserError(f"eps={self.eps!r} must be positive; use 1e-6")

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
        if isinstance(sizes.get("patch_size"), list):
            sizes["patch_size"] = tuple(sizes["patch_size"])
        if "in_channels" in sizes:
            sizes.setdefault("out_channels", sizes["in_channels"])
        return cls(**sizes)

    def to_diffusers(self) -> dict[str, Any]:
        """The arguments of diffusers' `WanTransformer3DModel`."""
        return asdict(self) | _FIXED_KEYS


@lru_cache(maxsize=64)
def rope_table(head_dim: int, grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """The 3D rotary embedding of a grid of tokens, in (F, H, W) order: float32 (N, E), a cosine and a sine for each pair.

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
        angle = torch.cat(angles, dim=-1).flatten(0, 2)
        return torch.stack((angle.cos(), angle.sin()), dim=-1).flatten(1).float()


@lru_cache(maxsize=64)
def segment_table(num_tokens: int, num_clean_tokens: int, device: torch.device) -> Tensor:
    """The modulation segment of every token, int32 (N,): 0 for the clean ones, which come first, and 1 for the rest.

    Without clean tokens all are in segment 0.
    """
    with torch.inference_mode(False):
        segment = torch.arange(num_tokens, device=device) >= num_clean_tokens
        return (segment if num_clean_tokens else torch.zeros_like(segment)).int()


@lru_cache(maxsize=8)
def scale_offset(device: torch.device) -> Tensor:
    """The 1 of `1 + scale`, in the two scales' places among shift, scale, gate, shift, scale, gate: float32 (6, 1)."""
    with torch.inference_mode(False):
        return torch.tensor([0.0, 1, 0, 0, 1, 0], device=device).unsqueeze(1)


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


class _FusedLinear(torch.autograd.Function):
    """x @ [W1; W2; ...]^T + [b1; b2; ...]. The weights are laid end to end again in the backward pass, rather than kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights_biases: Tensor) -> Tensor:
        weights, biases = weights_biases[: len(weights_biases) // 2], weights_biases[len(weights_biases) // 2 :]
        ctx.save_for_backward(x, *weights)
        return functional.linear(x, torch.cat(weights), torch.cat(biases))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, *weights = ctx.saved_tensors
        widths = [len(weight) for weight in weights]
        dx = grad @ torch.cat(weights) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return dx, *[None] * (2 * len(weights))
        rows = grad.flatten(0, -2)
        return dx, *(rows.T @ x.flatten(0, -2)).split(widths), *rows.sum(0).split(widths)


def fused_linear(x: Tensor, *layers: nn.Module) -> Tensor:
    """The layers' outputs side by side, (..., sum of their widths), by one matrix product.

    Layers that something else has wrapped (LoRA) are called one by one: reading their weights would bypass the wrapper.
    """
    if all(type(layer) is nn.Linear for layer in layers):
        weights, biases = zip(*((layer.weight, layer.bias) for layer in layers), strict=True)
        return _FusedLinear.apply(x, *weights, *biases)
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


class Float32Linear(_Float32Parameters, nn.Linear):
    """A linear layer that stays float32."""


class _Float32LayerNorm(_Float32Parameters, nn.LayerNorm):
    pass


KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TextContext:
    """The cross-attention's keys and values of P prompts, (P, L, H, E) each, for every block.

    row_B: int64, the row of each video; None where video i has row i. number_P: int64, the prompts' numbers, ascending; None
    where row i has number i.
    """

    keys_values: list[KeysValues]
    row_B: Tensor | None = None
    number_P: Tensor | None = None

    def of(self, number_B: Tensor) -> "TextContext":
        """The same context, for videos whose prompts have these numbers."""
        row_B = number_B if self.number_P is None else torch.searchsorted(self.number_P, number_B)
        return TextContext(self.keys_values, row_B, self.number_P)

    @property
    def shape(self) -> tuple[torch.Size, bool]:
        """Two contexts of one shape can be copied into each other."""
        return self.keys_values[0][0].shape, self.number_P is None

    def copy_(self, other: "TextContext") -> None:
        """Takes over the other's prompts, in the same memory."""
        tensors, values = ([t for pair in c.keys_values for t in pair] for c in (self, other))
        if self.number_P is not None and other.number_P is not None:
            tensors, values = [*tensors, self.number_P], [*values, other.number_P]
        torch._foreach_copy_(tensors, values)

    def leaves(self) -> "TextContext":
        """A copy cut off from the graph, which gathers the gradients of many backward passes for `backward`."""
        cut = [(_gathering_leaf(k), _gathering_leaf(v)) for k, v in self.keys_values]
        return TextContext(cut, self.row_B, self.number_P)

    def backward(self, leaves: "TextContext") -> None:
        """Sends what the leaves have gathered through the text projections, once."""
        pairs = [
            (tensor, leaf.grad)
            for ours, cut in zip(self.keys_values, leaves.keys_values, strict=True)
            for tensor, leaf in zip(ours, cut, strict=True)
            if leaf.grad is not None and tensor.requires_grad
        ]
        if pairs:
            torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])


def _gathering_leaf(tensor: Tensor) -> Tensor:
    """A leaf whose gradients of half precision are added in float32, as `vrlvr.masters` has it and for its reason."""
    leaf = tensor.detach().requires_grad_()
    if leaf.dtype in (torch.bfloat16, torch.float16):
        leaf.grad_dtype = torch.float32
    return leaf


class Attention(nn.Module):
    """Multi-head attention with RMSNorm of queries and keys across all heads."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.num_heads, self.eps = config.num_attention_heads, config.eps
        self.to_q = nn.Linear(config.dim, config.dim)
        self.to_k = nn.Linear(config.dim, config.dim)
        self.to_v = nn.Linear(config.dim, config.dim)
        self.to_out = nn.ModuleList([nn.Linear(config.dim, config.dim)])
        self.norm_q = nn.RMSNorm(config.dim, eps=config.eps)
        self.norm_k = nn.RMSNorm(config.dim, eps=config.eps)

    def over_self(self, h_BND: Tensor, rope_NE: Tensor, backend: str) -> Tensor:
        """Self-attention: (B, N, D) -> (B, N, D)."""
        packed = fused_linear(h_BND, self.to_q, self.to_k, self.to_v)
        weights = self.norm_q.weight, self.norm_k.weight
        q, k, v = qk_norm_rope(packed, weights, rope_NE, self.num_heads, self.eps)
        return self.to_out[0](attend(q, k, v, backend).flatten(2))

    def text_keys_values(self, text_PLD: Tensor) -> KeysValues:
        """Keys and values of embedded prompts, (P, L, H, E) each."""
        packed = fused_linear(text_PLD, self.to_k, self.to_v)
        k, v = qk_norm_rope(packed, (self.norm_k.weight,), None, self.num_heads, self.eps)
        return k, v

    def over_text(self, h_BND: Tensor, k_BLHE: Tensor, v_BLHE: Tensor, backend: str) -> Tensor:
        """Cross-attention: (B, N, D) -> (B, N, D)."""
        (q,) = qk_norm_rope(self.to_q(h_BND), (self.norm_q.weight,), None, self.num_heads, self.eps)
        return self.to_out[0](attend(q, k_BLHE, v_BLHE, backend).flatten(2))

    def over_one_text_token(self, v_B1HE: Tensor) -> Tensor:
        """`over_text` for L = 1, (B, 1, D) for all tokens: the softmax over one key is 1, whatever the query."""
        return self.to_out[0](v_B1HE.flatten(2))


class _GeluProjection(nn.Module):
    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, ffn_dim)

    def forward(self, x: Tensor) -> Tensor:
        if type(self.proj) is not nn.Linear:  # wrapped (LoRA): its output already holds the bias
            return gelu_tanh(self.proj(x))
        return gelu_tanh(functional.linear(x, self.proj.weight), self.proj.bias)


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        # Place 1 is diffusers' dropout, which has no parameters and which Wan does not use.
        self.net = nn.Sequential(_GeluProjection(dim, ffn_dim), nn.Identity(), nn.Linear(ffn_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def _rows(tensor: Tensor, index: Tensor | None) -> Tensor:
    return tensor if index is None else tensor[index]


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

    def forward(
        self,
        x: Tensor,
        h: Tensor,
        keys_values: KeysValues,
        row_B: Tensor | None,
        tables: tuple[Tensor, ...],
        rope_NE: Tensor,
        segment_N: Tensor,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        """x: residual stream (B, N, D). h: its modulated norm, this block's input. Returns both for the next block.

        tables: (B, S, D) each, this block's gate1, shift2, scale2, gate2 and the next block's shift1 and scale1.
        """
        gate1, shift2, scale2, gate2, next_shift, next_scale = tables
        k, v = keys_values
        update = self.attn1.over_self(h, rope_NE, backend)
        if k.shape[1] == 1:
            x = gated_residual_reference(x, update, gate1, segment_N)
            update = _rows(self.attn2.over_one_text_token(v), row_B).expand_as(x)
        else:
            x, h = self._before_text(x, update, gate1, segment_N)
            update = self.attn2.over_text(h, _rows(k, row_B), _rows(v, row_B), backend)
        x, h = gated_residual_layernorm_modulate(x, update, None, shift2, scale2, segment_N, self.eps)
        return gated_residual_layernorm_modulate(x, self.ffn(h), gate2, next_shift, next_scale, segment_N, self.eps)

    def _before_text(self, x: Tensor, update: Tensor, gate: Tensor, segment_N: Tensor) -> tuple[Tensor, Tensor]:
        """The gated residual, and its affine norm where the model has one (`cross_attn_norm`)."""
        if isinstance(self.norm2, nn.Identity):
            x = gated_residual_reference(x, update, gate, segment_N)
            return x, x
        bias, weight = self.norm2.bias.expand_as(gate), self.norm2.weight.expand_as(gate)
        return gated_residual_layernorm_modulate(x, update, gate, bias, weight, segment_N, self.eps)


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
        self.time_embedder = _TwoLinears(Float32Linear, config.freq_dim, config.dim, functional.silu)
        self.time_proj = Float32Linear(config.dim, 6 * config.dim)
        self.text_embedder = _TwoLinears(nn.Linear, config.text_dim, config.dim, _gelu_tanh)

    def time(self, timestep_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> embedding (B, S, D) and the blocks' modulation (B, S, 6, D), its two scales as 1 + scale."""
        embedding = self.time_embedder(timestep_frequencies(timestep_BS, self.freq_dim))
        modulation = self.time_proj(functional.silu(embedding)).unflatten(-1, (6, -1))
        return embedding, modulation + scale_offset(embedding.device)


class WanTransformer(_Float32Parameters):
    """The velocity model.

    recompute: what the backward pass computes anew, see `vrlvr.models.recompute`. attention: a backend's name, or auto, see
    `vrlvr.models.attention`. Both may be set at any time before a forward.
    """

    def __init__(self, config: WanConfig, recompute: RecomputePolicy = "none", attention: str = "auto") -> None:
        super().__init__()
        self.config, self.recompute, self.attention = config, recompute, attention
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

    def text_context(self, text_PLM: Tensor) -> TextContext:
        """Keys and values of P prompts (P, L, text_dim), to be passed to `forward` for any number of steps and samples."""
        text = self.condition_embedder.text_embedder(text_PLM.to(self.patch_embedding.weight.dtype))
        return TextContext([block.attn2.text_keys_values(text) for block in self._each_block()])

    def _each_block(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]  # a ModuleList does not know what it holds

    def forward(
        self, latents_BCFHW: Tensor, timestep_B: Tensor, text: Tensor | TextContext, num_clean_frames: int = 0
    ) -> Tensor:
        """Velocity (B, out_channels, F, H, W), in the latents' dtype.

        timestep_B: any reals in [0, 1000], sigma * 1000, never rounded. text: (B, L, text_dim), or what `text_context` made
        of it. The first num_clean_frames latent frames are at timestep 0 (Wan2.2-TI2V's clean image), the rest at timestep_B.
        in_channels may exceed out_channels: the caller has then concatenated a condition to the latents.
        Raises UserError for sizes that do not fit.
        """
        config = self.config
        grid = self._grid(latents_BCFHW, num_clean_frames)
        if timestep_B.shape != latents_BCFHW.shape[:1]:
            raise UserError(f"timestep of shape {tuple(timestep_B.shape)} must be ({len(latents_BCFHW)},), one a video")
        context = self.text_context(text) if isinstance(text, Tensor) else text
        num_clean_tokens = num_clean_frames // config.patch_size[0] * grid[1] * grid[2]
        device = latents_BCFHW.device
        rope_NE = rope_table(config.attention_head_dim, grid, device)
        segment_N = segment_table(math.prod(grid), num_clean_tokens, device)
        dtype = self.patch_embedding.weight.dtype
        backend = choose(self.attention, device, dtype, config.attention_head_dim)

        patches = patchify(latents_BCFHW.to(dtype), config.patch_size)
        x = functional.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        timestep_BS = timestep_B.float().unsqueeze(1)
        if num_clean_tokens:
            timestep_BS = functional.pad(timestep_BS, (1, 0))
        embedding_BSD, time_BS6D = self.condition_embedder.time(timestep_BS)
        tables = [(time_BS6D + block.scale_shift_table).unbind(2) for block in self._each_block()]
        shift, scale = (embedding_BSD.unsqueeze(2) + self.scale_shift_table).unbind(2)
        after = [*((shift1, scale1) for shift1, scale1, *_ in tables), (shift, 1 + scale)]

        h = layernorm_modulate(x, *after[0], segment_N, config.eps)
        for block, kv, table, following in zip(self.blocks, context.keys_values, tables, after[1:], strict=True):
            rest = (*table[2:], *following)
            x, h = run(block, x, h, kv, context.row_B, rest, rope_NE, segment_N, backend, policy=self.recompute)
        return unpatchify(self.proj_out(h), grid, config.patch_size).to(latents_BCFHW.dtype)
