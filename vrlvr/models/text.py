"""What the transformer reads as text: a table maps numbers of tasks or prompts to text_BLM, L tokens of text_dim."""

import torch
from torch import Tensor, nn

from vrlvr.errors import UserError


class TaskEmbedding(nn.Module):
    """A learned embedding of the task in place of a prompt: enough where a prompt only says which game it is."""

    def __init__(self, num_tasks: int, text_dim: int, num_tokens: int = 1) -> None:
        super().__init__()
        for name, value in (("num_tasks", num_tasks), ("text_dim", text_dim), ("num_tokens", num_tokens)):
            if value < 1:
                raise UserError(f"{name}={value} must be at least 1; use a positive size")
        self.table = nn.Parameter(torch.randn(num_tasks, num_tokens, text_dim))

    def forward(self, task_ids_B: Tensor) -> Tensor:
        """Indices of tasks, int64 (B,) -> text_BLM. Raises IndexError for a task that is not in the table."""
        return self.table[task_ids_B]


class FrozenText(nn.Module):
    """Prompts that a text encoder embedded beforehand, in the same place: no parameter, and no part of a checkpoint."""

    table: Tensor

    def __init__(self, table_PLM: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table_PLM, persistent=False)

    def forward(self, prompt_B: Tensor) -> Tensor:
        """Numbers of prompts, int64 (B,) -> text_BLM."""
        return self.table[prompt_B]
