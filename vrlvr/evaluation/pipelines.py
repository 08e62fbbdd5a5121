"""The open image-to-video systems of the paper: which diffusers pipeline runs each, and with which settings.

A model is recognised by what its folder says of itself (model_index.json and the transformer's config.json), never by its
name. Fine-tunes run with the settings of what they were trained from:

- VBVR-Wan2.2 is published as a whole Diffusers folder (Video-Reason/VBVR-Wan2.2, fine-tuned from Wan2.2-I2V-A14B without a
  change of architecture, says its model card), and as LoRA of DiffSynth-Studio (Video-Reason/VBVR-Wan2.2-diffsynth).
- Wan-R1 of VR-Bench (arXiv 2511.15065; weights: HY-Wan/Wan-R1) was trained as a LoRA of DiffSynth-Studio for Wan2.2-TI2V-5B:
  rank 32 on q, k, v, o, ffn.0, ffn.2, by VR-Bench's README. So `--model BASE --lora FILE`; a merged folder works as well. Its
  inference script has no negative prompt (`--negative_prompt ""`), and 193 frames of 512x512.
- A model trained here is what `vrlvr export` writes: a folder of Wan2.2-TI2V-5B's kind, or a LoRA for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vrlvr.errors import UserError

# What Wan's own code asks to avoid by default (`sample_neg_prompt` of its shared configuration).
WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，"
    "背景人很多，倒着走"
)
COGVIDEOX_SHORT_SIDE = 768
_MIN_FILLED = 0.9  # of a model's documented area, where a size is chosen for an image


@dataclass(frozen=True)
class Family:
    """Models that one pipeline runs with the same settings.

    Sides are multiples of `multiple`, frames 1 + k * frame_step and at most max_frames. area: pixels of the largest documented
    frame. short_side: the only documented length of the shorter side, None if any will do. guidance: classifier-free, but
    HunyuanVideo has learnt to imitate it. vae_dtype: where the rest is in half precision.
    """

    name: str
    pipeline: str
    transformer: str
    multiple: int
    frame_step: int
    max_frames: int
    area: int
    fps: int
    steps: int
    guidance: float
    negative_prompt: str | None = None  # None: the pipeline has no use for one
    short_side: int | None = None
    shift: str | None = None  # the scheduler's name for the timesteps' shift
    vae_dtype: str | None = None  # None: that of the rest
    tiled_vae: bool = False
    one_image: bool = False  # the pipeline takes one image a call, however many samples
    limits: tuple[float, float] = (math.inf, math.inf)  # height and width beyond which the model has no positions

    def allows(self, height: int, width: int) -> bool:
        """Whether the model was made for frames of this size."""
        return (
            height % self.multiple == width % self.multiple == 0
            and height * width <= self.area
            and self.short_side in (None, min(height, width))
            and height <= self.limits[0]
            and width <= self.limits[1]
        )

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """The size to generate at for an image of this one: itself where the model allows it.

        Else, of the documented sizes, the one nearest in aspect, and of these the largest. For models of a documented area
        (Wan's and HunyuanVideo's code keep the image's aspect) those are all that fill at least 90 % of it.
        """
        if self.allows(height, width):
            return height, width
        least = self.short_side or self.multiple
        sides = range(least, self.area // least + 1, self.multiple)
        filled = 0 if self.short_side else _MIN_FILLED * self.area
        sizes = [(y, x) for y in sides for x in sides if self.allows(y, x) and y * x >= filled]
        return min(sizes, key=lambda size: (abs(math.log(size[0] * width / (size[1] * height))), -size[0] * size[1]))

    def frames_for(self, num_frames: int) -> int:
        """The number of frames that the model can make nearest to this one; the larger of two."""
        counts = range(1 + self.frame_step, self.max_frames + 1, self.frame_step)
        return min(counts, key=lambda count: (abs(count - num_frames), -count))


# Steps, guidance, fps, sizes, VAE in float32: model card of Wan-AI/Wan2.2-TI2V-5B-Diffusers, Wan's wan_ti2v_5B.py. Sides: its
# VAE's 16 x patches of 2.
WAN_TI2V = Family(
    name="Wan2.2-TI2V-5B",
    pipeline="WanImageToVideoPipeline",
    transformer="WanTransformer3DModel",
    multiple=32,
    frame_step=4,
    max_frames=121,
    area=704 * 1280,
    fps=24,
    steps=50,
    guidance=5.0,
    negative_prompt=WAN_NEGATIVE_PROMPT,
    shift="flow_shift",
    vae_dtype="float32",
    one_image=True,
)
# Model card of Wan-AI/Wan2.2-I2V-A14B-Diffusers, Wan's wan_i2v_A14B.py: 480P and 720P, one guidance for both experts.
WAN_EXPERTS = replace(
    WAN_TI2V, name="Wan2.2-I2V-A14B", multiple=16, max_frames=81, area=720 * 1280, fps=16, steps=40, guidance=3.5
)
# README of CogVideoX1.5-5B-I2V: min(W, H) = 768, max(W, H) <= 1360 and a multiple of 16, 16N + 1 frames with N <= 10, BF16,
# tiled VAE; 50 steps and guidance 6 in its example.
COGVIDEOX = Family(
    name="CogVideoX1.5-5B-I2V",
    pipeline="CogVideoXImageToVideoPipeline",
    transformer="CogVideoXTransformer3DModel",
    multiple=16,
    short_side=COGVIDEOX_SHORT_SIDE,
    frame_step=16,
    max_frames=161,
    area=768 * 1360,
    fps=16,
    steps=50,
    guidance=6.0,
    negative_prompt="",
    tiled_vae=True,
)
# README of HunyuanVideo-I2V (720p, 129 frames at 24 fps, 50 steps; shift 7 is in its scheduler) and diffusers' documentation of
# the pipeline: embedded guidance 6, VAE in float16, tiled.
HUNYUAN = Family(
    name="HunyuanVideo-I2V",
    pipeline="HunyuanVideoImageToVideoPipeline",
    transformer="HunyuanVideoTransformer3DModel",
    multiple=16,
    frame_step=4,
    max_frames=129,
    area=720 * 1280,
    fps=24,
    steps=50,
    guidance=6.0,
    shift="shift",
    vae_dtype="float16",
    tiled_vae=True,
)
FAMILIES = (WAN_TI2V, WAN_EXPERTS, COGVIDEOX, HUNYUAN)


def components(index: Mapping[str, Any]) -> list[str]:
    """The names of what a model_index.json says to load: [library, class], while [null, null] stands for what is left out."""
    return [name for name, value in index.items() if isinstance(value, list) and value and value[-1]]


def family_of(model: str, index: Mapping[str, Any], transformer: Mapping[str, Any]) -> Family:
    """The family of a model. index: its model_index.json; transformer: that component's config.json.

    Raises UserError, which lists what is supported, for any other model.
    """
    found = _family(index, transformer)
    if found is None:
        names = ", ".join(f"{family.name} ({family.pipeline})" for family in FAMILIES)
        raise UserError(
            f"{model} is a {_shown(index.get('_class_name'))} with a {_shown(transformer.get('_class_name'))} of no kind "
            f"that is supported here; use a model of one of these: {names}"
        )
    return found


def _family(index: Mapping[str, Any], transformer: Mapping[str, Any]) -> Family | None:
    pipeline, kind = index.get("_class_name"), transformer.get("_class_name")
    if kind == WAN_TI2V.transformer:
        # Wan2.2-TI2V-5B-Diffusers names the text-to-video pipeline, which would ignore the image.
        if pipeline in (WAN_TI2V.pipeline, "WanPipeline") and index.get("expand_timesteps") is True:
            return WAN_TI2V
        if (
            pipeline == WAN_EXPERTS.pipeline
            and "transformer_2" in components(index)
            and index.get("boundary_ratio") is not None
        ):
            return WAN_EXPERTS
    # CogVideoX 1.0 has neither temporal patches nor a choice of sizes.
    if (pipeline, kind) == (COGVIDEOX.pipeline, COGVIDEOX.transformer) and transformer.get("patch_size_t"):
        rows, columns = transformer.get("sample_height"), transformer.get("sample_width")
        if isinstance(rows, int) and isinstance(columns, int) and min(rows, columns) >= COGVIDEOX_SHORT_SIDE // 8:
            return replace(COGVIDEOX, limits=(8 * rows, 8 * columns))  # of latents of 8x8 pixels
    # The first version, HunyuanVideo-I2V-33ch (`latent_concat`), does not return the frame that it starts from.
    if (pipeline, kind) == (HUNYUAN.pipeline, HUNYUAN.transformer):
        return HUNYUAN if transformer.get("image_condition_type") == "token_replace" else None
    return None


def _shown(value: Any) -> str:
    return repr(value)[:80]
