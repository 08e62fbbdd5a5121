"""Policies, codecs and sources of puzzles: made from a configuration, or read from a run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from vrlvr.audit import AuditedDecoder
from vrlvr.checkpoint import read_average, read_tensors, write_folder
from vrlvr.config import Config
from vrlvr.distributed import World
from vrlvr.encoded import EncodedData
from vrlvr.memory import choose_policy
from vrlvr.models.dit import WanConfig, WanTransformer
from vrlvr.models.recompute import Policy as RecomputePolicy
from vrlvr.models.reward_decoder import RewardDecoder
from vrlvr.models.text import FrozenText, TaskEmbedding
from vrlvr.models.tiny_codec import TinyCodec
from vrlvr.models.wan import load_transformer
from vrlvr.models.wan_layout import check_trainable
from vrlvr.models.wan_vae import WanVAECodec
from vrlvr.policy import Policy
from vrlvr.source import Encoded, Rendered, Source
from vrlvr_kernels.launch import Implementation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def open_source(config: Config, run_dir: Path, device: torch.device) -> Source:
    """What the stages after `data` read puzzles' tensors from. Raises UserError for one of another model or size, or none."""
    model = config.model
    if model.path is None:
        return Rendered(config, load_codec(run_dir), device)
    encoded = open_encoded(config)
    codec = WanVAECodec.from_pretrained(Path(model.path) / "vae", device, DTYPES[model.dtype], encodes=False)
    return Encoded(config, codec, device, encoded)


def open_encoded(config: Config) -> EncodedData:
    """What `vrlvr encode` left for a pretrained model. Raises UserError for the work of another model, or of another size."""
    model, data = config.model, config.data
    assert model.path is not None
    assert data.encoded is not None
    check_trainable(Path(model.path))
    encoded = EncodedData(Path(data.encoded))
    encoded.check(Path(model.path), data.height, data.width, data.num_frames)
    return encoded


def build_policy(config: Config, source: Source, device: torch.device) -> Policy:
    """The policy before any training, the same on every rank and for every number of ranks: the folder model.path, or random
    weights. Raises UserError for a folder whose model does not fit.
    """
    torch.manual_seed(config.seed)
    model = config.model
    if isinstance(source, Encoded):
        return _pretrained_policy(config, source, device)
    sizes = scratch_transformer(config, source.codec.latent_channels)
    dit = WanTransformer(sizes, attention=model.attention)
    dit.init_weights()
    text = TaskEmbedding(len(config.data.tasks), model.text_dim)
    return Policy(dit.to(DTYPES[model.dtype]), text, model.conditioning).to(device)


def scratch_transformer(config: Config, latent_channels: int) -> WanConfig:
    """Sizes of a transformer that is trained from scratch."""
    model = config.model
    return WanConfig(
        patch_size=model.patch_size,
        num_attention_heads=model.num_attention_heads,
        attention_head_dim=model.attention_head_dim,
        in_channels=latent_channels * (2 if model.conditioning == "concat" else 1),
        out_channels=latent_channels,
        text_dim=model.text_dim,
        freq_dim=model.freq_dim,
        ffn_dim=model.ffn_dim,
        num_layers=model.num_layers,
    )


def _pretrained_policy(config: Config, source: Encoded, device: torch.device) -> Policy:
    model = config.model
    folder, dtype, lora = Path(model.path or ""), DTYPES[model.dtype], model.lora
    dit = load_transformer(folder, device, dtype, attention=model.attention)
    if lora.rank > 0:
        from vrlvr.lora import add_lora  # needs peft

        add_lora(dit, lora.rank, lora.alpha, lora.targets, config.seed)
    return Policy(dit, FrozenText(source.data.prompt_table.to(device)), "pin")


def load_policy(config: Config, source: Source, device: torch.device, run_dir: Path, name: str) -> Policy:
    """The moving average of a checkpoint, ready to be trained on. Raises UserError if the run has no such checkpoint."""
    policy = build_policy(config, source, device)
    policy.load_state_dict(read_average(run_dir / "checkpoints" / name))
    return policy


def fitting_recompute(
    config: WanConfig,
    grid: tuple[int, int, int],
    text_shape: tuple[int, ...],
    num_clean_frames: int,
    dtype: torch.dtype,
    rows: int,
    free_bytes: int,
    implementation: Implementation = "triton",
) -> RecomputePolicy:
    """The least recomputation whose full fine-tuning step fits, see `vrlvr.memory.choose_policy`.

    grid: latent frames (the clean ones among them), rows and columns. text_shape: (L, text_dim). rows: of a micro-batch.
    """
    latents = torch.empty(rows, config.in_channels, *grid, device="meta")
    text = torch.empty(rows, *text_shape, dtype=dtype, device="meta")
    return choose_policy(
        lambda num_layers, recompute: WanTransformer(replace(config, num_layers=num_layers), recompute).to(dtype),
        (latents, torch.empty(rows, device="meta"), text, num_clean_frames),
        config.num_layers,
        free_bytes,
        implementation=implementation,
    )


def open_reward_decoder(
    config: Config, source: Source, world: World, say: Callable[[str], None]
) -> AuditedDecoder | None:
    """The small decoder of grpo.reward_decoder under audit, if there is one. Raises UserError for one of another VAE."""
    folder, data = config.grpo.reward_decoder, config.data
    if folder is None:
        return None
    assert isinstance(source, Encoded), "config.check allows it with a Wan VAE only"
    assert isinstance(source.codec, WanVAECodec)
    small = RewardDecoder.from_pretrained(Path(folder), world.device, vae=source.data.index["vae"])
    return AuditedDecoder(small, source.codec, (data.height, data.width), config.grpo.audit, config.seed, world, say)


def save_codec(codec: TinyCodec, run_dir: Path, world: World) -> None:
    """Writes run_dir/codec/. Raises UserError if the disk refuses."""
    world.on_main(lambda: write_folder(run_dir / "codec", {"codec": codec.state_dict()}, {}))


def load_codec(run_dir: Path) -> TinyCodec:
    """Reads what `save_codec` wrote. Raises UserError if it is missing."""
    return TinyCodec.from_state_dict(read_tensors(run_dir / "codec", "codec"))
