"""The gradient of a GRPO update: which forwards to replay, and the loss on them.

A *row* is one evaluation of the policy; a *term* is the GRPO loss of one sample at one SDE step. With shared initial noise
the samples of a puzzle share the row of step 0, whose backward then is one with their summed upstream gradients: exact.
The rows of a step are batched, micro_batch at a time.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vrlvr.batches import Prompts
from vrlvr.config import Config
from vrlvr.distributed import World
from vrlvr.policy import Policy
from vrlvr.sampling import Trajectory
from vrlvr_kernels.grpo_loss import grpo_loss


@dataclass
class RowBatch:
    """Some rows of one step, with everything that replaying them needs, and the terms that hang on them.

    x, first, task: per row. row_of, next_x, advantage, rollout_log_prob, old_log_prob: per term; row_of is the place of a
    term's row in this batch. step, sigma, coefficients (a, b, std): of the step.
    """

    step: int
    x: Tensor
    sigma: float
    first: Tensor
    task: Tensor
    row_of: Tensor
    next_x: Tensor
    coefficients: tuple[float, float, float]
    advantage: Tensor
    rollout_log_prob: Tensor
    old_log_prob: Tensor | None = None


@dataclass
class Anchor:
    """Rows after the window, at which the policy is held near the reference's velocity."""

    x: Tensor
    sigma: Tensor
    first: Tensor
    task: Tensor


@dataclass
class Replay:
    """Micro-batches of rows. num_terms, num_anchors: over all ranks, the denominators of the two means."""

    batches: list[RowBatch] = field(default_factory=list)
    num_terms: int = 0
    anchor: Anchor | None = None
    num_anchors: int = 0


def kept_samples(advantage_B: Tensor, keep_fraction: float, world: World) -> Tensor:
    """Indices of this rank's samples among the keep_fraction of all ranks' with the largest |advantage|; never one of zero."""
    size_B = advantage_B.abs()
    if keep_fraction < 1:
        everywhere = torch.cat(world.gather(size_B))
        threshold = everywhere.sort(descending=True).values[max(0, round(keep_fraction * len(everywhere)) - 1)]
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
    """Chooses the samples worth a backward pass, and lays their rows and terms out in micro-batches."""
    grpo, group = config.grpo, advantage_PG.shape[1]
    device = prompts.task_B.device
    advantage_B = advantage_PG.flatten()
    kept = kept_samples(advantage_B, grpo.keep_fraction, world)
    window = [i for i, step in enumerate(trajectory.steps) if step.std > 0]
    replay = Replay(num_terms=int(world.sum(torch.tensor(len(kept) * len(window), device=device))))
    for i in window:
        step = trajectory.steps[i]
        shared = len(trajectory.states[i]) < len(advantage_B)
        for samples in _chunks(kept, grpo.micro_batch, group if shared else 1):
            rows, row_of = (
                torch.unique(samples // group, return_inverse=True) if shared else (samples, torch.arange(len(samples)))
            )
            puzzle = rows if shared else rows // group
            replay.batches.append(
                RowBatch(
                    step=i,
                    x=trajectory.states[i][rows.to(device)],
                    sigma=step.sigma,
                    first=prompts.first_BC1HW[puzzle.to(device)],
                    task=prompts.task_B[puzzle.to(device)],
                    row_of=row_of.to(device),
                    next_x=trajectory.states[i + 1][samples.to(device)],
                    coefficients=(step.a, step.b, step.std),
                    advantage=advantage_B[samples].float().to(device),
                    rollout_log_prob=trajectory.log_probs_B[window.index(i)][samples.to(device)],
                )
            )
    if grpo.anchor_weight > 0 and grpo.anchor_fraction > 0:
        late = [i for i, step in enumerate(trajectory.steps) if i > window[-1]]
        number = round(grpo.anchor_fraction * len(kept))
        chosen = kept[torch.from_numpy(rng.permutation(len(kept))[:number])]
        at = [late[k] for k in rng.integers(len(late), size=number)]
        replay.num_anchors = int(world.sum(torch.tensor(number, device=device)))
        if number:
            replay.anchor = Anchor(
                x=torch.stack([trajectory.states[i][b] for i, b in zip(at, chosen.tolist(), strict=True)]),
                sigma=torch.tensor([trajectory.steps[i].sigma for i in at], dtype=torch.float32, device=device),
                first=prompts.first_BC1HW[(chosen // group).to(device)],
                task=prompts.task_B[(chosen // group).to(device)],
            )
    return replay


def _chunks(kept: Tensor, size: int, group: int) -> list[Tensor]:
    """The kept samples in parts of at most size rows, `group` neighbouring samples sharing a row; none is split."""
    row = kept // group
    return [kept[torch.isin(row, part)] for part in row.unique().split(size) if len(part)]


def accumulate_gradients(
    config: Config, policy: Policy, reference: Policy, replay: Replay, first_pass: bool
) -> dict[str, list[float]]:
    """Adds the gradient of the mean loss over all ranks' terms to the policy; returns values to average, by name."""
    grpo = config.grpo
    scalars: dict[str, list[float]] = {"clip_fraction": [], "kl": []}
    for batch in replay.batches:
        sigma_B = torch.full((len(batch.x),), batch.sigma, device=batch.x.device)
        v_rows = policy(batch.x, sigma_B, batch.first, batch.task)
        v_rows.retain_grad()
        v_ref = None
        if grpo.kl_weight > 0:
            with torch.no_grad():
                v_ref = reference(batch.x, sigma_B, batch.first, batch.task)[batch.row_of]
        coefficients_B3 = torch.tensor([batch.coefficients], dtype=torch.float64, device=batch.x.device)
        terms = grpo_loss(
            v_rows[batch.row_of],
            batch.x[batch.row_of],
            batch.next_x,
            batch.advantage,
            coefficients_B3.expand(len(batch.row_of), 3),
            grpo.clip_range,
            batch.old_log_prob,
            v_ref,
            grpo.kl_weight,
        )
        (terms.loss_B.sum() / replay.num_terms).backward()
        if first_pass:
            batch.old_log_prob = terms.log_prob_B
            deviation_B = (terms.log_prob_B - batch.rollout_log_prob).exp() - 1
            largest = max([*scalars.get("ratio_max_deviation", []), deviation_B.abs().max().item()])
            scalars["ratio_max_deviation"] = [largest]
        scalars["clip_fraction"] += terms.clipped_B.tolist()
        scalars["kl"] += terms.kl_B.tolist()
        scalars.setdefault(f"grad_norm_step_{batch.step}", []).append(v_rows.grad.norm().item())
    if replay.anchor is not None:
        anchor = replay.anchor
        rows = (anchor.x, anchor.sigma, anchor.first, anchor.task)
        with torch.no_grad():
            v_ref = reference(*rows)
        drift_B = (policy(*rows) - v_ref).square().flatten(1).mean(1)
        (grpo.anchor_weight * drift_B.sum() / replay.num_anchors).backward()
        scalars["anchor_drift"] = drift_B.detach().tolist()
    return scalars
