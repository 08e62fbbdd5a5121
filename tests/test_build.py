"""The least recomputation with which a step fits."""

import torch

from vrlvr.build import fitting_recompute
from vrlvr.errors import UserError
from vrlvr.models.dit import WanConfig


def test_the_less_memory_the_more_is_recomputed() -> None:
    config = WanConfig(
        patch_size=(1, 1, 1),
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=30,
        out_channels=30,
        text_dim=64,
        freq_dim=64,
        ffn_dim=256,
        num_layers=6,
    )
    chosen, free, refusal = [], 2**28, None
    while refusal is None:
        try:
            chosen.append(fitting_recompute(config, (6, 16, 16), (3, 64), 1, torch.float32, rows=2, free_bytes=free))
        except UserError as error:
            refusal = str(error)
        free = int(free * 0.8)
    assert list(dict.fromkeys(chosen)) == ["none", "selective", "full"]
    assert "micro_batch" in refusal
