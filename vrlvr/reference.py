"""The policy as it was when reinforcement began, frozen: what KL and the anchor hold the trained one near."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from vrlvr.config import Config
from vrlvr.models.dit import TextContext
from vrlvr.policy import Policy


@dataclass(frozen=True)
class EarlierAdapters:
    """A policy with other adapters (LoRA) in the same weights: no second copy of the model."""

    policy: Policy
    adapters: dict[str, Tensor]

    def text_context(self, prompt_P: Tensor | None = None) -> TextContext:
        """As `Policy.text_context`, without gradients."""
        from vrlvr.lora import adapters_replaced

        with adapters_replaced(self.policy.dit, self.adapters):
            return self.policy.text_context(prompt_P)

    def __call__(self, *inputs: Tensor, context: TextContext | None = None) -> Tensor:
        """As the policy, without gradients."""
        from vrlvr.lora import adapters_replaced

        with adapters_replaced(self.policy.dit, self.adapters):
            return self.policy(*inputs, context=context)


Reference = Policy | EarlierAdapters


def frozen(config: Config, policy: Policy) -> Reference:
    """The policy of this moment, for good. Where nothing is held near it, that is the policy itself, and costs no memory."""
    if config.grpo.kl_weight == 0 and config.grpo.anchor_weight == 0:
        return policy
    if config.model.lora.rank > 0:
        from vrlvr.lora import lora_state

        return EarlierAdapters(policy, {name: tensor.clone() for name, tensor in lora_state(policy.dit).items()})
    with torch.no_grad():
        return copy.deepcopy(policy).requires_grad_(False)
