"""The policy: the diffusion transformer with its text and its first frame, seen as one velocity field.

Latents here are those of the *generated* frames only; the clean first frame travels beside them. So it can't enter the noise,
the log-probability, the KL or the loss, and there is nothing to re-pin.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vrlvr.models.dit import TextContext, WanTransformer
from vrlvr.models.text import FrozenText, TaskEmbedding

Conditioning = Literal["pin", "concat"]


class Policy(nn.Module):
    """pin: the first frame is a clean latent frame at timestep 0 before the others (Wan2.2-TI2V).
    concat: it is concatenated to every generated frame by channel (Wan2.2-I2V-A14B's way; half the tokens on tiny clips).
    capturable: by a CUDA graph. Not where an engine gathers weights within the forward.
    """

    capturable = True

    def __init__(self, dit: WanTransformer, text: TaskEmbedding | FrozenText, conditioning: Conditioning):
        super().__init__()
        self.dit, self.text, self.conditioning = dit, text, conditioning

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """What training changes: with adapters (LoRA) these alone, since the model that they adapt is the pretrained one's."""
        state = super().state_dict(*args, **options)
        return {name: tensor for name, tensor in state.items() if ".lora_" in name} or state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes up what `state_dict` gave. Raises RuntimeError if, with strict, that is of another model."""
        wrong = sorted(self.state_dict().keys() ^ state_dict.keys())
        if strict and wrong:
            raise RuntimeError(
                f"the saved state and the policy differ in {len(wrong)} tensors, the first is {wrong[0]}"
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def text_context(self, prompt_P: Tensor | None = None) -> TextContext:
        """The text of these prompts, ready for cross-attention; of all prompts where there are no more of them."""
        if prompt_P is None or len(self.text.table) <= len(prompt_P):
            return self.dit.text_context(self.text.table)
        number_P = prompt_P.sort().values
        return replace(self.dit.text_context(self.text.table[number_P]), number_P=number_P)

    def forward(
        self,
        latents_BCFHW: Tensor,
        sigma_B: Tensor,
        first_BC1HW: Tensor,
        prompt_B: Tensor,
        context: TextContext | None = None,
    ) -> Tensor:
        """The velocity noise - x0 of the generated latents at sigma, float32, in the shape of latents_BCFHW.

        prompt_B: int64 rows of the text's table. context: what `text_context` made of these (or more) prompts with the same
        weights, to spare making it again.
        """
        text = (context or self.text_context(prompt_B)).of(prompt_B)
        timestep_B = sigma_B * 1000.0
        if self.conditioning == "concat":
            first_BCFHW = first_BC1HW.expand(-1, -1, latents_BCFHW.shape[2], -1, -1)
            return self.dit(torch.cat([latents_BCFHW, first_BCFHW], dim=1), timestep_B, text).float()
        pinned_BCFHW = torch.cat([first_BC1HW, latents_BCFHW], dim=2)
        return self.dit(pinned_BCFHW, timestep_B, text, num_clean_frames=1)[:, :, 1:].float()
