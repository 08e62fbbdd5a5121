"""The gradient of a GRPO update: which forwards to replay, and the loss on them.

Rows and terms are those of `vrlvr.rows`. The rows of all steps are laid end to end, dealt to the ranks anew, since the samples
that are kept lie unevenly on them, and replayed in full micro-batches.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vrlvr.batches import Prompts
from vrlvr.config import Config
from vrlvr.distributed import World
from vrlvr.phases import phase
from vrlvr.policy import Policy
from vrlvr.rollout import FrozenVelocity
from vrlvr.rows import RowBatch, dealt_evenly, joined
from vrlvr.sampling import Trajectory
from vrlvr_kernels.grpo_loss import grpo_loss


@dataclass
class Anchor:
    """Rows after the window, at which the policy is held near the reference's velocity."""

    x: Tensor
    sigma: Tensor
    first: Tensor
    prompt: Tensor


@dataclass
class Replay:
    """Micro-batches of rows. num_terms, num_anchors: over all ranks, the denominators of the two means.

    idle: rows of no consequence, with which a rank passes as often as the others, where spread weights need that.
    """

    batches: list[RowBatch] = field(default_factory=list)
    num_terms: int = 0
    anchors: list[Anchor] = field(default_factory=list)
    num_anchors: int = 0
    idle: list[Anchor] = field(default_factory=list)


def puzzles_of(samples: range, group_size: int) -> Tensor:
    """The puzzle of each of these samples, numbered from the first one's."""
    return torch.arange(samples.start, samples.stop) // group_size - samples.start // group_size


def kept_samples(advantage_B: Tensor, keep_fraction: float) -> Tensor:
    """Indices of the keep_fraction of samples with the largest |advantage|; never one of zero."""
    size_B = advantage_B.abs()
    if keep_fraction < 1:
        threshold = size_B.sort(descending=True).values[max(0, round(keep_fraction * len(size_B)) - 1)]
        return torch.nonzero((size_B >= threshold) & (size_B > 0)).flatten()
    return torch.nonzero(size_B > 0).flatten()


def build_replay(
    config: Config,
    world: World,
    trajectory: Trajectory,
    prompts: Prompts,
    advantage_PG: Tensor,
    rng: np.random.Generator,
) -> Replay:
    """Chooses the samples worth a backward pass, and lays their rows and terms out in micro-batches.

    advantage_PG: of all ranks' samples. trajectory, prompts: of this rank's share of them. All choices are made among all
    samples, by an rng that is the same on every rank, so they don't depend on the number of ranks. All ranks call it.
    """
    grpo, device = config.grpo, prompts.prompt_B.device
    mine = world.share(advantage_PG.numel())
    puzzle_B = puzzles_of(mine, advantage_PG.shape[1])
    everywhere = kept_samples(advantage_PG.flatten(), grpo.keep_fraction)
    kept = everywhere[(everywhere >= mine.start) & (everywhere < mine.stop)] - mine.start
    window = [i for i, step in enumerate(trajectory.steps) if step.std > 0]
    replay = Replay(num_terms=len(everywhere) * len(window))
    if replay.num_terms:
        advantage_B = advantage_PG.flatten()[mine.start : mine.stop]
        rows = joined([_rows_of_step(trajectory, i, prompts, puzzle_B, advantage_B, kept) for i in window])
        rows = dealt_evenly(rows, world)
        replay.batches = [
            rows.part(start, min(start + grpo.micro_batch, len(rows.x)))
            for start in range(0, len(rows.x), grpo.micro_batch)
        ]
    if grpo.anchor_weight > 0 and grpo.anchor_fraction > 0:
        late = [i for i, step in enumerate(trajectory.steps) if i > window[-1]]
        replay.num_anchors = round(grpo.anchor_fraction * len(everywhere))
        chosen = everywhere[torch.from_numpy(rng.permutation(len(everywhere))[: replay.num_anchors])].tolist()
        at = [late[k] for k in rng.integers(len(late), size=replay.num_anchors)]
        places = [(i, sample - mine.start) for i, sample in zip(at, chosen, strict=True) if sample in mine]
        for start in range(0, len(places), grpo.micro_batch):
            part = places[start : start + grpo.micro_batch]
            puzzle = puzzle_B[[sample for _, sample in part]].to(device)
            states = [trajectory.states[i][sample] for i, sample in part]
            sigmas = [trajectory.steps[i].sigma for i, _ in part]
            replay.anchors.append(
                Anchor(
                    x=torch.stack(states),
                    sigma=torch.tensor(sigmas, dtype=torch.float32, device=device),
                    first=prompts.first_BC1HW[puzzle],
                    prompt=prompts.prompt_B[puzzle],
                )
            )
    if config.engine.zero_stage == 3 and replay.num_terms:
        passes = len(replay.batches) + len(replay.anchors)
        row = Anchor(
            x=trajectory.states[0][:1],
            sigma=torch.ones(1, device=device),
            first=prompts.first_BC1HW[:1],
            prompt=prompts.prompt_B[:1],
        )
        replay.idle = [row] * (max(world.gather(passes)) - passes)
    return replay


def _rows_of_step(
    trajectory: Trajectory, i: int, prompts: Prompts, puzzle_B: Tensor, advantage_B: Tensor, kept: Tensor
) -> RowBatch:
    """All rows and terms of SDE step i (the i-th step of the window, which starts at the first)."""
    step, device = trajectory.steps[i], prompts.prompt_B.device
    if len(trajectory.states[i]) < len(advantage_B):  # the samples of a puzzle share its row
        rows, row_of = torch.unique(puzzle_B[kept], return_inverse=True)
        puzzle = rows
    else:
        rows, row_of, puzzle = kept, torch.arange(len(kept)), puzzle_B[kept]
    coefficients = torch.tensor([[step.a, step.b, step.std]], dtype=torch.float64, device=device)
    samples, puzzle = kept.to(device), puzzle.to(device)
    return RowBatch(
        step=torch.full((len(rows),), i, device=device),
        x=trajectory.states[i][rows.to(device)],
        sigma=torch.full((len(rows),), step.sigma, dtype=torch.float32, device=device),
        first=prompts.first_BC1HW[puzzle],
        prompt=prompts.prompt_B[puzzle],
        row_of=row_of.to(device),
        next_x=trajectory.states[i + 1][samples],
        coefficients=coefficients.expand(len(kept), 3),
        advantage=advantage_B[kept].float().to(device),
        rollout_log_prob=trajectory.log_probs_B[i][samples],
    )


def accumulate_gradients(
    config: Config, policy: Policy, reference: Policy, replay: Replay, first_pass: bool
) -> dict[str, list[float]]:
    """Adds the gradient of the mean loss over all ranks' terms to the policy; returns values to average, by name.

    The text's keys and values are made once: each backward leaves its gradient with them, and one last backward sends the
    sum through the text projections. Nothing waits for the device before the end.
    """
    grpo = config.grpo
    passes: list[RowBatch | Anchor] = [*replay.batches, *replay.anchors, *replay.idle]
    if not passes:
        return {}
    prompt_P = torch.cat([rows.prompt for rows in passes]).unique()
    context = policy.text_context(prompt_P)
    text = context.leaves()
    frozen = FrozenVelocity(reference, grpo.micro_batch, graphs=False)
    if grpo.kl_weight > 0 or replay.anchors:
        frozen.refresh(prompt_P)
    logged: dict[str, list[Tensor]] = {"clip_fraction": [], "kl": []}
    for batch in replay.batches:
        rows = batch.x, batch.sigma, batch.first, batch.prompt
        with phase("replay"):
            v_rows = policy(*rows, context=text)
            v_rows.retain_grad()
            terms = grpo_loss(
                v_rows[batch.row_of],
                batch.x[batch.row_of],
                batch.next_x,
                batch.advantage,
                batch.coefficients,
                grpo.clip_range,
                batch.old_log_prob,
                frozen(*rows)[batch.row_of] if grpo.kl_weight > 0 else None,
                grpo.kl_weight,
            )
        with phase("backward"):
            (terms.loss_B.sum() / replay.num_terms).backward()
        if first_pass:
            batch.old_log_prob = terms.log_prob_B
            deviation_B = ((terms.log_prob_B - batch.rollout_log_prob).exp() - 1).abs()
            logged.setdefault("ratio_max_deviation", []).append(deviation_B)
        logged["clip_fraction"].append(terms.clipped_B)
        logged["kl"].append(terms.kl_B)
        logged.setdefault("step", []).append(batch.step)
        logged.setdefault("grad_square", []).append(v_rows.grad.square().flatten(1).sum(1))
    for anchor in replay.anchors:
        rows = anchor.x, anchor.sigma, anchor.first, anchor.prompt
        drift_B = (policy(*rows, context=text) - frozen(*rows)).square().flatten(1).mean(1)
        (grpo.anchor_weight * drift_B.sum() / replay.num_anchors).backward()
        logged.setdefault("anchor_drift", []).append(drift_B.detach())
    for idle in replay.idle:
        (0.0 * policy(idle.x, idle.sigma, idle.first, idle.prompt, context=text).sum()).backward()
    context.backward(text)
    return _scalars({name: torch.cat(parts).cpu() for name, parts in logged.items() if parts})


def _scalars(values: dict[str, Tensor]) -> dict[str, list[float]]:
    """What is logged: per-row gradients as the norm of each step, deviations as their largest, the rest as they are."""
    if "step" not in values:
        return {}
    step, square = values.pop("step"), values.pop("grad_square")
    scalars = {f"grad_norm_step_{i}": [square[step == i].sum().sqrt().item()] for i in step.unique().tolist()}
    if "ratio_max_deviation" in values:
        scalars["ratio_max_deviation"] = [values.pop("ratio_max_deviation").max().item()]
    return scalars | {name: tensor.tolist() for name, tensor in values.items()}
