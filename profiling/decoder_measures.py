"""What reward_decoder_agreement.py measures of a small decoder beside the full one: verdicts, the audit, the cost."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from small_policy import Samples
from torch.utils.flop_counter import FlopCounterMode

from vrlvr.audit import AuditConfig, AuditedDecoder, Decoder, agree, disagreement, doubtful, worst_cell
from vrlvr.config import Config, DataConfig, ModelConfig
from vrlvr.distributed import World
from vrlvr.evaluation.metrics import Z95
from vrlvr.models.flops import tokens_of, total_flops
from vrlvr.models.reward_decoder import RewardDecoder, RewardDecoderConfig
from vrlvr.models.wan_vae import WanVAECodec
from vrlvr.puzzles import DENSE_REWARD, verify_many
from vrlvr.puzzles.verdict import Verdict, reward
from vrlvr.workload import PUBLISHED, sizes_of

Size = tuple[int, int]
NUM_FRAMES, HEIGHT, WIDTH = 81, 480, 832  # those of the published models' videos
_BATCH = 32  # videos decoded at once
_TIMED, _REPEATS = 32, 3


class Pair(NamedTuple):
    """A sample's verdicts by either decoder. doubt: `worst_cell` of the small frames."""

    task: str
    small: Verdict
    full: Verdict
    doubt: float = 0.0


def judge_both(small: Decoder, full: Decoder, samples: Samples, size: Size) -> list[Pair]:
    """size: height and width of the full videos."""
    pairs: list[Pair] = []
    for start in range(0, len(samples.puzzles), _BATCH):
        part = samples.part(range(start, min(start + _BATCH, len(samples.puzzles))))
        videos, exact = (decoder.decode(part.first_BC1HW, part.latents_BCFHW) for decoder in (small, full))
        verdicts = (verify_many(part.puzzles, shown, size) for shown in (videos, exact))
        for puzzle, video, a, b in zip(part.puzzles, videos, *verdicts, strict=True):
            pairs.append(Pair(puzzle.task, a, b, worst_cell(puzzle, video, size)))
    return pairs


def settle(pairs: Sequence[Pair], share: float) -> list[Pair]:
    """The same, where the full decode judges the share of samples that are read worst, see AuditedDecoder.settle."""
    in_full = doubtful([pair.doubt for pair in pairs], math.ceil(share * len(pairs)))
    return [pair._replace(small=pair.full) if i in in_full else pair for i, pair in enumerate(pairs)]


def compare(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Shares of samples judged alike, each with Wilson's 95 % interval, and the dense reward's mean absolute difference.

    verdict: what the audit calls agreement. rule: the broken rule, or that none is; rule_and_frame: where it is, too.
    """
    tolerance = AuditConfig.tolerance
    equal = {
        "verdict": [agree(a, b, tolerance) for _, a, b, _ in pairs],
        "solved": [a.solved == b.solved for _, a, b, _ in pairs],
        "rule": [a.broken_rule == b.broken_rule for _, a, b, _ in pairs],
        "rule_and_frame": [(a.broken_rule, a.frame) == (b.broken_rule, b.frame) for _, a, b, _ in pairs],
    }
    result: dict[str, Any] = {
        "samples": len(pairs),
        "solved_by_full_decode": float(np.mean([pair.full.solved for pair in pairs])),
    }
    for name, outcomes in equal.items():
        rate, (low, high) = disagreement([not outcome for outcome in outcomes])
        result |= {f"{name}_equal": 1 - rate, f"{name}_equal_ci95": [1 - high, 1 - low]}
    off = np.array([abs(reward(a, DENSE_REWARD[t]) - reward(b, DENSE_REWARD[t])) for t, a, b, _ in pairs])
    half = Z95 * float(off.std() / np.sqrt(len(off)))
    mean = float(off.mean())
    result |= {"reward_difference": mean, "reward_difference_ci95": [max(0.0, mean - half), mean + half]}
    return result | {"reward_difference_max": float(off.max()), "misses": misses(pairs)}


def misses(pairs: Sequence[Pair]) -> dict[str, int]:
    """How many samples are judged otherwise, by task and by what the full decode shows -> what the small one shows."""
    counts: dict[str, int] = {}
    for task, a, b, _ in pairs:
        if not agree(a, b, AuditConfig.tolerance):
            name = f"{task}: {b.broken_rule or 'no rule broken'} -> {a.broken_rule or 'no rule broken'}"
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
        videos = decoder.decode(*latents)
        verdicts = decoder.settle(part.puzzles, videos, *latents, verify_many(part.puzzles, videos, size))
        scalars = decoder.audit(update, part.puzzles, *latents, verdicts)
    found = {"disagreement": scalars["decoder_disagreement"], "audited": int(scalars["decoder_audited"])}
    return {"damage": damage, **found, "updates": update, "dropped": not decoder.trusted, "said": said}


def cost(small: RewardDecoder, full: WanVAECodec, samples: Samples) -> dict[str, float]:
    """Of decoding a video: FLOPs and, as a share of a DiT forward, those at full size; seconds here, by this VAE.

    settled: the small decode of every sample and the full one of the doubtful.
    """
    part = samples.part(range(min(_TIMED, len(samples.puzzles))))
    latents = part.first_BC1HW, part.latents_BCFHW
    result: dict[str, float] = {}
    for name, decoder in (("small", small), ("full", full)):
        decode = partial(decoder.decode, *latents)
        result[f"{name}_ms"] = 1e3 * fastest(decode) / len(part.puzzles)
        result[f"{name}_gflop"] = count(decode) / len(part.puzzles) / 1e9
    data = DataConfig(num_frames=NUM_FRAMES, height=HEIGHT, width=WIDTH, encoded=PUBLISHED)
    sizes = sizes_of(Config(model=ModelConfig(path=PUBLISHED), data=data))
    assert isinstance(sizes.codec, WanVAECodec)
    channels, frames, height, width = sizes.latent_shape
    with torch.device("meta"):
        published = RewardDecoder(RewardDecoderConfig(latent_channels=channels))
        first, rest = torch.empty(1, channels, 1, height, width), torch.empty(1, channels, frames, height, width)
    codec = sizes.codec
    forward = total_flops(sizes.dit, tokens_of(sizes.dit, NUM_FRAMES, HEIGHT, WIDTH))
    counted = {
        "small": count(lambda: published(torch.cat((first, rest), dim=2))),
        "full": count(lambda: list(codec.pixels(first, rest))),
    }
    for name, flops in counted.items():
        result |= {f"{name}_tflop_480x832x81": flops / 1e12, f"{name}_dit_forwards_480x832x81": flops / forward}
    settled = (counted["small"] + AuditConfig.doubtful * counted["full"]) / forward
    return result | {"settled_dit_forwards_480x832x81": settled}


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
