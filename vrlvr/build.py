"""Policies and codecs: made from a configuration, or read from a run."""

from pathlib import Path

import torch

from vrlvr.checkpoint import read_tensors, write_folder
from vrlvr.config import Config
from vrlvr.distributed import World
from vrlvr.models.codec import Codec
from vrlvr.models.dit import WanConfig, WanTransformer
from vrlvr.models.text import TaskEmbedding
from vrlvr.models.tiny_codec import TinyCodec
from vrlvr.policy import Policy


def build_policy(config: Config, codec: Codec, device: torch.device) -> Policy:
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


def load_policy(config: Config, codec: Codec, device: torch.device, run_dir: Path, name: str) -> Policy:
    """The moving average of a checkpoint, ready to be trained on. Raises UserError if the run has no such checkpoint."""
    policy = build_policy(config, codec, device)
    policy.load_state_dict(read_tensors(run_dir / "checkpoints" / name, "ema"))
    return policy


def save_codec(codec: TinyCodec, run_dir: Path, world: World) -> None:
    """Writes run_dir/codec/. Raises UserError if the disk refuses."""
    world.on_main(lambda: write_folder(run_dir / "codec", {"codec": codec.state_dict()}, {}))


def load_codec(run_dir: Path) -> TinyCodec:
    """Reads what `save_codec` wrote. Raises UserError if it is missing."""
    return TinyCodec.from_state_dict(read_tensors(run_dir / "codec", "codec"))
