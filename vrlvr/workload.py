"""What a run computes, from its configuration alone: the sizes of model and videos, rows of an update, FLOPs.

A *row* is one evaluation of the transformer. Nothing is loaded: a pretrained model need not be there.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vrlvr.batches import generate_all, videos_of
from vrlvr.build import scratch_transformer
from vrlvr.config import Config, num_sde_steps
from vrlvr.distributed import World
from vrlvr.encoded import INDEX, read_index
from vrlvr.errors import UserError
from vrlvr.models.dit import WanConfig
from vrlvr.models.flops import forward_flops
from vrlvr.models.tiny_codec import TinyCodec
from vrlvr.models.umt5 import NUM_TOKENS
from vrlvr.models.wan_layout import check_sides, read_config, read_json
from vrlvr.models.wan_vae import WanVAECodec, drop_encoder
from vrlvr.policy import Policy
from vrlvr.source import Source

_CODEC_SAMPLE = 300  # videos a task, as many as the data stage whitens the tiny codec by
PUBLISHED = "Wan2.2-TI2V-5B"
_REMEDY = "give a config.json of a Wan model"  # for one that cannot be read
# vae/config.json by latent channels; Wan2.1's, which Wan2.2's 14B models use, is what diffusers takes by default.
_VAES: dict[int, dict[str, Any]] = {
    16: {},
    48: {
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": [0.0] * 48,
        "latents_std": [1.0] * 48,
    },
}


@dataclass(frozen=True)
class Sizes:
    """Of model and videos. latent_shape: (C, F, H, W) of the generated frames. text_shape: (prompts, L, text_dim).

    codec: on the meta device, or the tiny codec. note: where the sizes are from, if not from where the configuration says.
    """

    dit: WanConfig
    latent_shape: tuple[int, int, int, int]
    text_shape: tuple[int, int, int]
    codec: WanVAECodec | TinyCodec
    note: str | None = None

    def num_tokens(self, conditioning: str) -> int:
        """Of a row."""
        _, frames, rows, columns = self.latent_shape
        frames += conditioning == "pin"
        return math.prod((frames, rows, columns)) // math.prod(self.dit.patch_size)


def sizes_of(config: Config, model_config: Path | None = None) -> Sizes:
    """model_config: a transformer's config.json, in place of that in model.path. Raises UserError for what does not fit."""
    data = config.data
    if config.model.path is None:
        if model_config is not None:
            raise UserError(f"--model_config {model_config} needs a pretrained model; give model.path and data.encoded")
        train = generate_all(config, World(), "train", min(data.num_train, _CODEC_SAMPLE))
        tiny = TinyCodec.fit(videos_of([puzzle for batch in train.values() for puzzle in batch], data))
        shape = tiny.latent_shape(data.num_frames, data.height, data.width)
        text_shape = (len(data.tasks), 1, config.model.text_dim)
        return Sizes(scratch_transformer(config, tiny.latent_channels), shape, text_shape, tiny)
    folder, note = Path(config.model.path), None
    if model_config is not None:
        dit, note = WanConfig.from_diffusers(read_json(model_config, _REMEDY)), f"sizes of {model_config}"
    elif folder.is_dir():
        dit = read_config(folder)
    else:
        dit, note = WanConfig(), f"{folder} is not here: sizes of {PUBLISHED} as published"
    vae = folder / "vae" / "config.json"
    codec = _vae_codec(dit.out_channels, vae if folder.is_dir() and model_config is None else None)
    check_sides(dit, codec.pixels_per_latent, data.height, data.width)
    shape = codec.latent_shape(data.num_frames, data.height, data.width)
    return Sizes(dit, shape, (_num_prompts(config), NUM_TOKENS, dit.text_dim), codec, note)


def sizes_in_use(policy: Policy, source: Source) -> Sizes:
    """Of a policy that is loaded, and of what it is trained on."""
    codec = source.codec
    if isinstance(codec, WanVAECodec):
        codec = _meta_codec(dict(codec.vae.config))
    assert isinstance(codec, WanVAECodec | TinyCodec)
    prompts, length, dim = policy.text.table.shape
    return Sizes(policy.dit.config, source.latent_shape, (prompts, length, dim), codec)


def _vae_codec(channels: int, config: Path | None) -> WanVAECodec:
    """On the meta device. config: vae/config.json; None: the published VAE of so many latent channels."""
    if config is None and channels not in _VAES:
        raise UserError(f"no published VAE has {channels} latent channels; give a model.path that is here")
    return _meta_codec(_VAES[channels] if config is None else read_json(config, _REMEDY))


def _meta_codec(config: dict[str, Any]) -> WanVAECodec:
    """What `vrlvr.build.open_source` makes of a VAE: its decoder."""
    try:
        from diffusers import AutoencoderKLWan  # costs seconds
    except ImportError as error:
        raise UserError(
            f"Wan models need the package diffusers ({error}); install it with pip install vrlvr[wan]"
        ) from error
    with torch.device("meta"):
        vae = AutoencoderKLWan.from_config(config)
        drop_encoder(vae)
        return WanVAECodec(vae)


def _num_prompts(config: Config) -> int:
    """Of the encoded data set, if it is here. Else by the rooms' rule: one a task, and for FlowFree one a number of colours."""
    data = config.data
    if data.encoded and (Path(data.encoded) / INDEX).is_file():
        return len(read_index(Path(data.encoded))["prompts"])
    colours = {colours for colours, _ in data.flowfree.mixes}
    return sum(len(colours) if task == "flowfree" else 1 for task in data.tasks)


@dataclass(frozen=True)
class Rows:
    """Of a GRPO update, all processes together.

    samples: P x G. rollout: without gradient. trained: forward and backward, anchors among them, in all inner epochs.
    anchors: those of one epoch. reference: of the reference policy, without gradient.
    """

    samples: int
    rollout: int
    trained: int
    anchors: int
    reference: int


def rollout_steps(config: Config) -> int:
    """Denoising steps of a sample."""
    window = num_sde_steps(config)
    tail = config.sampler.num_steps - window
    return window + (tail if config.grpo.tail_steps is None else min(config.grpo.tail_steps, tail))


def update_rows(config: Config) -> Rows:
    """Counted as if every group kept a sample (see `vrlvr.update.kept_samples`)."""
    grpo, window, steps = config.grpo, num_sde_steps(config), rollout_steps(config)
    samples = grpo.puzzles * grpo.group_size
    kept = max(1, round(grpo.keep_fraction * samples))
    anchors = round(grpo.anchor_fraction * kept) if grpo.anchor_weight > 0 else 0
    shared = grpo.shared_noise
    terms = (min(grpo.puzzles, kept) if shared else kept) + (window - 1) * kept
    return Rows(
        samples=samples,
        rollout=(grpo.puzzles if shared else samples) + (steps - 1) * samples,
        trained=grpo.inner_epochs * (terms + anchors),
        anchors=anchors,
        reference=grpo.inner_epochs * ((terms if grpo.kl_weight > 0 else 0) + anchors),
    )


def backward_passes(config: Config, sizes: Sizes) -> float:
    """FLOPs of a row's backward pass over those of its forward: 2, less the products for frozen weights under LoRA.

    The adapters' own, a few percent, are left out.
    """
    if config.model.lora.rank == 0:
        return 2.0
    parts = forward_flops(sizes.dit, sizes.num_tokens(config.model.conditioning), sizes.text_shape[1])
    attention = sum(parts[name] for name in ("self_attention", "cross_attention"))
    return 1 + attention / sum(parts.values())


def row_flops(config: Config, sizes: Sizes) -> int:
    """Of one forward of one row."""
    return sum(forward_flops(sizes.dit, sizes.num_tokens(config.model.conditioning), sizes.text_shape[1]).values())
