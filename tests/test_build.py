"""A policy's recomputation: as configured, or the least that fits."""

import pytest
import torch
from tiny_run import random_policy, tiny_codec, tiny_config

from vrlvr.build import fitting_recompute, set_recompute
from vrlvr.errors import UserError
from vrlvr.models.dit import WanConfig

SHAPE = (30, 6, 16, 16)  # latents large enough for activations to outweigh parameters


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


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_what_is_configured_is_set(recompute: str) -> None:
    config = tiny_config("--model.recompute", recompute)
    policy = random_policy(config, tiny_codec(config))
    set_recompute(config, policy, SHAPE, rows=2)
    assert policy.dit.recompute == recompute


def test_a_cpu_recomputes_nothing_unless_told() -> None:
    config = tiny_config()
    policy = random_policy(config, tiny_codec(config))
    set_recompute(config, policy, SHAPE, rows=2)
    assert policy.dit.recompute == "none"
