"""Prompts as Wan's transformer reads them: umt5 embeddings, made the way that diffusers' Wan pipelines make them.

Shapes: B prompts, L tokens (512 in the pipelines), M text_dim.
"""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor

from vrlvr.errors import UserError

NUM_TOKENS = 512
# The same tensor as shared.weight, the only one that the published folders hold; transformers 5.0 to 5.2 leave it empty, since
# their config.json says tie_word_embeddings=false.
_TIED = "encoder.embed_tokens.weight"


def clean(prompt: str) -> str:
    """Mends broken encodings and HTML entities, and joins white space: `prompt_clean` of diffusers' pipeline_wan.py."""
    import ftfy  # like transformers, wanted only where prompts are encoded

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


class UMT5TextEncoder:
    """A tokenizer and transformers' UMT5EncoderModel; computes where, and in the dtype in which, the model lives."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.encoder: Any = encoder.eval().requires_grad_(False)
        self.text_dim: int = encoder.config.d_model

    @classmethod
    def from_pretrained(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> Self:
        """From the `tokenizer` and `text_encoder` folders of a Wan model in Diffusers' layout.

        Raises UserError if they are missing, unreadable or lack weights.
        """
        from transformers import AutoTokenizer, UMT5EncoderModel

        weights = folder / "text_encoder"
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder / "tokenizer"), local_files_only=True, trust_remote_code=False
            )  # by default it asks whether to run code of the folder
            read: Any = UMT5EncoderModel.from_pretrained(
                str(weights), dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: of shapes that differ
            reason = " ".join(str(error).split())
            raise UserError(f"{folder} has no readable text encoder ({reason}); download the model again") from error
        encoder, loaded = read
        encoder.set_input_embeddings(encoder.shared)
        # In their place transformers would go on with random numbers.
        if missing := set(loaded["missing_keys"]) - {_TIED}:
            raise UserError(f"{weights} lacks {min(missing)}; download the model again")
        return cls(tokenizer, encoder.to(device))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], num_tokens: int = NUM_TOKENS) -> Tensor:
        """text_BLM of cleaned prompts cut at L = num_tokens; zeros after a prompt's last token, its end mark."""
        tokens = self.tokenizer(
            [clean(prompt) for prompt in prompts],
            padding="max_length",
            max_length=num_tokens,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.encoder.device)
        text_BLM = self.encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return text_BLM.masked_fill(tokens.attention_mask.unsqueeze(-1) == 0, 0)
