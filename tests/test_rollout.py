"""The frozen velocity field: the policy's own values, in micro-batches, at the weights of the last refresh."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from tiny_run import random_policy, tiny_codec, tiny_config, tiny_prompts
from torch import Tensor

from vrlvr.models.dit import TextContext
from vrlvr.policy import Policy
from vrlvr.rollout import FrozenVelocity, _capture_stream


@pytest.fixture(params=["concat", "pin"])
def case(request: pytest.FixtureRequest) -> tuple[Policy, tuple[Tensor, ...]]:
    config = tiny_config("--model.conditioning", request.param)
    codec = tiny_codec(config)
    prompts = tiny_prompts(config, codec, 5)
    x = torch.randn(5, *codec.latent_shape(5, 16, 16), generator=torch.Generator().manual_seed(0))
    return random_policy(config, codec), (x, torch.linspace(0.1, 0.9, 5), prompts.first_BC1HW, prompts.prompt_B)


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 9])
def test_it_is_the_policy_without_gradient(case: tuple[Policy, tuple[Tensor, ...]], micro_batch: int) -> None:
    policy, rows = case
    velocity = FrozenVelocity(policy, micro_batch)
    velocity.refresh(rows[3])
    v = velocity(*rows)
    assert not v.requires_grad
    torch.testing.assert_close(v, policy(*rows), rtol=1e-5, atol=1e-5)


def test_no_forward_is_larger_than_a_micro_batch(case: tuple[Policy, tuple[Tensor, ...]]) -> None:
    policy, rows = case
    sizes = []
    policy.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    velocity = FrozenVelocity(policy, 2)
    velocity.refresh(rows[3])
    velocity(*rows)
    assert sizes == [2, 2, 1]


def test_new_weights_are_taken_up_by_refresh(case: tuple[Policy, tuple[Tensor, ...]]) -> None:
    policy, rows = case
    velocity = FrozenVelocity(policy, 5)
    velocity.refresh(rows[3])
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    assert not torch.allclose(velocity(*rows), policy(*rows), rtol=1e-5, atol=1e-5)
    velocity.refresh(rows[3])
    torch.testing.assert_close(velocity(*rows), policy(*rows), rtol=1e-5, atol=1e-5)


def test_only_the_prompts_in_use_are_made_ready(case: tuple[Policy, tuple[Tensor, ...]]) -> None:
    policy, (x, sigma_B, first, _) = case
    policy.text.table.data = torch.randn(9, *policy.text.table.shape[1:], generator=torch.Generator().manual_seed(0))
    velocity = FrozenVelocity(policy, 5)
    for prompt_B in (torch.tensor([7, 2, 7, 0, 2]), torch.tensor([1, 1, 1, 8, 3]), torch.arange(5)):
        velocity.refresh(prompt_B)
        assert len(velocity._context.keys_values[0][0]) == 5
        everything = policy(x, sigma_B, first, prompt_B, context=policy.text_context())
        torch.testing.assert_close(velocity(x, sigma_B, first, prompt_B), everything, rtol=1e-5, atol=1e-5)


class FakeStream:
    def wait_stream(self, other: object) -> None:
        pass


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch):
    """A GPU as far as a capture asks for one; yields the (pool, stream) of every capture."""
    found: list[tuple[object, object]] = []

    @contextmanager
    def capture(graph: object, pool: object, stream: object, capture_error_mode: str):
        found.append((pool, stream))
        yield

    @contextmanager
    def on(stream: object):
        yield

    fakes = {
        "is_available": lambda: True,
        "graph_pool_handle": object,
        "Stream": lambda device: FakeStream(),
        "current_stream": FakeStream,
        "stream": on,
        "graph": capture,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    _capture_stream.cache_clear()
    yield found
    _capture_stream.cache_clear()


def test_graphs_of_other_prompts_take_a_new_pool_and_the_same_stream(captures: list[tuple[object, object]]) -> None:
    """As at the end of an evaluation, whose last batch is smaller: the pool of the graphs that are dropped is no more."""

    class Zero:
        capturable = True

        def text_context(self, prompt_P: Tensor) -> TextContext:
            return TextContext([(torch.zeros(len(prompt_P), 1, 1, 1),) * 2])

        def __call__(self, x: Tensor, *others: object, context: TextContext) -> Tensor:
            return torch.zeros_like(x)

    velocity = FrozenVelocity(Zero(), 2)
    for rows in (3, 3, 2):
        prompt_B = torch.arange(rows)
        velocity.refresh(prompt_B)
        x = torch.ones(rows, 1, 1, 1, 1)
        assert not velocity(x, torch.ones(rows), x, prompt_B).any()
    pools, streams = zip(*captures, strict=True)
    assert len(pools) == 3  # of two rows, of one row, and of two rows once more
    assert pools[0] is pools[1] is not pools[2]
    assert streams[0] is streams[1] is streams[2]
    Zero.capturable = False
    spread = FrozenVelocity(Zero(), 2)
    spread.refresh(prompt_B)
    spread(x, torch.ones(rows), x, prompt_B)
    assert len(captures) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_graphs_of_a_smaller_last_batch(case: tuple[Policy, tuple[Tensor, ...]]) -> None:
    policy, rows = case
    policy.text.table.data = torch.randn(9, *policy.text.table.shape[1:], generator=torch.Generator().manual_seed(0))
    policy, rows = policy.cuda(), tuple(tensor.cuda() for tensor in rows)
    plain, graphed = (FrozenVelocity(policy, 5, graphs=graphs) for graphs in (False, True))
    for number in (5, 2, 5):
        part = [tensor[:number] for tensor in rows]
        plain.refresh(part[3])
        graphed.refresh(part[3])
        assert torch.equal(graphed(*part), plain(*part))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_cuda_graphs_change_no_bit(case: tuple[Policy, tuple[Tensor, ...]]) -> None:
    policy, rows = case
    policy, rows = policy.cuda(), tuple(tensor.cuda() for tensor in rows)
    plain, graphed = (FrozenVelocity(policy, 2, graphs=graphs) for graphs in (False, True))
    for scale in (1.0, 1.1):  # captured at the first weights, replayed at others
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(scale)
        plain.refresh(rows[3])
        graphed.refresh(rows[3])
        for x in (rows[0], -rows[0]):
            first = graphed(x, *rows[1:])
            assert torch.equal(first, plain(x, *rows[1:]))
            graphed(torch.zeros_like(x), *rows[1:])  # a later call leaves an earlier one's result alone
            assert torch.equal(first, plain(x, *rows[1:]))
