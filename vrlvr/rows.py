"""Rows of the policy to be replayed in an update, and how the ranks share them.

A *row* is one evaluation of the policy; a *term* is the GRPO loss of one sample at one SDE step. With shared initial noise
the samples of a puzzle share the row of step 0, whose backward then is one with their summed upstream gradients: exact.
"""

from dataclasses import dataclass, fields
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from vrlvr.distributed import World


@dataclass
class RowBatch:
    """Rows of the policy with everything that replaying them needs, and the terms that hang on them.

    step, x, sigma, first, prompt: per row. row_of (non-decreasing), next_x, coefficients (a, b, std; float64), advantage,
    rollout_log_prob, old_log_prob: per term; row_of is the place of a term's row in this batch.
    """

    step: Tensor
    x: Tensor
    sigma: Tensor
    first: Tensor
    prompt: Tensor
    row_of: Tensor
    next_x: Tensor
    coefficients: Tensor
    advantage: Tensor
    rollout_log_prob: Tensor
    old_log_prob: Tensor | None = None

    PER_ROW = ("step", "x", "sigma", "first", "prompt")

    def tensors(self) -> dict[str, Tensor]:
        """All but old_log_prob, which the first replay makes."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "old_log_prob"}

    def part(self, start: int, stop: int) -> "RowBatch":
        """Rows start to stop, with all their terms."""
        bounds = torch.tensor([start, stop], device=self.row_of.device)
        first, last = torch.searchsorted(self.row_of, bounds).tolist()
        cut = {
            name: tensor[start:stop] if name in self.PER_ROW else tensor[first:last]
            for name, tensor in self.tensors().items()
        }
        return RowBatch(**cut | {"row_of": cut["row_of"] - start})

    def blank(self, num_rows: int, num_terms: int) -> "RowBatch":
        """Memory for rows and terms of the same kind."""
        return RowBatch(
            **{
                name: tensor.new_empty(num_rows if name in self.PER_ROW else num_terms, *tensor.shape[1:])
                for name, tensor in self.tensors().items()
            }
        )


def joined(parts: list[RowBatch]) -> RowBatch:
    """The rows of several batches end to end."""
    offsets = accumulate((len(part.x) for part in parts), initial=0)
    tensors = [part.tensors() | {"row_of": part.row_of + offset} for part, offset in zip(parts, offsets, strict=False)]
    return RowBatch(**{name: torch.cat([t[name] for t in tensors]) for name in tensors[0]})


def dealt_evenly(rows: RowBatch, world: World) -> RowBatch:
    """All ranks' rows in their order, but on each as many as on the others, give or take one: else the rank that has most of
    them would be waited for. All ranks call it, each with its rows, of which there may be none.
    """
    if world.size == 1:
        return rows
    starts = [*accumulate(world.gather(len(rows.x)), initial=0)]
    total, me = starts[-1], world.rank

    def common(source: int, target: int) -> range:
        """The rows that `source` has and `target` is to have, among all ranks' rows."""
        share = World(target, world.size).share(total)
        return range(max(starts[source], share.start), min(starts[source + 1], share.stop))

    others = [rank for rank in range(world.size) if rank != me]
    given = {to: rows.part(r.start - starts[me], r.stop - starts[me]) for to in others if (r := common(me, to))}
    num_terms = world.gather({to: len(part.row_of) for to, part in given.items()})
    taken = {source: rows.blank(len(r), num_terms[source][me]) for source in others if (r := common(source, me))}
    messages = [
        dist.P2POp(operation, tensor.contiguous() if operation is dist.isend else tensor, peer, tag=tag)
        for operation, parts in ((dist.isend, given), (dist.irecv, taken))
        for peer, part in parts.items()
        for tag, tensor in enumerate(part.tensors().values())
    ]
    for request in dist.batch_isend_irecv(messages) if messages else []:
        request.wait()
    kept = common(me, me)
    stay = {me: rows.part(kept.start - starts[me], kept.stop - starts[me])} if kept else {}
    parts = stay | taken
    return joined([parts[source] for source in sorted(parts)]) if parts else rows.blank(0, 0)
