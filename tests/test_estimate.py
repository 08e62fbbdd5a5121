"""`vrlvr estimate`: its memory against what runs really hold, its counts against those of the benchmarks, its answers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sizes import SIZES
from tiny_run import CPU, random_policy, tiny_codec, tiny_config
from torch import UntypedStorage
from update_bench import Problem, Recipe, count_rows, predicted_units

from vrlvr import dataset, encode, grpo, sft, train, update
from vrlvr.cli import main
from vrlvr.config import Config
from vrlvr.distributed import World
from vrlvr.errors import UserError
from vrlvr.estimate import estimate, find_measurement, table
from vrlvr.footprint import MARGIN, PARTS, Footprint, fits, footprints, least_recompute, refusal, set_recompute
from vrlvr.memory import GIB, LiveBytes
from vrlvr.meter import Meter
from vrlvr.models.dit import WanConfig
from vrlvr.puzzles import ROOMS
from vrlvr.run_dir import open_run
from vrlvr.run_log import RunLog
from vrlvr.source import Rendered
from vrlvr.workload import Sizes, backward_passes, sizes_in_use, sizes_of, update_rows

WIDE = "--model.num_layers 6 --model.ffn_dim 1024 --model.num_attention_heads 8 --sft.batch_size 32 --sft.max_steps 3".split()
WIDE += "--grpo.puzzles 8 --grpo.group_size 8 --grpo.micro_batch 24 --grpo.updates 3 --grpo.validate_every 100".split()


class PhaseBytes(LiveBytes):
    """Peaks by phase (see `vrlvr.phases`); `rest` is what runs in none."""

    def __init__(self) -> None:
        super().__init__()
        self.phase, self.peaks = "rest", dict[str, int]()

    @contextmanager
    def watch(self, name: str) -> Iterator[None]:
        before, self.phase = self.phase, name
        yield
        self.phase = before

    def _add(self, storage: UntypedStorage) -> None:
        super()._add(storage)
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.live)


def make_data(config: Config) -> None:
    open_run(config)
    with RunLog(Path(config.run_dir)) as log:
        train.make_data(config, World(), log, Path(config.run_dir))


def measured(config: Config, stage: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Peak bytes of a stage's phases, of all tensors that its run made."""
    memory = PhaseBytes()
    for module in (sft, grpo, update):
        monkeypatch.setattr(module, "phase", memory.watch)
    with RunLog(Path(config.run_dir)) as log, memory:
        train.STAGES[stage](config, World(), log, Path(config.run_dir))
    return memory.peaks


def estimated(config: Config, stage: Any) -> dict[str, Footprint]:
    meter = Meter(config, sizes_of(config), implementation="reference")
    assert config.model.recompute != "auto"
    return {phase.phase: phase for phase in footprints(config, meter, 1, stage, config.model.recompute)}


def check_against_run(config: Config, monkeypatch: pytest.MonkeyPatch, tolerance: float) -> None:
    """10 % is promised on GPUs, where the allocator and libraries add to what is counted."""
    taken, expected = measured(config, "sft", monkeypatch), estimated(config, "sft")
    assert expected["sft step"].total == pytest.approx(taken["sft_step"], rel=tolerance)
    taken, expected = measured(config, "grpo", monkeypatch), estimated(config, "grpo")
    assert expected["rollout"].total == pytest.approx(taken["rollout"], rel=tolerance)
    assert expected["decode"].total == pytest.approx(taken["score"], rel=tolerance)
    assert expected["update"].total == pytest.approx(max(taken[n] for n in ("replay", "backward", "rest")), rel=tolerance)


@pytest.mark.parametrize("more", [[], ["--grpo.kl_weight", "0.1", "--grpo.ema_decay", "0", "--model.conditioning", "pin"]])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_memory_is_that_of_a_run(
    recompute: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["--run_dir", str(tmp_path / "run"), "--model.recompute", recompute]
    config = tiny_config(*WIDE, *run, *more)
    make_data(config)
    check_against_run(config, monkeypatch, tolerance=0.04)
