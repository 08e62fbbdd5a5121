"""The configurations of configs/: they parse, agree with each other and with `vrlvr data`, and fit the machines they name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import ARGUMENTS

from vrlvr import dataset, options
from vrlvr.config import Config, check
from vrlvr.estimate import estimate
from vrlvr.run_dir import open_run
from vrlvr.train import main
from vrlvr.workload import sizes_of, update_rows

CONFIGS = Path(__file__).parents[1] / "configs"
# GPUs and the GiB of each: an H200's 141 GB are 139 GiB once the driver has its part.
MACHINES = {"sft": (8, 80), "grpo": (8, 80), "grpo_lora_80g": (1, 80), "grpo_full_h200": (1, 139)}


def preset(name: str) -> Config:
    return options.parse(["--config", str(CONFIGS / "wan2.2-ti2v-5b" / f"{name}.yaml")])


def test_every_preset_is_listed_here() -> None:
    assert {path.stem for path in CONFIGS.glob("wan2.2-ti2v-5b/*.yaml")} == set(MACHINES)


@pytest.mark.parametrize("name", MACHINES)
def test_presets_keep_the_papers_sizes(name: str) -> None:
    config, (processes, _) = preset(name), MACHINES[name]
    check(config, processes)
    data, grpo = config.data, config.grpo
    assert (data.height, data.width, data.num_frames) == (480, 832, 81)
    assert (config.sampler.num_steps, grpo.sde_steps, config.sampler.shift, grpo.tail_steps) == (20, 10, 5.0, None)
    assert (data.num_train + data.num_val, data.num_test) == (10_000, 1_000)
    assert config.sft.max_steps * config.sft.batch_size == 5 * 3 * data.num_train
    assert {task: getattr(data, task) for task in data.tasks} == dataset.full_size_difficulties(81)
    assert data.frames_per_move == dataset.frames_per_move(81)
    assert grpo.puzzles % len(data.tasks) == 0 or processes > 1  # few puzzles: as many of each task
    assert update_rows(config).samples % processes == 0
    assert config.checkpoints_to_keep
    saved = 3 * data.num_train / config.sft.batch_size * config.sft.save_every_epochs
    assert saved <= 0.1 * config.sft.max_steps  # steps that a killed run loses at most
    assert name == "sft" or grpo.save_every <= 0.1 * grpo.updates


@pytest.mark.parametrize("name", MACHINES)
def test_presets_fit_their_machines(name: str) -> None:
    pytest.importorskip("diffusers")
    processes, gib = MACHINES[name]
    result = estimate(preset(name), processes, gib)
    assert "as published" in result["model"]["note"]
    assert {stage: result["stages"][stage]["fits"] for stage in ("sft", "grpo")} == {"sft": True, "grpo": True}
    assert result["largest"]["micro_batch"] >= preset(name).grpo.micro_batch
    peaks = [phase["total"] / 2**30 for stage in result["stages"].values() for phase in stage["phases"]]
    assert max(peaks) > 0.5 * gib  # of a machine that is much too large nothing would be learnt
    if name == "grpo_full_h200":
        assert max(peaks) > 80  # or the smaller GPU would do


def test_rl_starts_from_sfts_run(tmp_path: Path) -> None:
    sft = replace(preset("sft"), run_dir=str(tmp_path / "sft"), stage="sft")
    open_run(sft)
    (tmp_path / "sft" / "puzzles").mkdir()
    (tmp_path / "sft" / "checkpoints" / "sft-final").mkdir(parents=True)
    (tmp_path / "sft" / "checkpoints" / "latest-sft").write_text("sft-final")
    for name in ("grpo", "grpo_full_h200"):
        run = replace(preset(name), run_dir=str(tmp_path / name), stage="grpo", init_from=sft.run_dir)
        open_run(run)
        assert (tmp_path / name / "checkpoints" / "latest-sft").exists()
    assert preset("grpo").init_from == preset("sft").run_dir


def test_small_is_as_large_as_it_says() -> None:
    config = options.parse(["--config", str(CONFIGS / "small.yaml")])
    check(config)
    assert set(config.data.tasks) == {"maze", "flowfree", "sokoban"}
    result = estimate(config, gpu_gib=139)
    assert 50e6 < result["model"]["parameters"] < 55e6
    assert all(stage["fits"] for stage in result["stages"].values())
    # Five epochs, RL by Early-Step Focus twice and on all steps: FLOPs of minutes, not of hours, at 100 TFLOP/s.
    full = update_rows(replace(config, grpo=replace(config.grpo, sde_steps="all")))
    esf = update_rows(config)
    per_forward = result["stages"]["sft"]["work"]["flops"] / result["stages"]["sft"]["work"]["forwards"]
    forwards = config.sft.max_steps * result["stages"]["sft"]["work"]["forwards"]
    forwards += config.grpo.updates * sum(rows.rollout + rows.reference + 3 * rows.trained for rows in (esf, esf, full))
    assert forwards * per_forward < 15 * 60 * 100e12
    assert sizes_of(config).num_tokens("concat") == 72


def test_bfloat16_from_scratch(tmp_path: Path) -> None:
    """Small's kind of policy, at debug size: all stages."""
    run = [
        "--run_dir",
        str(tmp_path / "run"),
        "--model.dtype",
        "bfloat16",
        "--sft.ema_decay",
        "0",
        "--grpo.ema_decay",
        "0",
    ]
    assert main([*ARGUMENTS, *run, "--sft.max_steps", "3"]) == 0
    rows: list[dict[str, Any]] = json.loads((tmp_path / "run" / "results.json").read_text())
    assert rows


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("**/*.yaml")), ids=lambda path: path.name)
def test_what_was_not_run_says_so(path: Path) -> None:
    head = path.read_text().split("run_dir")[0]
    assert path.name == "tiny.yaml" or "Not yet run" in head
    assert yaml.safe_load(path.read_text())
