"""Diffusers folders of tiny, randomly initialised models of the real classes, laid out as the published Wan folders are.

`make_wan_folder`: as Wan2.2-TI2V-5B (48-channel VAE made small, first frame as a clean latent frame, `expand_timesteps`).
`make_experts_folder`: as Wan2.2-I2V-A14B (Wan2.1's VAE, two transformers, first frame and its mask by channel).
`generate`: what diffusers' own pipeline makes of such a folder.

Where diffusers is missing, tests that import this are skipped.
"""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

TEXT_DIM = 16
HEIGHT, WIDTH, NUM_FRAMES = 32, 64, 9  # 2x4 latents of 3 frames; sides must be multiples of 32
FLOW_SHIFT = 5.0  # that of the published 480p presets
TI2V_SIZES: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 6,
    "out_channels": 6,
    "text_dim": TEXT_DIM,
    "freq_dim": 16,
    "ffn_dim": 56,
    "num_layers": 2,
}
I2V_SIZES: dict[str, Any] = TI2V_SIZES | {"in_channels": 3 + 4 + 3, "out_channels": 3}  # noise, mask, first frame
WAN22_VAE: dict[str, Any] = {
    "base_dim": 4,
    "decoder_base_dim": 6,
    "z_dim": 6,
    "num_res_blocks": 1,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}
WAN21_VAE: dict[str, Any] = {"base_dim": 4, "z_dim": 3, "num_res_blocks": 1}


def tiny_tokenizer() -> Any:
    """The class of umt5's tokenizer, with a vocabulary of single characters: no text is out of it."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(character, -3.0) for character in string.digits + string.ascii_letters + string.punctuation]
    return transformers.T5TokenizerFast(vocab=special + letters, extra_ids=0)


def tiny_text_encoder(vocab_size: int) -> Any:
    config = transformers.UMT5Config(
        vocab_size=vocab_size,
        d_model=TEXT_DIM,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,  # as published, although the folders hold one embedding table
    )
    return transformers.UMT5EncoderModel(config).eval()


def tiny_transformer(sizes: dict[str, Any]) -> Any:
    """Every parameter away from its initial value, so that none of them can be ignored unseen."""
    model = diffusers.WanTransformer3DModel(**sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def tiny_vae(sizes: dict[str, Any]) -> Any:
    channels = sizes["z_dim"]
    mean, std = torch.randn(channels).tolist(), (0.2 + torch.rand(channels)).tolist()
    return diffusers.AutoencoderKLWan(**sizes, latents_mean=mean, latents_std=std).eval()


def unipc_scheduler(flow_shift: float = FLOW_SHIFT) -> Any:
    """With the settings of the published folders."""
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift, num_train_timesteps=1000
    )


def make_wan_folder(
    path: Path,
    *,
    seed: int = 0,
    max_shard_size: str = "40KB",
    pipeline: str = "WanImageToVideoPipeline",
    **sizes: Any,
) -> Path:
    """Writes a folder like Wan2.2-TI2V-5B's, its transformer in several shards. sizes: those of TI2V_SIZES that differ.

    pipeline: the class that model_index.json names; WanPipeline serves as well.
    """
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    whole = getattr(diffusers, pipeline)(
        tokenizer=tokenizer,
        text_encoder=tiny_text_encoder(len(tokenizer)),
        vae=tiny_vae(WAN22_VAE),
        scheduler=unipc_scheduler(),
        transformer=tiny_transformer(TI2V_SIZES | sizes),
        expand_timesteps=True,
    )
    whole.save_pretrained(path, max_shard_size=max_shard_size)
    return path


def make_experts_folder(path: Path, *, seed: int = 0, boundary_ratio: float = 0.9, **sizes: Any) -> Path:
    """Writes a folder like Wan2.2-I2V-A14B's. sizes: those of I2V_SIZES that differ."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    experts: list[nn.Module] = [tiny_transformer(I2V_SIZES | sizes) for _ in range(2)]
    pipeline = diffusers.WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_text_encoder(len(tokenizer)),
        vae=tiny_vae(WAN21_VAE),
        scheduler=unipc_scheduler(),
        transformer=experts[0],
        transformer_2=experts[1],
        boundary_ratio=boundary_ratio,
    )
    pipeline.save_pretrained(path, max_shard_size="40KB")
    return path


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def picture() -> np.ndarray:
    """A first frame, (1, HEIGHT, WIDTH, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)


class EvenEuler(diffusers.FlowMatchEulerDiscreteScheduler):
    """diffusers' Euler steps on evenly spaced sigmas (before the shift) down to 0, as those of `sigma_schedule` are."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(sigmas=[1 - i / num_inference_steps for i in range(num_inference_steps)], device=device)


def even_pipeline(folder: Path) -> Any:
    """diffusers' pipeline of a folder, with `EvenEuler` steps of FLOW_SHIFT."""
    pipeline = diffusers.WanImageToVideoPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.scheduler = EvenEuler(shift=FLOW_SHIFT)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: Any, noise_BCFHW: Tensor, text_BLM: Tensor, num_steps: int, output: str) -> Any:
    """The pipeline's video of `picture` without guidance. output: "latent" (normalised) or "np" (pixels in [0, 1], BTYXC)."""
    return pipeline(
        image=Image.fromarray(picture()[0]),
        latents=noise_BCFHW,
        prompt_embeds=text_BLM,
        height=HEIGHT,
        width=WIDTH,
        num_frames=NUM_FRAMES,
        num_inference_steps=num_steps,
        guidance_scale=1.0,
        output_type=output,
    ).frames
