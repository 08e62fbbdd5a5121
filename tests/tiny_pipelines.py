"""Diffusers folders of tiny, randomly initialised models of the real classes, as the open systems' published ones are laid out.

`FOLDERS` makes each: Wan's of tests/wan_folder.py (VBVR-Wan2.2 and Wan-R1 are of these kinds), CogVideoX1.5-5B-I2V and
HunyuanVideo-I2V. Where diffusers is missing, tests that import this are skipped.
"""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from wan_folder import diffusers, make_experts_folder, make_wan_folder, tiny_tokenizer, transformers

TEXT_DIM = 16


def make_cogvideox_folder(path: Path, *, seed: int = 0, **sizes: Any) -> Path:
    """Writes a folder like CogVideoX1.5-5B-I2V's: two latent frames a patch, ofs embedding, noise and image by channel."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    text = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 8,
        "out_channels": 4,
        "time_embed_dim": 4,
        "ofs_embed_dim": 4,
        "text_embed_dim": TEXT_DIM,
        "num_layers": 1,
        "patch_size": 2,
        "patch_size_t": 2,
        "patch_bias": False,
        "sample_width": 170,
        "sample_height": 96,
        "max_text_seq_length": 226,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": False,
    }
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        invert_scale_latents=True,
    )
    diffusers.CogVideoXImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.T5EncoderModel(text).eval(),
        vae=vae.eval(),
        transformer=diffusers.CogVideoXTransformer3DModel(**config | sizes).eval(),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            snr_shift_scale=1.0,
        ),
    ).save_pretrained(path)
    return path


def make_hunyuan_folder(path: Path, *, seed: int = 0, **sizes: Any) -> Path:
    """Writes a folder like HunyuanVideo-I2V's: LLaVA sees the image, whose latent is the first token frame."""
    torch.manual_seed(seed)
    tokenizer, clip_tokenizer = llama_tokenizer(), tiny_clip_tokenizer()
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "patch_size": 2,
        "patch_size_t": 1,
        "guidance_embeds": True,
        "text_embed_dim": TEXT_DIM,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (2, 4, 4),
        "image_condition_type": "token_replace",
    }
    vae = diffusers.AutoencoderKLHunyuanVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        act_fn="silu",
        norm_num_groups=4,
        scaling_factor=0.476986,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
        mid_block_add_attention=True,
    )
    clip = transformers.CLIPTextConfig(
        vocab_size=len(clip_tokenizer), hidden_size=8, intermediate_size=8, projection_dim=8, num_attention_heads=2,
        num_hidden_layers=1, max_position_embeddings=77,
        bos_token_id=clip_tokenizer.bos_token_id, eos_token_id=clip_tokenizer.eos_token_id,
    )  # fmt: skip
    diffusers.HunyuanVideoImageToVideoPipeline(
        text_encoder=tiny_llava(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.HunyuanVideoTransformer3DModel(**config | sizes).eval(),
        vae=vae.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=transformers.CLIPTextModel(clip).eval(),
        tokenizer_2=clip_tokenizer,
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": LLAVA_IMAGE}, crop_size={"height": LLAVA_IMAGE, "width": LLAVA_IMAGE}
        ),
    ).save_pretrained(path)
    return path


# The pipeline's template counts on 576 image tokens: 24 x 24 patches of 14 pixels in LLaVA, of 2 here.
LLAVA_IMAGE, LLAVA_PATCH = 48, 2


def tiny_llava(tokenizer: Any) -> Any:
    vision = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, projection_dim=8, num_attention_heads=2, num_hidden_layers=2,
        image_size=LLAVA_IMAGE, patch_size=LLAVA_PATCH,
    )  # fmt: skip
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_DIM, intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


def llama_tokenizer() -> Any:
    """The class of LLaVA's tokenizer. The words of the pipeline's template are tokens; other text is spelt."""
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE

    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    special += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    letters = ["▁", "\n", *string.printable.strip()]
    words = ["\n\n", "system", "user", "assistant"]
    words += sorted({f"▁{word}" for word in DEFAULT_PROMPT_TEMPLATE["template"].replace(".", " ").split()})
    merges = dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word)))
    tokens = dict.fromkeys([*special, *letters, *("".join(pair) for pair in merges)])
    tokenizer = transformers.LlamaTokenizerFast(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=list(merges),
        pad_token="<pad>",
        padding_side="right",
        add_bos_token=True,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[4:]})
    return tokenizer


def tiny_clip_tokenizer() -> Any:
    """The class of CLIP's tokenizer, which spells every word."""
    letters = [character + end for end in ("", "</w>") for character in string.printable.strip()]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


FOLDERS: dict[str, Callable[..., Path]] = {
    "Wan2.2-TI2V-5B": make_wan_folder,
    "Wan2.2-I2V-A14B": make_experts_folder,
    "CogVideoX1.5-5B-I2V": make_cogvideox_folder,
    "HunyuanVideo-I2V": make_hunyuan_folder,
}
