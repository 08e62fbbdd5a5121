"""Policies and codecs: made from a configuration, or read from a run."""

from dataclasses import replace
from pathlib import Path

import torch

from vrlvr.checkpoint import read_tensors, write_folder
from vrlvr.config import Config
from vrlvr.distributed import World
from vrlvr.memory import choose_policy
from vrlvr.models.codec import Codec
from vrlvr.models.dit import WanConfig, WanTransformer
from vrlvr.models.recompute import Policy as RecomputePolicy
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
        ),
        attention=model.attention,
    )
    dit.init_weights()
    return Policy(dit, TaskEmbedding(len(config.data.tasks), model.text_dim), model.conditioning).to(device)


def load_policy(config: Config, codec: Codec, device: torch.device, run_dir: Path, name: str) -> Policy:
    """The moving average of a checkpoint, ready to be trained on. Raises UserError if the run has no such checkpoint."""
    policy = build_policy(config, codec, device)
    policy.load_state_dict(read_tensors(run_dir / "checkpoints" / name, "ema"))
    return policy


def set_recompute(config: Config, policy: Policy, latent_shape: tuple[int, int, int, int], rows: int) -> None:
    """Sets what the backward pass of `rows` rows a micro-batch recomputes, as the configuration says.

    auto: on a GPU the least that fits in the memory that is free or held by the policy's own parameters, by the estimate of
    `vrlvr.memory`; on a CPU nothing. Raises UserError if not even full recomputation fits.
    """
    dit, wanted = policy.dit, config.model.recompute
    weight = dit.patch_embedding.weight
    if wanted != "auto":
        dit.recompute = wanted
    elif weight.is_cuda:
        free, _ = torch.cuda.mem_get_info(weight.device)
        unused = torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
        own = sum(parameter.nbytes for parameter in policy.parameters())
        dit.recompute = fitting_recompute(policy, latent_shape, rows, free + unused + own)


def fitting_recompute(
    policy: Policy, latent_shape: tuple[int, int, int, int], rows: int, free_bytes: int
) -> RecomputePolicy:
    """The least recomputation whose training step fits, see `vrlvr.memory.choose_policy`. rows: of a micro-batch."""
    dit, dtype = policy.dit, policy.dit.patch_embedding.weight.dtype
    clean = 1 if policy.conditioning == "pin" else 0
    _, frames, height, width = latent_shape
    text = policy.text.table
    inputs = (
        torch.empty(rows, dit.config.in_channels, frames + clean, height, width, device="meta"),
        torch.empty(rows, device="meta"),
        torch.empty(rows, *text.shape[1:], device="meta"),
        clean,
    )
    return choose_policy(
        lambda num_layers, recompute: WanTransformer(
            replace(dit.config, num_layers=num_layers), recompute, dit.attention
        ).to(dtype),
        inputs,
        dit.config.num_layers,
        free_bytes,
    )


def save_codec(codec: TinyCodec, run_dir: Path, world: World) -> None:
    """Writes run_dir/codec/. Raises UserError if the disk refuses."""
    world.on_main(lambda: write_folder(run_dir / "codec", {"codec": codec.state_dict()}, {}))


def load_codec(run_dir: Path) -> TinyCodec:
    """Reads what `save_codec` wrote. Raises UserError if it is missing."""
    return TinyCodec.from_state_dict(read_tensors(run_dir / "codec", "codec"))
