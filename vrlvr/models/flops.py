"""Floating-point operations of a Wan transformer, counted by hand: two for a multiply-add of a matrix product or of attention.

Elementwise work, norms and the softmax are left out, as is usual. A backward pass is two forwards (one product for the
inputs' gradient, one for the weights'); full activation checkpointing adds a forward.
"""

import math

from vrlvr.models.dit import WanConfig


def forward_flops(
    config: WanConfig, num_tokens: int, num_text_tokens: int = 512, batch: int = 1, num_time_rows: int | None = None
) -> dict[str, int]:
    """By part, for a batch of videos of num_tokens tokens each.

    num_time_rows: timesteps that are embedded: two a video here, one for the clean frames; in diffusers' TI2V one a token.
    A text of one token needs no queries (see `Attention.over_one_text_token`).
    """
    D, N, L, layers = config.dim, num_tokens, num_text_tokens, config.num_layers
    patch = math.prod(config.patch_size)
    queries = N if L > 1 else 0
    per_video = {
        "patches": 2 * N * D * patch * (config.in_channels + config.out_channels),
        "text": 2 * L * (config.text_dim * D + D * D),
        "self_attention_linear": layers * 8 * N * D * D,
        "self_attention": layers * 4 * N * N * D,
        "cross_attention_linear": layers * (2 * (queries + max(queries, 1)) * D * D + 4 * L * D * D),
        "cross_attention": layers * 4 * queries * L * D,
        "feed_forward": layers * 4 * N * D * config.ffn_dim,
    }
    time = 2 * (2 * batch if num_time_rows is None else num_time_rows) * (config.freq_dim * D + D * D + 6 * D * D)
    return {name: batch * flops for name, flops in per_video.items()} | {"time": time}


def total_flops(config: WanConfig, num_tokens: int, num_text_tokens: int = 512, batch: int = 1, passes: int = 1) -> int:
    """passes: 1 forward, 3 forward and backward, 4 with everything recomputed."""
    return passes * sum(forward_flops(config, num_tokens, num_text_tokens, batch).values())


def tokens_of(config: WanConfig, num_frames: int, height: int, width: int) -> int:
    """Tokens of a video behind the Wan2.2 VAE, which divides rows and columns by 16 and frames after the first by 4."""
    frames, rows, columns = config.patch_size
    return ((num_frames + 3) // 4 // frames) * (height // 16 // rows) * (width // 16 // columns)
