"""One GRPO update done by a recipe, timed by phase: by the trainer's own functions, or the published way.

What is timed may be a *probe*: the first few of the denoising steps, and their training. All rows (evaluations of the
transformer) of a phase have one shape and so one cost, hence the seconds of the whole update are those of the probe times
all rows over the probe's; recipes whose first steps are alike share a probe. The optimizer's step is timed as it is. Rewards
are synthetic; nothing is decoded or judged.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import reference_grpo
import torch
from power import PowerSampler
from reference_dit import ReferenceWanTransformer
from reference_grpo import ReferencePolicy
from sizes import Size, random_model
from timing import peak_gib, synchronize
from torch import Tensor, nn

from vrlvr.batches import Prompts
from vrlvr.build import fitting_recompute
from vrlvr.config import Config, GrpoConfig
from vrlvr.distributed import World
from vrlvr.models.dit import TextContext, WanTransformer
from vrlvr.models.recompute import Policy as RecomputePolicy
from vrlvr.models.text import TaskEmbedding
from vrlvr.optim import adamw, clip_gradients
from vrlvr.phases import phase
from vrlvr.policy import Policy
from vrlvr.rollout import FrozenVelocity
from vrlvr.sampling import INITIAL_STREAM, sample
from vrlvr.sde import Step, plan_steps, sigma_schedule
from vrlvr.update import accumulate_gradients, build_replay, kept_samples
from vrlvr_kernels.philox import normal

SEED, NOISE_LEVEL, CLIP_RANGE, SHIFT = 1, 0.7, 1e-3, 5.0
PHASES = ("rollout", "replay", "optimizer")  # replay: with its backward


@dataclass(frozen=True)
class Problem:
    """What is updated on: puzzles x group_size samples of num_tokens tokens, num_steps denoising steps."""

    size: Size
    num_tokens: int
    puzzles: int
    group_size: int
    num_steps: int

    @property
    def num_samples(self) -> int:
        return self.puzzles * self.group_size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the generated latents of one sample: all frames but the first."""
        C, F, H, W = self.size.latents[self.num_tokens]
        return C, F - 1, H, W

    def first_frames(self, device: torch.device) -> Tensor:
        """(P, C, 1, H, W)."""
        C, _, H, W = self.shape
        generator = torch.Generator(device).manual_seed(SEED)
        return torch.randn(self.puzzles, C, 1, H, W, generator=generator, device=device)

    def text(self, device: torch.device) -> Tensor:
        """(P, L, text_dim) in the weights' dtype."""
        shape = (self.puzzles, self.size.num_text_tokens, self.size.config.text_dim)
        generator = torch.Generator(device).manual_seed(SEED + 1)
        return torch.randn(shape, generator=generator, device=device).to(self.size.dtype)

    def advantages(self) -> Tensor:
        """(P, G), of mean 0 and standard deviation 1 in every group, none of them 0."""
        reward = np.random.default_rng(SEED).standard_normal((self.puzzles, self.group_size))
        return torch.from_numpy((reward - reward.mean(1, keepdims=True)) / reward.std(1, keepdims=True))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an update is done.

    model: the eager reference, the same with compiled blocks and fused RMSNorm, or ours. trained_steps: steps with a gradient.
    sde_steps: steps with noise (None: as many). recompute: a policy of `vrlvr.models.recompute`, or auto. cached_text: keys
    and values of the text made once. shared_noise: one row a puzzle at step 0. rows: of a micro-batch. graphs: CUDA graphs in
    the rollout. tail_steps: of the ODE after the window (None: all). keep_fraction: of the samples, by |advantage|.
    """

    model: Literal["reference", "compiled", "ours"] = "ours"
    trained_steps: int
    sde_steps: int | None = None
    recompute: Literal["none", "selective", "full", "auto"] = "full"
    cached_text: bool = False
    shared_noise: bool = False
    rows: int = 1
    graphs: bool = False
    tail_steps: int | None = None
    keep_fraction: float = 1.0


@dataclass(frozen=True)
class Rows:
    """Evaluations of the transformer in a phase: without gradient in the rollout, with it in the replay."""

    rollout: int
    replay: int


def count_rows(recipe: Recipe, problem: Problem, num_steps: int | None = None) -> Rows:
    """Of the update, or of its first num_steps denoising steps."""
    window, samples = recipe.trained_steps, problem.num_samples
    tail = (
        problem.num_steps - window if recipe.tail_steps is None else min(recipe.tail_steps, problem.num_steps - window)
    )
    steps = window + tail if num_steps is None else min(num_steps, window + tail)
    trained = min(steps, window)
    kept = kept_samples(problem.advantages().flatten(), recipe.keep_fraction)
    if not recipe.shared_noise:
        return Rows(steps * samples, trained * len(kept))
    puzzles_kept = len((kept // problem.group_size).unique())
    return Rows(problem.puzzles + (steps - 1) * samples, puzzles_kept + (trained - 1) * len(kept))


def predicted_units(recipe: Recipe, problem: Problem, recompute: str) -> float:
    """DiT forwards a sample: 1 a row of the rollout, 3 a row of the replay, and 1 more where all is recomputed."""
    rows = count_rows(recipe, problem)
    return (rows.rollout + (4 if recompute == "full" else 3) * rows.replay) / problem.num_samples


class UncachedPolicy(Policy):
    """The policy as peers run it: the text of every row goes through the text projections at every forward."""

    def forward(
        self,
        latents_BCFHW: Tensor,
        sigma_B: Tensor,
        first_BC1HW: Tensor,
        prompt_B: Tensor,
        context: TextContext | None = None,
    ) -> Tensor:
        pinned_BCFHW = torch.cat([first_BC1HW, latents_BCFHW], dim=2)
        return self.dit(pinned_BCFHW, sigma_B * 1000.0, self.text(prompt_B), num_clean_frames=1)[:, :, 1:].float()


class Stopwatch:
    """Seconds by phase, each from and to a moment at which the device is idle."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        synchronize(self.device)
        begin = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[name] = time.perf_counter() - begin


fitting = cache(fitting_recompute)  # recipes ask for the same again


class Update:
    """A model and its optimizer, ready to do updates by one recipe. num_steps: of a probe, None for the whole update."""

    def __init__(self, recipe: Recipe, problem: Problem, device: torch.device, num_steps: int | None = None) -> None:
        self.recipe, self.problem, self.device, self.num_steps = recipe, problem, device, num_steps
        self.stopwatch = Stopwatch(device)
        self.rms_norm: str | None = None
        self.recompute = self._fitting_policy() if recipe.recompute == "auto" else recipe.recompute
        self.policy: nn.Module = self._our_policy() if recipe.model == "ours" else self._reference_policy()
        self.optimizer = adamw(self.policy, lr=1e-6, weight_decay=0.0)
        self._velocity = (
            FrozenVelocity(self.policy, recipe.rows, recipe.graphs) if isinstance(self.policy, Policy) else None
        )

    def run(self) -> float:
        """One update, or a probe of one; returns the largest |ratio - 1|. `stopwatch.seconds` tells its phases."""
        self.optimizer.zero_grad(set_to_none=True)
        deviation = self._ours() if self.recipe.model == "ours" else self._published()
        with self.stopwatch("optimizer"), phase("optimizer"):
            clip_gradients(self.policy, 1.0)
            self.optimizer.step()
        return deviation

    def _fitting_policy(self) -> RecomputePolicy:
        size, gpu = self.problem.size, self.device.type == "cuda"
        free_gib = torch.cuda.mem_get_info(self.device)[0] // 2**30 if gpu else 16
        return fitting(
            size.config,
            size.latents[self.problem.num_tokens][1:],
            (size.num_text_tokens, size.config.text_dim),
            1,
            size.dtype,
            self.recipe.rows,
            free_gib * 2**30,
            "triton" if gpu else "reference",
        )

    def _our_policy(self) -> Policy:
        problem, size = self.problem, self.problem.size
        dit = random_model(lambda: WanTransformer(size.config, recompute=self.recompute), size, self.device)
        text = TaskEmbedding(problem.puzzles, size.config.text_dim, size.num_text_tokens)
        text.table = nn.Parameter(problem.text(self.device), requires_grad=False)
        kind = Policy if self.recipe.cached_text else UncachedPolicy
        return kind(dit, text, "pin")

    def _reference_policy(self) -> ReferencePolicy:
        size = self.problem.size
        dit = random_model(
            lambda: ReferenceWanTransformer(size.config, checkpointing=self.recompute == "full"), size, self.device
        )
        if self.recipe.model == "compiled":
            self.rms_norm = dit.fuse_rms_norm()
            dit.compile_blocks(backend="inductor" if self.device.type == "cuda" else "aot_eager")
        return ReferencePolicy(dit)

    def plan(self) -> list[Step]:
        """The steps of the whole update's rollout."""
        recipe, window = self.recipe, self.recipe.trained_steps
        tail = None if recipe.tail_steps is None else min(recipe.tail_steps, self.problem.num_steps - window)
        sigmas = sigma_schedule(self.problem.num_steps, SHIFT, window, tail)
        return plan_steps(sigmas, "flow_sde", NOISE_LEVEL, recipe.sde_steps or window)

    def _ours(self) -> float:
        problem, recipe, device = self.problem, self.recipe, self.device
        assert isinstance(self.policy, Policy)
        assert self._velocity is not None
        prompts = Prompts([], problem.first_frames(device), torch.arange(problem.puzzles, device=device))
        samples_B = torch.arange(problem.num_samples, device=device)
        with self.stopwatch("rollout"), phase("rollout"):
            self._velocity.refresh(prompts.prompt_B)
            trajectory = sample(
                self._velocity,
                self.plan()[: self.num_steps],
                problem.shape,
                prompts.first_BC1HW,
                prompts.prompt_B,
                samples_B,
                SEED,
                recipe.shared_noise,
            )
        grpo = GrpoConfig(
            micro_batch=recipe.rows,
            keep_fraction=recipe.keep_fraction,
            clip_range=CLIP_RANGE,
            anchor_weight=0.0,
            kl_weight=0.0,
        )
        config = Config(grpo=grpo)
        with self.stopwatch("replay"):
            replay = build_replay(
                config, World(device=device), trajectory, prompts, problem.advantages(), np.random.default_rng(0)
            )
            scalars = accumulate_gradients(config, self.policy, self.policy, replay, first_pass=True)
        return max(scalars["ratio_max_deviation"])

    def _published(self) -> float:
        problem, recipe, device = self.problem, self.recipe, self.device
        assert isinstance(self.policy, ReferencePolicy)
        samples_B, numel = torch.arange(problem.num_samples, device=device), int(np.prod(problem.shape))
        first_BC1HW = problem.first_frames(device).repeat_interleave(problem.group_size, 0)
        text_BLM = problem.text(device).repeat_interleave(problem.group_size, 0)
        initial = normal(SEED, INITIAL_STREAM, samples_B, 0, numel).view(-1, *problem.shape)
        sigmas = sigma_schedule(problem.num_steps, SHIFT)
        with self.stopwatch("rollout"):
            parts = [
                reference_grpo.rollout(
                    self.policy,
                    sigmas,
                    initial[part],
                    first_BC1HW[part],
                    text_BLM[part],
                    lambda i, part=part: torch.randn(len(part), *problem.shape, device=device),  # type: ignore[misc]
                    NOISE_LEVEL,
                    recipe.sde_steps or recipe.trained_steps,
                    self.num_steps,
                )
                for part in samples_B.split(recipe.rows)
            ]
            rolled = reference_grpo.ReferenceRollout(
                sigmas,
                [torch.cat(states) for states in zip(*(part.states for part in parts), strict=True)],
                [torch.cat(values) for values in zip(*(part.log_probs_B for part in parts), strict=True)],
            )
        trained = range(min(recipe.trained_steps, self.num_steps or recipe.trained_steps))
        with self.stopwatch("replay"):
            deviation = reference_grpo.accumulate_gradients(
                self.policy,
                rolled,
                first_BC1HW,
                text_BLM,
                problem.advantages().flatten().float().to(device),
                trained,
                NOISE_LEVEL,
                CLIP_RANGE,
                recipe.rows,
            )
        return deviation.item()


@dataclass(frozen=True)
class Probe:
    """What was timed. seconds: by phase, the median of the repeats. spread: largest over smallest total, less 1.

    num_steps: denoising steps; None, the whole update.
    """

    num_steps: int | None
    rows: Rows
    seconds: dict[str, float]
    spread: float
    peak_gib: float | None
    power: dict[str, float] | None
    recompute: str
    rms_norm: str | None
    ratio_max_deviation: float


def first_steps(recipe: Recipe, num_steps: int | None) -> Recipe:
    """What of a recipe its first num_steps steps depend on: not how many more are trained, nor the tail after them."""
    if num_steps is None or recipe.trained_steps < num_steps:
        return recipe
    return replace(recipe, trained_steps=num_steps, tail_steps=None)


def probe(
    recipe: Recipe, problem: Problem, device: torch.device, num_steps: int | None, repeats: int, warmup: bool = True
) -> Probe:
    """Times an update, or its first num_steps steps, after one run that warms up."""
    update = Update(recipe, problem, device, num_steps)
    if warmup:
        update.run()
    peak_gib(device)
    runs, deviations = [], []
    with PowerSampler() as power:
        for _ in range(repeats):
            deviations.append(update.run())
            runs.append(dict(update.stopwatch.seconds))
    totals = [sum(run.values()) for run in runs]
    return Probe(
        num_steps=num_steps,
        rows=count_rows(recipe, problem, num_steps),
        seconds={name: float(np.median([run[name] for run in runs])) for name in PHASES},
        spread=max(totals) / min(totals) - 1,
        peak_gib=peak_gib(device),
        power=power.summary,
        recompute=update.recompute,
        rms_norm=update.rms_norm,
        ratio_max_deviation=max(deviations),
    )


def whole_update(recipe: Recipe, problem: Problem, probed: Probe) -> dict[str, Any]:
    """A row of the table: seconds of the whole update by phase, DiT forwards a sample counted and measured, memory, energy.

    Measured forwards are the seconds over those of one row of the rollout. joules: the probe's mean power over the seconds.
    """
    rows = count_rows(recipe, problem)
    scale = {
        "rollout": rows.rollout / probed.rows.rollout,
        "replay": rows.replay / probed.rows.replay,
        "optimizer": 1.0,
    }
    seconds = {name: probed.seconds[name] * scale[name] for name in PHASES}
    total, forward = sum(seconds.values()), seconds["rollout"] / rows.rollout
    return {
        "recipe": asdict(recipe),
        "recompute": probed.recompute,
        "seconds": total,
        **{f"seconds_{name}": value for name, value in seconds.items()},
        "rows": asdict(rows),
        "units_predicted": predicted_units(recipe, problem, probed.recompute),
        "units_measured": total / forward / problem.num_samples,
        "forward_ms": forward * 1000,
        "peak_gib": probed.peak_gib,
        "joules": None if probed.power is None else probed.power["power_w"] * total,
        "probe": asdict(probed),
    }
