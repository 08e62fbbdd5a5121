"""A policy's recomputation: as configured, or the least that fits."""

import pytest
from tiny_run import random_policy, tiny_codec, tiny_config

from vrlvr.build import fitting_recompute, set_recompute
from vrlvr.errors import UserError

SHAPE = (30, 6, 16, 16)  # latents large enough for activations to outweigh parameters


@pytest.mark.parametrize("conditioning", ["concat", "pin"])
def test_the_less_memory_the_more_is_recomputed(conditioning: str) -> None:
    config = tiny_config("--model.conditioning", conditioning, "--model.num_layers", "6", "--model.ffn_dim", "256")
    policy = random_policy(config, tiny_codec(config))
    chosen, free, refusal = [], 2**30, None
    while refusal is None:
        try:
            chosen.append(fitting_recompute(policy, SHAPE, rows=2, free_bytes=free))
        except UserError as error:
            refusal = str(error)
        free = int(free * 0.7)
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
