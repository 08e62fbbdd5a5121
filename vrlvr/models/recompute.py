"""What the backward pass of a transformer block keeps from the forward, and what it computes again.

| policy | kept of a block | computed again |
|---|---|---|
| none | everything its operations save | nothing |
| selective | its inputs, the outputs of matrix products and of attention | norms, modulation, rotary embedding, GELU |
| full | its inputs | the whole block |
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Policy = Literal["none", "selective", "full"]
Result = TypeVar("Result")
POLICIES: tuple[Policy, ...] = get_args(Policy)  # from the least recomputed to the most

_KEPT_ATEN_OPS = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "linear",
    "_addmm_activation",
    "_scaled_mm",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
    "_cudnn_attention_forward",
    "_efficient_attention_forward",
    "_flash_attention_forward",
}
# The attention packages' operators have their own namespaces: flash_attn, flash_attn_3, xformers, xformers_flash, ...
# FlashAttention-4 launches its kernels without an operator, so selective recomputation runs it twice.
_KEPT_NAMESPACES = ("flash_attn", "xformers")


def is_kept(op: torch._ops.OpOverload) -> bool:
    """Whether `selective` keeps the outputs of this operator."""
    namespace, _, name = op._schema.name.partition("::")
    return name in _KEPT_ATEN_OPS if namespace == "aten" else namespace.startswith(_KEPT_NAMESPACES)


def _policy(ctx: Any, op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # An addmm onto a matrix, not onto a bias, is LoRA's update: the product of its rank costs no more than elementwise work,
    # and keeping its result beside the one that it is added to would double what a layer keeps.
    low_rank = op._schema.name == "aten::addmm" and args[0].dim() == 2
    return CheckpointPolicy.MUST_SAVE if is_kept(op) and not low_rank else CheckpointPolicy.PREFER_RECOMPUTE


_selective_contexts = partial(create_selective_checkpoint_contexts, _policy)


def run(block: Callable[..., Result], *args: Any, policy: Policy) -> Result:
    """block(*args), whose backward recomputes by `policy`; the values and gradients are the same bit for bit.

    The block must be deterministic: no random state is kept. Without gradients nothing is saved, whatever the policy.
    """
    if policy == "none" or not torch.is_grad_enabled():
        return block(*args)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if policy == "selective":
        options["context_fn"] = _selective_contexts
    return checkpoint(block, *args, **options)
