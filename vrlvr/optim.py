"""The optimizer and its learning rate."""

import math

import torch
from torch import nn

from vrlvr.masters import MasterAdamW

BETAS = (0.9, 0.99)  # usual for diffusion models
NOT_FINITE = (
    "lower the learning rate or the noise level; on a GPU try model.attention=flash too (of cuDNN's attention, which auto may "
    "take, some versions give NaN gradients)"
)


def adamw(model: nn.Module, lr: float, weight_decay: float) -> MasterAdamW:
    """AdamW over the trained parameters, in float32."""
    trained = [p for p in model.parameters() if p.requires_grad]
    fused = True if trained and trained[0].is_cuda else None  # one kernel; elsewhere PyTorch's own choice
    return MasterAdamW(trained, lr=lr, weight_decay=weight_decay, betas=BETAS, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Sets the learning rate of the next step and returns it."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def cosine_decay(step: int, total: int, decay_fraction: float) -> float:
    """1 until the last decay_fraction of the steps (counted from 1), then half a cosine down to 0 after the last."""
    start = total * (1 - decay_fraction)
    if step - 1 <= start:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - 1 - start) / (total - start)))


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Scales the gradients to a norm of at most max_norm; returns the norm before.

    Raises FloatingPointError if it is not finite.
    """
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], max_norm).item()
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient norm is {norm}: {NOT_FINITE}")
    return norm
