"""What each phase of a run takes of a process's memory at its peak, from the configuration alone.

Counted is what PyTorch allocates (see `vrlvr.memory`). Which tensors live in a phase follows `vrlvr.sft`, `vrlvr.grpo` and
`vrlvr.update`; what ZeRO spreads over processes is the table in `vrlvr.zero`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch

from vrlvr.config import Config, num_sde_steps
from vrlvr.errors import UserError
from vrlvr.memory import GIB
from vrlvr.meter import Meter, Pass
from vrlvr.models.recompute import POLICIES
from vrlvr.models.recompute import Policy as RecomputePolicy
from vrlvr.policy import Policy
from vrlvr.source import Source
from vrlvr.workload import rollout_steps, sizes_in_use, update_rows

MARGIN = 0.1  # of a GPU's memory: the CUDA context, libraries' workspaces, what the allocator loses; as `choose_policy` leaves
FLOAT32 = 4  # bytes
TURN_DOWN = (
    "lower sft.micro_batch, grpo.micro_batch, eval.batch_size, or grpo.puzzles, use smaller videos, LoRA, ZeRO or a larger GPU "
    "(see `vrlvr estimate`)"
)

Stage = Literal["sft", "grpo"]


@dataclass(frozen=True)
class Footprint:
    """Bytes that a process holds at a phase's peak, by what they are for.

    copies: the moving average and the reference. codec: the VAE's weights. states: latents and text. activations: all else
    that the phase allocates. rows: of its forward passes.
    """

    phase: str
    rows: int
    weights: int
    gradients: int
    optimizer: int
    copies: int
    codec: int
    states: int
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in PARTS)


PARTS = tuple(field.name for field in fields(Footprint) if field.type is int and field.name != "rows")


def zero_stage(config: Config, processes: int) -> int:
    """The ZeRO stage that runs: one process has nothing to share, but for an optimizer that is offloaded."""
    stage = config.engine.zero_stage
    return stage if processes > 1 or stage == 0 else int(config.engine.offload)


def footprints(
    config: Config, meter: Meter, processes: int, stage: Stage, recompute: RecomputePolicy
) -> list[Footprint]:
    """The phases of a stage, of the process that has the most to do. meter: of the same model."""
    return list((_sft if stage == "sft" else _grpo)(_Run(config, meter, processes), recompute))


def fits(phases: list[Footprint], gpu_bytes: float) -> bool:
    """Whether the largest phase leaves a margin."""
    return max(phase.total for phase in phases) <= (1 - MARGIN) * gpu_bytes


def set_recompute(config: Config, policy: Policy, source: Source, processes: int, stage: Stage) -> None:
    """Sets what a stage's backward passes recompute, as the configuration says.

    auto: on a GPU the least with which the stage fits in what is free or this process's own; on a CPU nothing.
    Raises UserError if not even full recomputation fits.
    """
    device = policy.dit.patch_embedding.weight.device
    if config.model.recompute != "auto" or device.type != "cuda":
        policy.dit.recompute = "none" if config.model.recompute == "auto" else config.model.recompute
        return
    free, _ = torch.cuda.mem_get_info(device)
    gpu_bytes = free + torch.cuda.memory_reserved(device)
    meter = Meter(config, sizes_in_use(policy, source))
    policy.dit.recompute, phases = least_recompute(config, meter, processes, stage, gpu_bytes)
    if not fits(phases, gpu_bytes):
        raise UserError(refusal(phases, gpu_bytes))


def least_recompute(
    config: Config, meter: Meter, processes: int, stage: Stage, gpu_bytes: float
) -> tuple[RecomputePolicy, list[Footprint]]:
    """What is configured; for auto the policy that recomputes least of those with which the stage fits, or full."""
    wanted = config.model.recompute
    for policy in POLICIES if wanted == "auto" else (wanted,):
        phases = footprints(config, meter, processes, stage, policy)
        if fits(phases, gpu_bytes):
            break
    return policy, phases


def refusal(phases: list[Footprint], gpu_bytes: float) -> str:
    """The largest phase, in words, with what to turn down."""
    most = max(phases, key=lambda phase: phase.total)
    parts = ", ".join(f"{name} {getattr(most, name) / GIB:.1f}" for name in PARTS)
    return (
        f"{most.phase} needs {most.total / GIB:.1f} GiB ({parts}) but {(1 - MARGIN) * gpu_bytes / GIB:.1f} GiB may be used; "
        f"{TURN_DOWN}"
    )


@contextmanager
def told_if_memory_is_full(stage: str) -> Iterator[None]:
    """A GPU's refusal in one line, for where the estimate was too low or others use the GPU too."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"stage {stage}: {' '.join(str(error).split())}; {TURN_DOWN}") from error


class _Run:
    """What is common to the phases of a process. latent, first: bytes of a sample's latents and of its first frame's."""

    def __init__(self, config: Config, meter: Meter, processes: int) -> None:
        self.config, self.meter, self.processes = config, meter, processes
        self.stage = zero_stage(config, processes)
        channels, frames, height, width = meter.sizes.latent_shape
        self.first = channels * height * width * FLOAT32
        self.latent = frames * self.first
        pretrained = config.model.path is not None
        self.text_table = 2 * math.prod(meter.sizes.text_shape) if pretrained else 0  # encoded in bfloat16

    def share(self, total: int) -> int:
        """Of the process that has the most."""
        return -(-total // self.processes)

    def average(self, decay: float) -> int:
        """Of the moving average: a copy, and float32 values of what is of half precision in it."""
        weights = self.meter.weights
        return weights.trained_nbytes + FLOAT32 * weights.half if decay > 0 else 0

    def engine(self, *, whole: bool, accumulated: bool) -> dict[str, int]:
        """weights, gradients and optimizer. whole: all weights are gathered. accumulated: an update's gradients are there."""
        weights, stage = self.meter.weights, self.stage
        share = self.share(weights.trained)
        held = weights.nbytes
        if stage == 3:
            held += FLOAT32 * share
            if not whole:
                held += weights.of_a_block - weights.in_blocks
        optimizer = 8 * weights.trained + 4 * weights.half  # two moments, and a master of what is of half precision
        if stage > 0:
            optimizer = 0 if self.config.engine.offload else (8 if stage == 3 else 12) * share
        return {
            "weights": held,
            # Plain, they stay where they are until the next update's begin.
            "gradients": FLOAT32 * weights.trained if accumulated or stage == 0 else 0,
            "optimizer": optimizer,
        }

    def validation(self, phase: str, shared: dict[str, int], states: int, graphs: int) -> Footprint:
        """Videos by the ODE, as many at once as eval.batch_size says. graphs: activations of former phases."""
        config, meter = self.config, self.meter
        rows = min(config.eval.batch_size, self.share(config.data.num_val * len(config.data.tasks)))
        prompts = min(rows, meter.sizes.text_shape[0])
        trajectory = (config.sampler.num_steps + 3) * self.latent + self.first
        return Footprint(
            phase=phase,
            rows=rows,
            **self.engine(whole=True, accumulated=False),
            **shared,
            states=states + rows * trajectory + meter.text(prompts),
            activations=graphs + max(meter.peak("forward", rows, prompts), meter.decode(rows)),
        )


def _sft(run: _Run, recompute: RecomputePolicy) -> Iterator[Footprint]:
    config, meter = run.config, run.meter
    share = run.share(config.sft.batch_size)
    rows = min(share, config.sft.micro_batch or share)
    shared = {"copies": run.average(config.sft.ema_decay), "codec": meter.codec_bytes}
    states = run.text_table
    if config.model.path is None:  # all training videos are held
        states += config.data.num_train * len(config.data.tasks) * (run.latent + run.first)
    # The first backward pass makes the gradients while it frees the activations: the peak is where it begins, or where it ends.
    # Those after it find them there.
    end = run.engine(whole=False, accumulated=True)
    begin = run.engine(whole=False, accumulated=False) | {"gradients": 0} if rows == share else end
    activations, of_one_block = (
        meter.peak("sft", rows, rows, recompute),
        meter.peak("sft", rows, rows, recompute, depth=1),
    )
    at_begin = activations > end["gradients"] - begin["gradients"] + of_one_block
    yield Footprint(
        phase="sft step",
        rows=rows,
        **(begin if at_begin else end),
        **shared,
        states=states + share * ((3 if rows == share else 4) * run.latent + run.first),  # x0, noise, x; v in parts
        activations=activations if at_begin else of_one_block,
    )
    yield run.validation("sft validation", shared, states, graphs=0)


def _grpo(run: _Run, recompute: RecomputePolicy) -> Iterator[Footprint]:
    config, meter, grpo = run.config, run.meter, run.config.grpo
    counted, group = update_rows(config), grpo.group_size
    samples = run.share(counted.samples)
    puzzles = min(grpo.puzzles, (samples - 2) // group + 2 if samples % group else samples // group)
    prompts = min(puzzles, meter.sizes.text_shape[0])
    has_reference = grpo.kl_weight > 0 or grpo.anchor_weight > 0
    shared = {
        "copies": run.average(grpo.ema_decay) + meter.weights.trained_nbytes * has_reference,
        "codec": meter.codec_bytes,
    }
    trained, anchors = run.share(counted.trained) // grpo.inner_epochs, run.share(counted.anchors)
    rollout_rows, rows = min(grpo.micro_batch, samples), min(grpo.micro_batch, trained)
    text = run.text_table + meter.text(prompts)
    trajectory = run.latent * ((puzzles if grpo.shared_noise else samples) + rollout_steps(config) * samples)
    # A replay's rows are copies: each row's latents and first frame, and each term's next latents.
    terms = round(grpo.keep_fraction * samples) * num_sde_steps(config)
    replay = trained * (run.latent + run.first) + terms * run.latent
    forward = meter.peak("forward", rollout_rows, prompts)
    graphs = forward if meter.implementation == "triton" and run.stage != 3 else 0  # CUDA graphs keep theirs
    # Each part's states are there once more, one step at a time, while they are joined.
    in_parts = grpo.rollout_puzzles is not None and grpo.rollout_puzzles < puzzles
    part = min(samples, (grpo.rollout_puzzles or puzzles) * group)
    rollout = Footprint(
        phase="rollout",
        rows=rollout_rows,
        **run.engine(whole=True, accumulated=False),
        **shared,
        states=text + trajectory + samples * (2 * run.latent + run.first),
        activations=forward + (meter.decode(part) if in_parts else 0),
    )
    # It begins with this update's text, while the last one's is still there.
    yield max(rollout, replace(rollout, states=text, activations=meter.text(prompts)), key=lambda x: x.total)
    yield Footprint(
        phase="decode",
        rows=part,
        **run.engine(whole=False, accumulated=False),
        **shared,
        states=text + trajectory + samples * run.first,
        activations=graphs + meter.decode(part),
    )
    passes: dict[Pass, int] = {"update": rows, "anchored update": rows if grpo.kl_weight > 0 else min(rows, anchors)}
    yield Footprint(
        phase="update",
        rows=rows,
        **run.engine(whole=False, accumulated=True),
        **shared,
        states=text + trajectory + replay + (meter.text(prompts) if has_reference else 0),
        activations=graphs + max(meter.peak(what, n, prompts, recompute) for what, n in passes.items() if n),
    )
    yield run.validation("grpo validation", shared, text, graphs)
