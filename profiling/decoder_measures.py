"""What reward_decoder_agreement.py measures of a small decoder beside the full one: verdicts, the audit, the cost."""

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from small_policy import Samples
from torch.utils.flop_counter import FlopCounterMode

from vrlvr.audit import AuditConfig, AuditedDecoder, agree, disagreement
from vrlvr.config import Config, DataConfig, ModelConfig
from vrlvr.dataset import full_size_difficulties
from vrlvr.distributed import World
from vrlvr.evaluation.metrics import Z95
from vrlvr.models.codec import Decoder, WindowDecoder
from vrlvr.models.flops import tokens_of, total_flops
from vrlvr.models.reward_decoder import RewardDecoder, RewardDecoderConfig
from vrlvr.models.wan_decode import Window
from vrlvr.models.wan_vae import WanVAECodec
from vrlvr.puzzles import DENSE_REWARD, Puzzle, Reading, judge, read_many, verify_many
from vrlvr.puzzles.verdict import Verdict, reward
from vrlvr.reread import Box, doubtful_cells, reread, window_around
from vrlvr.workload import PUBLISHED, sizes_of

Size = tuple[int, int]
NUM_FRAMES, HEIGHT, WIDTH = 81, 480, 832  # those of the published models' videos
_BATCH = 32  # videos decoded at once
_TIMED, _REPEATS = 32, 3


class Cells(NamedTuple):
    """The size of a box of board cells."""

    rows: int
    columns: int


class Pair(NamedTuple):
    """A sample's verdicts by either decoder. reading: of the small frames. box: of the cells that were read anew, if any."""

    puzzle: Puzzle
    reading: Reading
    small: Verdict
    full: Verdict
    box: Cells | None = None


def judge_both(small: Decoder, full: Decoder, samples: Samples, size: Size) -> list[Pair]:
    """size: height and width of the full videos."""
    pairs: list[Pair] = []
    for start in range(0, len(samples.puzzles), _BATCH):
        part = samples.part(range(start, min(start + _BATCH, len(samples.puzzles))))
        latents = part.first_BC1HW, part.latents_BCFHW
        readings = read_many(part.puzzles, small.decode(*latents), size)
        exact = verify_many(part.puzzles, full.decode(*latents), size)
        for puzzle, reading, verdict in zip(part.puzzles, readings, exact, strict=True):
            pairs.append(Pair(puzzle, reading, judge(puzzle, reading), verdict))
    return pairs


def settle(pairs: Sequence[Pair], samples: Samples, full: WindowDecoder, size: Size, doubt: float) -> list[Pair]:
    """The same with what is in doubt read anew: `small` is then the verdict after that, see AuditedDecoder.reread."""
    settled = list(pairs)
    for i, pair in enumerate(pairs):
        if (box := doubtful_cells(pair.reading, doubt)) is not None:
            one = samples.part([i])
            reading = reread(pair.puzzle, pair.reading, box, one.first_BC1HW, one.latents_BCFHW, full, size)
            cells = Cells(box.bottom - box.top, box.right - box.left)
            settled[i] = pair._replace(small=judge(pair.puzzle, reading), box=cells)
    return settled


def compare(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Shares of samples judged alike, each with Wilson's 95 % interval, and the dense reward's mean absolute difference.

    verdict: what the audit calls agreement. rule: the broken rule, or that none is; rule_and_frame: where it is, too.
    """
    tolerance = AuditConfig.tolerance
    verdicts = [(pair.small, pair.full) for pair in pairs]
    equal = {
        "verdict": [agree(a, b, tolerance) for a, b in verdicts],
        "solved": [a.solved == b.solved for a, b in verdicts],
        "rule": [a.broken_rule == b.broken_rule for a, b in verdicts],
        "rule_and_frame": [(a.broken_rule, a.frame) == (b.broken_rule, b.frame) for a, b in verdicts],
    }
    result: dict[str, Any] = {
        "samples": len(pairs),
        "solved_by_full_decode": float(np.mean([pair.full.solved for pair in pairs])),
    }
    for name, outcomes in equal.items():
        rate, (low, high) = disagreement([not outcome for outcome in outcomes])
        result |= {f"{name}_equal": 1 - rate, f"{name}_equal_ci95": [1 - high, 1 - low]}
    off = np.array([reward_difference(pair) for pair in pairs])
    half = Z95 * float(off.std() / np.sqrt(len(off)))
    mean = float(off.mean())
    result |= {"reward_difference": mean, "reward_difference_ci95": [max(0.0, mean - half), mean + half]}
    return result | {"reward_difference_max": float(off.max()), "misses": misses(pairs)}


def reward_difference(pair: Pair) -> float:
    weights = DENSE_REWARD[pair.puzzle.task]
    return abs(reward(pair.small, weights) - reward(pair.full, weights))


def misses(pairs: Sequence[Pair]) -> dict[str, int]:
    """How many samples are judged otherwise, by task and by what the full decode shows -> what the small one shows."""
    counts: dict[str, int] = {}
    for pair in pairs:
        if not agree(pair.small, pair.full, AuditConfig.tolerance):
            broken = (verdict.broken_rule or "no rule broken" for verdict in (pair.full, pair.small))
            name = f"{pair.puzzle.task}: {' -> '.join(broken)}"
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def audit_damaged(
    small: RewardDecoder, full: WanVAECodec, samples: Samples, size: Size, damage: float, updates: int, rows: int
) -> dict[str, Any]:
    """Updates of `rows` samples each under the default audit, by a decoder whose weights have noise of `damage` times the
    deviation of their tensor. disagreement: on all audited samples until it was dropped, or to the end."""
    torch.manual_seed(0)
    damaged = copy.deepcopy(small)
    with torch.no_grad():
        for weight in (p for p in damaged.parameters() if p.dim() > 1):
            weight.add_(damage * weight.std() * torch.randn_like(weight))
    said: list[str] = []
    decoder = AuditedDecoder(damaged, full, size, AuditConfig(), seed=0, world=World(), say=said.append)
    update, scalars = 0, dict[str, float]()
    while update < updates and decoder.trusted:
        part = samples.part([(update * rows + i) % len(samples.puzzles) for i in range(rows)])
        update += 1
        latents = part.first_BC1HW, part.latents_BCFHW
        readings = read_many(part.puzzles, decoder.decode(*latents), size)
        readings = decoder.reread(part.puzzles, readings, *latents)
        verdicts = [judge(puzzle, reading) for puzzle, reading in zip(part.puzzles, readings, strict=True)]
        scalars = decoder.audit(update, part.puzzles, *latents, verdicts)
    found = {"disagreement": scalars["decoder_disagreement"], "audited": int(scalars["decoder_audited"])}
    return {"damage": damage, **found, "updates": update, "dropped": not decoder.trusted, "said": said}


def cost(small: RewardDecoder, full: WanVAECodec, samples: Samples) -> dict[str, float]:
    """Of decoding a video by these decoders: FLOPs, and seconds here."""
    part = samples.part(range(min(_TIMED, len(samples.puzzles))))
    result: dict[str, float] = {}
    for name, decoder in (("small", small), ("full", full)):
        decode = partial(decoder.decode, part.first_BC1HW, part.latents_BCFHW)
        result[f"{name}_ms"] = 1e3 * fastest(decode) / len(part.puzzles)
        result[f"{name}_gflop"] = count(decode) / len(part.puzzles) / 1e9
    return result


class PublishedCost:
    """FLOPs of decoding a 480x832x81 video by Wan2.2's VAE and the default reward decoder, in forwards of its transformer."""

    def __init__(self) -> None:
        data = DataConfig(num_frames=NUM_FRAMES, height=HEIGHT, width=WIDTH, encoded=PUBLISHED)
        sizes = sizes_of(Config(model=ModelConfig(path=PUBLISHED), data=data))
        assert isinstance(sizes.codec, WanVAECodec)
        channels, frames, height, width = sizes.latent_shape
        with torch.device("meta"):
            small = RewardDecoder(RewardDecoderConfig(latent_channels=channels))
            self._first = torch.empty(1, channels, 1, height, width)
            self._rest = torch.empty(1, channels, frames, height, width)
        self._codec, self._whole = sizes.codec, Window(0, height, 0, width)
        self._forward = total_flops(sizes.dit, tokens_of(sizes.dit, NUM_FRAMES, HEIGHT, WIDTH))
        self._boards = full_size_difficulties()
        self._reread: dict[tuple[str, Cells], float] = {}
        latents = torch.cat((self._first, self._rest), dim=2)
        self.small = count(lambda: small(latents)) / self._forward
        self.full = self._window(self._rest, self._whole)

    def reread(self, task: str, box: Cells) -> float:
        """Of a box in the middle of a full-size data set's board, and of the first frame."""
        if (task, box) not in self._reread:
            board = self._boards[task]
            top, left = (board.rows - box.rows) // 2, (board.cols - box.columns) // 2
            cells = Box(top, top + box.rows, left, left + box.columns)
            window = window_around(board, cells, (HEIGHT, WIDTH), self._codec.pixels_per_latent)
            first = self._window(self._rest[:, :, :0], self._whole)
            self._reread[task, box] = first + self._window(self._rest, window)
        return self._reread[task, box]

    def settled(self, pairs: Sequence[Pair], as_shares: bool = False) -> float:
        """A sample's, on average: the small decode, and what `settle` has read anew.

        Boards are larger at full size: a box there has as many cells as here, or, as_shares, is as large a share of its board.
        """
        boxes = [(pair.puzzle, pair.box) for pair in pairs if pair.box]
        if as_shares:
            boxes = [(puzzle, self._stretched(puzzle, box)) for puzzle, box in boxes]
        return self.small + sum(self.reread(puzzle.task, box) for puzzle, box in boxes) / len(pairs)

    def _stretched(self, puzzle: Puzzle, box: Cells) -> Cells:
        board = self._boards[puzzle.task]
        return Cells(-(-box.rows * board.rows // puzzle.rows), -(-box.columns * board.cols // puzzle.cols))

    def _window(self, latents_1CFHW: torch.Tensor, window: Window) -> float:
        return count(lambda: list(self._codec.pixels(self._first, latents_1CFHW, window=window))) / self._forward


def count(function: Callable[[], object]) -> int:
    """FLOPs of a call, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def fastest(function: Callable[[], object]) -> float:
    """The least seconds of a few calls: other work on the machine can only add."""
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
