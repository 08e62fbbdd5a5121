"""The main job: puzzles, SFT, SDE-GRPO, evaluation.

torchrun vrlvr/train.py [--config configs/X.yaml] [--stage data|sft|grpo|eval|all] [--section.field VALUE ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from vrlvr import options
from vrlvr.batches import generate_all
from vrlvr.checkpoint import Checkpoints, read_tensors
from vrlvr.config import Config, check
from vrlvr.distributed import World, end_world, start_world
from vrlvr.errors import UserError
from vrlvr.grpo import train_grpo
from vrlvr.models.dit import WanConfig, WanTransformer
from vrlvr.models.text import TaskEmbedding
from vrlvr.models.tiny_codec import TinyCodec
from vrlvr.policy import Policy
from vrlvr.run_log import RunLog
from vrlvr.sft import train_sft


def build_policy(config: Config, codec: TinyCodec, device: torch.device) -> Policy:
    """A policy from scratch, the same on every rank and for every number of ranks."""
    torch.manual_seed(config.seed)
    model, channels = config.model, codec.latent_channels
    dit = WanTransformer(
        WanConfig(
            patch_size=model.patch_size,
            num_attention_heads=model.num_attention_heads,
            attention_head_dim=model.attention_head_dim,
            in_channels=channels * (2 if model.conditioning == "concat" else 1),
            out_channels=channels,
            text_dim=model.text_dim,
            freq_dim=model.freq_dim,
            ffn_dim=model.ffn_dim,
            num_layers=model.num_layers,
        )
    )
    dit.init_weights()
    return Policy(dit, TaskEmbedding(len(config.data.tasks), model.text_dim), model.conditioning).to(device)
