"""`vrlvr estimate`: its memory against what runs really hold, its counts against those of the benchmarks, its answers."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sizes import SIZES
from tiny_run import CPU, random_policy, tiny_codec, tiny_config
from torch import Tensor, UntypedStorage
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


def words(line: str) -> list[str]:
    """Arguments without spaces in them."""
    return line.split()


WIDE = words(
    "--model.num_layers 6 --model.ffn_dim 1024 --model.num_attention_heads 8 --sft.batch_size 32 --sft.max_steps 3"
)
WIDE += words("--grpo.puzzles 8 --grpo.group_size 8 --grpo.micro_batch 24 --grpo.updates 3 --grpo.validate_every 100")


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


def some_of_every_group(reward_PG: Tensor, eps: float) -> Tensor:
    """Advantages by which samples of every puzzle are kept, as of a policy that has learnt something."""
    return torch.linspace(-1, 1, reward_PG.numel(), dtype=torch.float64).view(-1, len(reward_PG)).T


def measured(config: Config, stage: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Peak bytes of a stage's phases, of all tensors that its run made."""
    memory = PhaseBytes()
    for module in (sft, grpo, update):
        monkeypatch.setattr(module, "phase", memory.watch)
    monkeypatch.setattr(grpo, "group_advantages", some_of_every_group)
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
    # What the tiny codec needs for a moment is not counted.
    assert expected["decode"].total == pytest.approx(taken["score"], rel=max(tolerance, 0.06))
    assert expected["update"].total == pytest.approx(
        max(taken[n] for n in ("replay", "backward", "rest")), rel=tolerance
    )


@pytest.mark.parametrize(
    "more",
    [["--sft.micro_batch", "3"], ["--grpo.kl_weight", "0.1", "--grpo.ema_decay", "0", "--model.conditioning", "pin"]],
)
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_memory_is_that_of_a_run(
    recompute: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["--run_dir", str(tmp_path / "run"), "--model.recompute", recompute]
    config = tiny_config(*WIDE, *run, *more)
    make_data(config)
    check_against_run(config, monkeypatch, tolerance=0.04)


def test_memory_of_a_pretrained_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA, and full fine-tuning of bfloat16 weights with masters; prompts, a VAE."""
    pytest.importorskip("diffusers")
    from wan_folder import make_wan_folder

    model = make_wan_folder(tmp_path / "model", num_attention_heads=8, attention_head_dim=16, ffn_dim=512, num_layers=4)
    difficulties = {task: room.Difficulty() for task, room in ROOMS.items()}
    difficulties["flowfree"] = ROOMS["flowfree"].Difficulty(mixes=((5, 5),))  # one number of colours: one prompt
    dataset.build(
        tmp_path / "data", 6, 2, seed=7, height=96, width=96, num_frames=9, difficulties=difficulties, workers=1
    )
    encode.encode(tmp_path / "data", model, tmp_path / "encoded", device="cpu")
    paths = [
        "--model.path",
        str(model),
        "--data.dir",
        str(tmp_path / "data"),
        "--data.encoded",
        str(tmp_path / "encoded"),
    ]
    size = words(
        "--data.height 96 --data.width 96 --data.num_frames 9 --data.num_train 4 --data.num_val 2 --data.num_test 2"
    )
    options = words(
        "--model.conditioning pin --grpo.ema_decay 0 --sft.ema_decay 0 --sft.batch_size 4 --grpo.micro_batch 4 "
        "--grpo.puzzles 4 --grpo.updates 2"
    )
    averaged = words("--model.dtype bfloat16 --model.recompute selective --sft.ema_decay 0.9 --grpo.ema_decay 0.9")
    for kind in (["--model.lora.rank", "4"], averaged):
        run = ["--run_dir", str(tmp_path / kind[0]), "--model.recompute", "none"]
        config = tiny_config(*WIDE, *paths, *size, *options, *run, *kind)
        make_data(config)
        check_against_run(config, monkeypatch, tolerance=0.1)


def test_parameters_are_those_that_are_built() -> None:
    for more in ([], ["--model.dtype", "bfloat16", "--model.conditioning", "pin"]):
        config = tiny_config(*more)
        policy = random_policy(config, tiny_codec(config))
        weights = Meter(config, sizes_in_use(policy, Rendered(config, tiny_codec(config), CPU))).weights
        assert (weights.total, weights.trained) == (sum(p.numel() for p in policy.parameters()),) * 2
        assert weights.nbytes == sum(p.nbytes for p in policy.parameters())


def phase(total_gib: float) -> Footprint:
    return Footprint("update", 1, *[int(total_gib * GIB) if part == "activations" else 0 for part in PARTS])


def test_a_margin_is_left() -> None:
    assert fits([phase(8.9), phase(1.0)], 10 * GIB)
    assert not fits([phase(1.0), phase(9.1)], 10 * GIB)
    line = refusal([phase(1.0), phase(9.1)], 10 * GIB)
    assert "update needs 9.1 GiB" in line
    assert f"{10 * (1 - MARGIN):.1f} GiB may be used" in line
    assert "\n" not in line


def test_less_memory_more_recomputation() -> None:
    config = tiny_config(*WIDE)
    meter = Meter(config, sizes_of(config))
    chosen, free = [], 2.0**30
    while free > 2**22:
        policy, phases = least_recompute(config, meter, 1, "grpo", free)
        chosen.append((policy, fits(phases, free)))
        free *= 0.9
    assert list(dict.fromkeys(chosen)) == [("none", True), ("selective", True), ("full", True), ("full", False)]


@pytest.mark.parametrize("recompute", ["auto", "full"])
def test_recomputation_is_set_as_configured(recompute: str) -> None:
    config = tiny_config("--model.recompute", recompute)
    codec = tiny_codec(config)
    policy = random_policy(config, codec)
    set_recompute(config, policy, Rendered(config, codec, CPU), 1, "grpo")
    assert policy.dit.recompute == (
        "none" if recompute == "auto" else recompute
    )  # a CPU recomputes nothing unless told


def wan(*more: str) -> Config:
    """The 5B model, of which nothing is here."""
    paths = words("--model.path /nowhere/Wan2.2-TI2V-5B --data.dir /nowhere/data --data.encoded /nowhere/encoded")
    size = words(
        "--data.height 480 --data.width 832 --data.num_frames 81 --model.conditioning pin --model.dtype bfloat16"
    )
    rest = words("--sft.ema_decay 0 --grpo.ema_decay 0 --grpo.micro_batch 1 --grpo.puzzles 8 --sft.batch_size 8")
    steps = words("--sampler.num_steps 20 --grpo.sde_steps 10 --eval.batch_size 2 --model.recompute full")
    return tiny_config(*paths, *size, *rest, *steps, *more)


def published(**other: Any) -> Sizes:
    """The 5B model's sizes without its VAE, which takes diffusers seconds."""
    config = tiny_config()
    return Sizes(WanConfig(**other), (48, 20, 30, 52), (5, 512, 4096), tiny_codec(config))


def test_zero_spreads_what_it_says() -> None:
    """The table of vrlvr.zero, on 8 processes."""
    config = wan()
    meter = Meter(config, published())
    numel, weights = meter.weights.total, meter.weights
    assert numel == weights.trained == 4_999_787_712
    held = {}
    for stage in (0, 1, 2, 3):
        engine = replace(config.engine, zero_stage=stage)  # type: ignore[arg-type]
        held[stage] = {f.phase: f for f in footprints(replace(config, engine=engine), meter, 8, "grpo", "full")}
    assert held[0]["update"].optimizer == 8 * numel + 4 * weights.half
    assert held[1]["update"].optimizer == held[2]["update"].optimizer == pytest.approx(12 * numel / 8)
    assert held[3]["update"].optimizer == pytest.approx(8 * numel / 8)
    assert {phases["update"].gradients for phases in held.values()} == {4 * numel}
    assert [held[stage]["rollout"].gradients for stage in (0, 1, 2, 3)] == [4 * numel, 0, 0, 0]
    assert held[2]["update"].weights == weights.nbytes
    spread = held[3]["update"].weights - 4 * numel / 8
    assert (
        0.16 * weights.nbytes < spread < 0.18 * weights.nbytes
    )  # 14 % of the bytes are read outside blocks; and a block
    assert held[3]["rollout"].weights == pytest.approx(weights.nbytes + 4 * numel / 8)
    assert held[0]["update"].total > held[1]["update"].total > held[3]["update"].total
    offloaded = replace(config, engine=replace(config.engine, zero_stage=2, offload=True))
    assert {f.optimizer for f in footprints(offloaded, meter, 8, "grpo", "full")} == {0}


def test_lora_keeps_what_it_trains() -> None:
    config = wan("--model.lora.rank", "64")
    meter = Meter(config, published())
    weights = meter.weights
    per_block = 8 * 64 * 2 * 3072 + 2 * 64 * (3072 + 14336)  # q, k, v and out twice; two of the feed-forward
    assert weights.trained == 30 * per_block == weights.total - 4_999_787_712
    update = {f.phase: f for f in footprints(config, meter, 1, "grpo", "full")}["update"]
    assert (update.gradients, update.optimizer) == (4 * weights.trained, 8 * weights.trained)
    assert update.copies == 4 * weights.trained  # the reference's adapters; its base model is the policy's
    assert 1 < backward_passes(config, published()) < 1.3
    assert backward_passes(wan(), published()) == 2


@pytest.mark.parametrize("shared", ["true", "false"])
@pytest.mark.parametrize("tail", ["null", "2"])
def test_forwards_are_those_of_the_benchmarks(shared: str, tail: str) -> None:
    """profiling/update_bench.py counts the same rows, and units, of an update without anchors."""
    config = tiny_config(
        *words("--grpo.anchor_weight 0 --grpo.keep_fraction 1 --grpo.puzzles 3 --grpo.group_size 4 --grpo.sde_steps 2"),
        *["--sampler.num_steps", "6", "--grpo.shared_noise", shared, "--grpo.tail_steps", tail],
    )
    recipe = Recipe(trained_steps=2, shared_noise=shared == "true", tail_steps=None if tail == "null" else int(tail))
    problem = Problem(SIZES["tiny"], 48, 3, 4, 6)
    counted, rows = count_rows(recipe, problem), update_rows(config)
    assert (rows.rollout, rows.trained, rows.reference) == (counted.rollout, counted.replay, 0)
    for recompute in ("none", "full"):
        work = estimate(replace(config, model=replace(config.model, recompute=recompute)))["stages"]["grpo"]["work"]  # type: ignore[arg-type]
        assert work["forwards_per_sample"] == pytest.approx(predicted_units(recipe, problem, recompute))


def test_anchors_and_the_reference_are_counted() -> None:
    plain = update_rows(tiny_config("--grpo.anchor_weight", "0"))
    anchored = update_rows(tiny_config("--grpo.anchor_weight", "0.1"))
    assert (anchored.trained - plain.trained, anchored.reference) == (anchored.anchors, anchored.anchors)
    assert anchored.anchors == 3  # a quarter of the half of 24
    held = update_rows(tiny_config("--grpo.anchor_weight", "0", "--grpo.kl_weight", "0.1", "--grpo.inner_epochs", "2"))
    assert held.reference == held.trained == 2 * plain.trained


def mfu(path: Path, cuda: str | None = "12.8", recompute: str = "none", size: str = "5b") -> Path:
    row = {"model": "ours", "tokens": 8190, "recompute": recompute, "tflops": 300.0}
    rows = [row | {"pass": "forward", "tflops": 600.0}, row | {"pass": "forward+backward"}]
    rows += [r | {"tokens": 27280, "tflops": 1.0} for r in rows] + [
        r | {"model": "reference", "tflops": 2.0} for r in rows
    ]
    path.write_text(json.dumps({"machine": {"cuda": cuda, "device": "a GPU"}, "size": size, "rows": rows}))
    return path


def test_seconds_only_from_a_measurement(tmp_path: Path) -> None:
    path = tmp_path / "mfu.json"
    found = find_measurement(WanConfig(), 8190, mfu(path))
    assert found is not None
    assert (found.forward, found.training) == (600e12, 300e12)
    shallow = find_measurement(WanConfig(num_layers=4), 8000, mfu(path, recompute="full"))
    assert shallow is not None
    assert shallow.training == pytest.approx(400e12)  # a fourth pass was done
    for useless in (mfu(path, cuda=None), mfu(path, size="tiny")):
        with pytest.raises(UserError, match="no GPU's rows"):
            find_measurement(WanConfig(), 8190, useless)
    with pytest.raises(UserError, match="not on this model's"):
        find_measurement(WanConfig(ffn_dim=4096), 8190, mfu(path))
    path.write_text("[1]")
    with pytest.raises(UserError, match=r"no result of profiling/mfu.py"):
        find_measurement(WanConfig(), 8190, path)
    assert find_measurement(WanConfig(ffn_dim=4096), 8190, None) is None


def test_table_and_json_of_the_tiny_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--gpu_gib", "0.1"]) == 0
    text = capsys.readouterr().out
    for part in ("parameters", "sft step", "rollout", "update", "no measurement", "does not fit", "grpo.group_size"):
        assert part in text, text
    assert re.search(
        r"grpo does not fit: update needs .* GiB may be used; lower sft\.micro_batch, grpo\.micro_batch", text
    )
    assert main(["estimate", "--json", "--processes", "2", "--grpo.group_size", "4", "--model.recompute", "full"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["processes"] == 2
    assert result["measurement"] is None
    assert result["stages"]["grpo"]["work"]["seconds"] is None
    assert {row["zero_stage"] for row in result["peak_by_zero_stage"]} == {0, 1, 2, 3}
    assert [row["configured"] for row in result["peak_by_zero_stage"]].count(True) == 1
    assert {row[f"{stage}_recompute"] for row in result["peak_by_zero_stage"] for stage in ("sft", "grpo")} == {"full"}
    assert "fits" in table(result)


def test_largest_is_the_last_that_fits() -> None:
    config = tiny_config(*WIDE, "--model.recompute", "none")
    meter = Meter(config, sizes_of(config))
    gib = 1.3 * max(phase.total for phase in footprints(config, meter, 1, "grpo", "none")) / GIB
    largest = estimate(config, gpu_gib=gib)["largest"]
    for key, section, name in (("micro_batch", "grpo", "micro_batch"), ("sft_batch_size", "sft", "batch_size")):
        for number, good in ((largest[key], True), (largest[key] + 1, False)):
            changed = replace(config, **{section: replace(getattr(config, section), **{name: number})})
            assert fits(footprints(changed, meter, 1, section, "none"), gib * GIB) is good  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--processes", "0"], ["--processes 0", "positive"]),
        (["--processes", "two"], ["--processes", "two"]),
        (["--gpu_gib", "-1"], ["--gpu_gib -1", "positive"]),
        (["--proceses", "2"], ["proceses", "does not exist"]),
        (["--grpo.grup_size", "2"], ["nearest one is grpo.group_size"]),
        (["--processes", "99"], ["data.num_val=64", "at least 99"]),
        (["--model_config", "x.json"], ["--model_config x.json", "model.path"]),
        (["--config", "/nowhere/x.yaml"], ["/nowhere/x.yaml"]),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [part for part in parts if part not in line] == [], line


def test_sizes_of_a_model_that_is_not_here(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    assert "as published" in str(sizes_of(wan()).note)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(WanConfig(num_layers=7, out_channels=16, in_channels=16))))
    sizes = sizes_of(wan(), path)  # Wan2.1's VAE: 8x8 pixels
    assert (sizes.dit.num_layers, sizes.latent_shape) == (7, (16, 20, 60, 104))
    path.write_text(json.dumps(asdict(WanConfig(out_channels=5))))
    with pytest.raises(UserError, match="no published VAE has 5"):
        sizes_of(wan(), path)
    path.write_text("{")
    with pytest.raises(UserError, match="no readable JSON"):
        sizes_of(wan(), path)
    with pytest.raises(UserError, match=r"496x832 pixels must have sides divisible by 32 .*; use 512x832"):
        sizes_of(wan("--data.height", "496"))
