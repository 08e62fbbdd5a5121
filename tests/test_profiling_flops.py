"""The hand count against PyTorch's own counter on a small model, and against the published sizes of the 5B model."""

import pytest
import torch
from reference_dit import ReferenceWanTransformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vrlvr.models.dit import WanConfig, WanTransformer
from vrlvr.models.flops import forward_flops, tokens_of, total_flops

CONFIG = WanConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=6,
    out_channels=6,
    text_dim=20,
    freq_dim=24,
    ffn_dim=80,
    num_layers=3,
)
BATCH, FRAMES, ROWS, COLUMNS, TEXT = 2, 3, 4, 5, 7
TOKENS = FRAMES * ROWS * COLUMNS


def ours() -> WanTransformer:
    return WanTransformer(CONFIG, attention="math")  # made of products that PyTorch's counter knows on a CPU


def counted(model: torch.nn.Module, backward: bool = False, num_text_tokens: int = TEXT) -> int:
    torch.manual_seed(0)
    latents = torch.randn(BATCH, 6, FRAMES, 2 * ROWS, 2 * COLUMNS, requires_grad=True)
    text = torch.randn(BATCH, num_text_tokens, CONFIG.text_dim, requires_grad=True)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = model(latents, torch.tensor([3.0, 500.0]), text, 1)
        if backward:
            out.square().sum().backward()
    return counter.get_total_flops()


def test_forward_is_what_pytorch_counts() -> None:
    assert counted(ours()) == total_flops(CONFIG, TOKENS, TEXT, BATCH)


def test_one_text_token_needs_no_queries() -> None:
    assert counted(ours(), num_text_tokens=1) == total_flops(CONFIG, TOKENS, 1, BATCH)


def test_forward_of_the_reference_with_a_timestep_per_token() -> None:
    expected = sum(forward_flops(CONFIG, TOKENS, TEXT, BATCH, num_time_rows=BATCH * TOKENS).values())
    assert counted(ReferenceWanTransformer(CONFIG)) == expected


def test_forward_and_backward_are_three_forwards() -> None:
    """But for the timesteps' first layer, whose input needs no gradient."""
    time_input = 2 * (2 * BATCH) * CONFIG.freq_dim * CONFIG.dim
    assert counted(ours(), backward=True) == total_flops(CONFIG, TOKENS, TEXT, BATCH, 3) - time_input


def test_full_checkpointing_adds_the_blocks_forward() -> None:
    plain = counted(ReferenceWanTransformer(CONFIG), backward=True)
    blocks = sum(
        flops
        for name, flops in forward_flops(CONFIG, TOKENS, TEXT, BATCH).items()
        if name not in ("patches", "text", "time")
    )
    assert counted(ReferenceWanTransformer(CONFIG, checkpointing=True), backward=True) == plain + blocks


def test_the_5b_model_at_480x832x81() -> None:
    """Two operations for every weight that a token meets, text's keys and values apart, and attention."""
    config = WanConfig()
    assert tokens_of(config, 81, 480, 832) == 8190
    assert tokens_of(config, 121, 704, 1280) == 27280
    with torch.device("meta"):
        model = WanTransformer(config)
    of_tokens = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.ndim > 1 and not any(part in name for part in ("condition_embedder", "attn2.to_k", "attn2.to_v", "table"))
    )
    attention = 4 * 8190 * (8190 + 512) * 3072 * 30
    assert total_flops(config, 8190) == pytest.approx(2 * of_tokens * 8190 + attention, rel=0.01)
