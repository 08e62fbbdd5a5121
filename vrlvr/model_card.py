"""The README.md of an exported model: what it is, how it was trained, what was measured, and what was not.

Whatever comes from files (names, options, command lines) is escaped: it can't add headings, links, HTML or table columns.
"""

import json
import re
from pathlib import Path
from typing import Any, cast

import yaml

from vrlvr.config import Config, num_sde_steps
from vrlvr.errors import UserError
from vrlvr.evaluation.metrics import Row
from vrlvr.evaluation.run_folder import Run, gains_of, read_run
from vrlvr.evaluation.tables import markdown, task_title
from vrlvr.verifier_version import verifier_version

_SYSTEMS = {"sft-final": "sft", "grpo-final": "rl"}  # rows of results.json by the checkpoint that they tested
_USES = {
    "diffusers": """pipeline = WanImageToVideoPipeline.from_pretrained("THIS_FOLDER", torch_dtype=torch.bfloat16).to("cuda")""",
    "lora-diffusers": """pipeline = WanImageToVideoPipeline.from_pretrained("{base}", torch_dtype=torch.bfloat16).to("cuda")
pipeline.load_lora_weights("THIS_FOLDER")""",
    "comfyui": "Put `diffusion_model.safetensors` in ComfyUI's `models/diffusion_models` and load it as a Wan2.2 model.",
    "lora-comfyui": "Put `pytorch_lora_weights.safetensors` in ComfyUI's `models/loras` and load it over the base model.",
}
_USES["merged"] = _USES["diffusers"]


def model_card(run_dir: Path, config: Config, checkpoint: str, format: str, base_model: str | None = None) -> str:
    """Markdown with a YAML front matter, for a checkpoint exported to a format of `vrlvr.export`.

    base_model: the trained model's name on a hub; where it is missing, the one that the download's cache folder tells.
    Raises UserError if the run's files are damaged.
    """
    run, stages = read_run(run_dir), _stages(run_dir / "checkpoints", checkpoint, config.grpo.start)
    source = Path(config.model.path) if config.model.path else None
    base = base_model or hub_name(source)
    front: dict[str, Any] = {
        "base_model": base,
        "library_name": "diffusers",
        "license": licence_of(source),
        "pipeline_tag": "image-to-video",
        "tags": ["vrlvr", "video-reasoning", *(["lora"] if config.model.lora.rank else [])],
    }
    parts = [
        f"---\n{yaml.safe_dump({k: v for k, v in front.items() if v}, sort_keys=False)}---\n",
        f"# {_escaped(run_dir.resolve().name)}, {_escaped(checkpoint)}\n",
        f"A video diffusion model that answers a puzzle ({', '.join(map(task_title, config.data.tasks))}) with the video of "
        "its solution, given the first frame and a prompt. Trained with vrlvr from "
        f"{_escaped(base or (source.name if source else '?'))}, in the stages below.\n",
        "## Use\n",
        _use(config, format, base),
        "## Training\n",
        _training(run, config, stages),
        "## Results\n",
        _results(run, config, checkpoint),
        "## Limits\n",
        _limits(run, config, any(state["stage"] == "grpo" for _, state in stages)),
        "## Options\n",
        _fenced(run.config, "yaml"),
    ]
    return "\n".join(parts)


def hub_name(source: Path | None) -> str | None:
    """owner/name of a model in a Hugging Face cache (.../models--owner--name/snapshots/...), else None."""
    for part in source.parts if source else ():
        if match := re.fullmatch(r"models--([\w.-]+?)--([\w.-]+)", part):
            return f"{match[1]}/{match[2]}"
    return None


def licence_of(source: Path | None) -> str:
    """The licence that the base model's own card states, or `unknown`: a trained model inherits it."""
    card = source / "README.md" if source else None
    if card is None or not card.is_file():
        return "unknown"
    match = re.match(r"---\s*\n(.*?)\n---\s*\n", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        front = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return "unknown"
    return str(front.get("license") or "unknown") if isinstance(front, dict) else "unknown"


def _use(config: Config, format: str, base: str | None) -> str:
    steps, shift, data = config.sampler.num_steps, config.sampler.shift, config.data
    how = _USES[format].format(base=_in_string(base or "BASE_MODEL"))
    if not how.startswith("pipeline"):
        return (
            f"{how} Sample with the sampler euler, the scheduler simple, {steps} steps, shift {shift:g}, cfg 1, "
            f"{data.width}x{data.height}, {data.num_frames} frames.\n"
        )
    # diffusers' own grid of Euler steps ends just above 0, and then steps there: one step of the number is lost.
    return _fenced(
        f"""import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline


class EvenEuler(FlowMatchEulerDiscreteScheduler):
    # Even steps down to 0, as in training.

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(sigmas=[1 - i / num_inference_steps for i in range(num_inference_steps)], device=device)


{how}
pipeline.scheduler = EvenEuler(shift={shift:g})
video = pipeline(image=first_frame, prompt=prompt, height={data.height}, width={data.width},
                 num_frames={data.num_frames}, num_inference_steps={steps}, guidance_scale=1.0)""",
        "python",
    )


def _stages(folder: Path, checkpoint: str, start: str) -> list[tuple[str, dict[str, Any]]]:
    """The checkpoints that the model went through, by name, with their stage and step. start: what RL started from."""
    states = [(name, _read_state(folder / name / "state.json")) for name in dict.fromkeys(("sft-final", checkpoint))
              if (folder / name / "state.json").is_file()]  # fmt: skip
    return states[-1:] if states and (states[-1][1]["stage"] == "sft" or start == "model") else states


def _training(run: Run, config: Config, stages: list[tuple[str, dict[str, Any]]]) -> str:
    sft, grpo, lora = config.sft, config.grpo, config.model.lora
    reward = grpo.reward if isinstance(grpo.reward, str) else "the components weighted below"
    details = {
        "sft": f"flow matching on a planner's videos, batch {sft.batch_size}, learning rate {sft.lr:g}",
        "grpo": f"SDE-GRPO with Early-Step Focus, {grpo.puzzles} puzzles x {grpo.group_size} samples, noise and gradient in "
        f"the first {num_sde_steps(config)} of {config.sampler.num_steps} steps ({grpo.sampler}), learning rate {grpo.lr:g}, "
        f"the reward of the verifier ({reward})",
    }
    lines = ["| stage | checkpoint | steps | how |", "| --- | --- | ---: | --- |"]
    for name, state in stages:
        cells = (state["stage"], name, state["step"], details.get(state["stage"], ""))
        lines.append(f"| {' | '.join(map(_escaped, cells))} |")
    weights = f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}" if lora.rank else "all"
    facts = {
        "trained weights": f"{weights}; computed in {config.model.dtype}",
        "seed": config.seed,
        "verifier": run.facts.get("verifier") or f"{verifier_version()} (of the code that exported it)",
        "vrlvr": f"{run.facts.get('vrlvr', 'unknown')}, commit {run.facts.get('commit', 'unknown')}",
        **{name: run.facts.get(name, "unknown") for name in ("torch", "hardware", "processes", "date")},
    }
    listed = "".join(f"- {name}: {_escaped(value)}\n" for name, value in facts.items())
    return "\n".join(lines) + "\n\n" + listed


def _results(run: Run, config: Config, checkpoint: str) -> str:
    rows = [row for row in run.rows if row["source"] == "measured"]
    if not rows:
        return "This model was not evaluated.\n"
    escaped = [cast(Row, row | {key: _escaped(row[key]) for key in ("system", "task")}) for row in rows]
    system = _SYSTEMS.get(checkpoint)
    which = (
        f"row `{system}`"
        if any(row["system"] == system for row in rows)
        else "none of these rows: it was not evaluated"
    )
    gains = [
        f"- {_escaped(g['after'])} over {_escaped(g['before'])}, {_escaped(task_title(g['task']))}: {g['gain']:+.1f} points of "
        f"SR [{g['gain_ci95'][0]:+.1f}, {g['gain_ci95'][1]:+.1f}]\n"
        for g in gains_of(run)
    ]
    numbers = sorted({row["num_puzzles"] for row in rows if row["num_puzzles"]})
    return (
        f"This model is {which}. Percent of held-out puzzles ({', '.join(map(str, numbers))} a task, "
        f"{config.eval.noise_seeds} noise seeds); SR is strict completion by the rules, with its 95 % interval.\n\n"
        f"{markdown(escaped)}\n{''.join(gains)}"
    )


def _limits(run: Run, config: Config, rewarded: bool) -> str:
    data = config.data
    lines = [
        f"It was trained on and measured with computer-drawn puzzles of one look, {data.width}x{data.height} pixels and "
        f"{data.num_frames} frames; other looks, sizes and tasks were not tested.",
        "Solved means that the verifier above accepted the video."
        + (" It was the reward as well, so whatever it overlooks may have been learned." if rewarded else ""),
        "Results hold for vrlvr's own sampler (Euler, the steps and the shift under Use, no classifier-free guidance), not for "
        "other samplers.",
        "A video that looks solved may be wrong: check it, for instance with `vrlvr verify`.",
    ]
    if run.rows:
        lines.append("One training run: the intervals tell the chance of the draw of puzzles, not of training again.")
    return "".join(f"- {line}\n" for line in lines)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return {"stage": str(state["stage"]), "step": state["progress"]["step"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no checkpoint's state ({error!r}); export another checkpoint") from error


def _escaped(value: Any) -> str:
    """One line of plain text, in Markdown: all but letters, digits and harmless signs as character references."""
    line = " ".join(str(value).split())
    return "".join(c if c.isalnum() or c in " .,+-/=()%;" else f"&#{ord(c)};" for c in line)


def _in_string(value: str) -> str:
    """For a Python string in double quotes: names of models have no other characters."""
    return re.sub(r"[^\w./-]", "_", value)


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"
