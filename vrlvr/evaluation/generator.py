"""A diffusers image-to-video pipeline as a function from a first frame, a prompt and a seed to a video.

Weights are read as safetensors only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vrlvr.errors import UserError
from vrlvr.evaluation.letterbox import cut, fit
from vrlvr.evaluation.lora_file import load_lora
from vrlvr.evaluation.model_spec import Settings, Spec, specify
from vrlvr.evaluation.pipelines import Family


@dataclass(frozen=True)
class Generator:
    """A loaded model. The noise of a video depends on its seed alone, whatever it is generated with."""

    pipeline: Any
    family: Family
    settings: Settings

    def __call__(self, image: Image.Image | NDArray[np.uint8], prompt: str, seed: int, num_frames: int = 81) -> NDArray:
        """video_TYXC, uint8 RGB, that continues `image` (a PIL image or uint8 YXC). See `samples`."""
        return self.samples(image, prompt, [seed], num_frames)[0]

    def samples(
        self,
        image: Image.Image | NDArray[np.uint8],
        prompt: str,
        seeds: Sequence[int],
        num_frames: int = 81,
        on_step: Callable[[], object] = lambda: None,
    ) -> list[NDArray[np.uint8]]:
        """A video_TYXC a seed, uint8 RGB, all denoised together.

        num_frames: how many are wanted, of which the model makes the nearest number that it can (Settings.num_frames comes
        first). The size is that of Settings, or `Family.size_for` the image, which is letterboxed where the aspects differ; the
        bars are cut off the video again. on_step: called after each denoising step. Raises UserError if memory runs out.
        """
        picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
        own = self.family.size_for(picture.height, picture.width)
        height, width = self.settings.height or own[0], self.settings.width or own[1]
        frame, box = fit(picture, height, width)
        frames = self.settings.num_frames or self.family.frames_for(num_frames)

        def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step()
            return {}

        options: dict[str, Any] = (
            {} if self.family.negative_prompt is None else {"negative_prompt": self.settings.negative_prompt}
        )
        with enough_memory(f"{len(seeds)} x {frames} frames of {height}x{width}"):
            videos = self.pipeline(
                # Wan's pipeline takes one image for all; the others one for each.
                image=frame if self.family.one_image else [frame] * len(seeds),
                prompt=[prompt] * len(seeds),
                height=height,
                width=width,
                num_frames=frames,
                num_inference_steps=self.settings.steps,
                guidance_scale=self.settings.guidance,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="np",
                callback_on_step_end=after_step,
                **options,
            ).frames
        if not np.isfinite(videos).all():
            raise UserError(f"{self.family.name} made pixels that are no numbers; use --dtype float32 or bfloat16")
        return [cut(np.rint(255 * video).astype(np.uint8), box) for video in videos]


def load_pipeline(model: str, **options: Any) -> Generator:
    """Loads a Diffusers folder, or a hub's model, with the options of `specify` by name.

    Raises UserError for what is not supported or does not fit, and where memory does not suffice.
    """
    return load(specify(model, **options))


def load(spec: Spec) -> Generator:
    """The generator that a Spec describes. Raises UserError as `load_pipeline`."""
    family = spec.family
    with enough_memory(f"the weights of {spec.folder}"):
        pipeline = _from_folder(spec.folder, family, spec.dtypes)
        for component, path in (("transformer", spec.lora), ("transformer_2", spec.lora_2)):
            if path is not None:
                load_lora(pipeline, path, component)
        if spec.shift is not None:
            shifted = {str(family.shift): spec.shift}
            pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **shifted)
        if family.tiled_vae:
            pipeline.vae.enable_tiling()
        pipeline.set_progress_bar_config(disable=True)
        if spec.offload == "model":
            pipeline.enable_model_cpu_offload(device=spec.device)
        elif spec.offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=spec.device)
        else:
            pipeline.to(spec.device)
    return Generator(pipeline, family, spec.settings)


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Turns running out of memory into a UserError with what to turn down."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(
            f"memory does not suffice for {what}; use --offload model (or sequential), --batch_size 1, --dtype bfloat16, or a "
            "smaller --height and --width"
        ) from error


def _from_folder(folder: Path, family: Family, dtypes: Mapping[str, torch.dtype]) -> Any:
    import diffusers  # costs seconds

    try:
        return getattr(diffusers, family.pipeline).from_pretrained(
            str(folder), torch_dtype=dict(dtypes), local_files_only=True, use_safetensors=True
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder} cannot be loaded as a {family.pipeline} of safetensors files ({reason}); download it completely"
        ) from error
