"""The learned task embedding."""

import pytest
import torch

from vrlvr.errors import UserError
from vrlvr.models.text import TaskEmbedding


def test_each_task_has_its_own_tokens_and_gradient() -> None:
    torch.manual_seed(0)
    embedding = TaskEmbedding(num_tasks=3, text_dim=8, num_tokens=2)
    text = embedding(torch.tensor([2, 0, 2, 2]))
    assert text.shape == (4, 2, 8)
    assert torch.equal(text[0], text[2])
    assert not torch.equal(text[0], text[1])
    text.sum().backward()
    assert torch.equal(embedding.table.grad, torch.tensor([1.0, 0.0, 3.0])[:, None, None].expand(3, 2, 8))


def test_one_token_by_default() -> None:
    assert TaskEmbedding(num_tasks=3, text_dim=8)(torch.zeros(5, dtype=torch.int64)).shape == (5, 1, 8)


def test_unknown_task() -> None:
    with pytest.raises(IndexError):
        TaskEmbedding(num_tasks=3, text_dim=8)(torch.tensor([3]))


@pytest.mark.parametrize("name", ["num_tasks", "text_dim", "num_tokens"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}=0 must be at least 1"):
        TaskEmbedding(**{"num_tasks": 3, "text_dim": 8, "num_tokens": 1, name: 0})
