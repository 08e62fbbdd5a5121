"""Engines: every ZeRO stage, in any number of processes, trains what one plain process trains, and resumes its runs."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from ranks import cut_back, on_ranks
from tiny_run import ARGUMENTS, random_policy, tiny_codec, tiny_config

from vrlvr import engine as engines
from vrlvr.distributed import World
from vrlvr.engine import PlainEngine, make_engine
from vrlvr.errors import UserError
from vrlvr.tensor_files import TensorFiles
from vrlvr.train import main

STAGES = (0, 1, 2, 3)
# Nothing divides evenly; several backward passes an update, of unequal number on the ranks; all terms of the loss.
SHORT = "--sft.max_steps 3 --sft.validate_every 3 --sft.batch_size 11 --data.num_val 5 --eval.noise_seeds 1 --grpo.puzzles 5 "
SHORT += (
    "--grpo.micro_batch 3 --grpo.kl_weight 0.05 --grpo.anchor_weight 0.01 --grpo.inner_epochs 2 --grpo.validate_every 1"
)
RUN = [*ARGUMENTS, *SHORT.split()]


def curve(run_dir: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    names = {
        "sft": ("loss", "grad_norm"),
        "grpo": ("reward", "grad_norm", "kl", "anchor_drift", "zero_spread_fraction", "val_success"),
    }
    return [[row["step"], *(row[name] for name in names[row["phase"]])] for row in rows if row["phase"] in names]


def assert_same_curve(run_dir: Path, expected: Path) -> None:
    assert len(curve(run_dir)) == len(curve(expected)) == 3 + 2
    for row, wanted in zip(curve(run_dir), curve(expected), strict=True):
        assert row == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def assert_same_checkpoint(folder: Path, expected: Path) -> None:
    for name in ("model", "ema", "optimizer"):
        actual, wanted = TensorFiles(folder, name), TensorFiles(expected, name)
        assert set(actual) == set(wanted)
        for key, value in wanted.items():
            torch.testing.assert_close(
                actual[key], value, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by one process."""
    path = tmp_path_factory.mktemp("runs") / "alone"
    assert main([*RUN, "--run_dir", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def halfway(alone: Path) -> Path:
    """That run, as if killed in its second and last update."""
    path = alone.with_name("halfway")
    shutil.copytree(alone, path)
    cut_back(path, path / "reached")
    return path


@pytest.mark.parametrize("processes", [2, 4])
def test_every_engine_trains_what_one_process_trains(
    processes: int, alone: Path, halfway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on from its checkpoint, by another engine and number of processes; and one process from theirs. The same number
    of processes goes on to the bit.
    """
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    whole = {stage: tmp_path / f"whole{stage}" for stage in STAGES}
    resumed = {stage: tmp_path / f"resumed{stage}" for stage in STAGES if stage != processes - 1}
    for path in resumed.values():
        shutil.copytree(halfway, path)
    runs = [[*RUN, "--engine.zero_stage", str(s), "--run_dir", str(path)] for s, path in whole.items()]
    runs += [
        [*RUN, "--engine.zero_stage", str(s), "--run_dir", str(path), "--stage", "grpo", "--resume", "auto"]
        for s, path in resumed.items()
    ]
    same = whole[2 if processes == 2 else 0]
    again = [run for run in runs[: len(whole)] if str(same) in run]
    again = [[*run, "--stage", "grpo", "--resume", "auto"] for run in again]
    on_ranks(processes, "train_runs", {"runs": runs, "again": again})
    assert not (tmp_path / "compiled").exists()  # DeepSpeed's operator for collectives on the CPU
    for path in whole.values():
        assert_same_curve(path, alone)
        for name in ("sft-final", "grpo-000001", "grpo-final"):
            assert_same_checkpoint(path / "checkpoints" / name, alone / "checkpoints" / name)
    for file in (same / "reached").iterdir():  # resumed by as many processes: to the bit
        assert (same / "checkpoints" / "grpo-final" / file.name).read_bytes() == file.read_bytes(), file.name
    for path in resumed.values():
        assert curve(path)[-1] == pytest.approx(curve(alone)[-1], rel=1e-6, abs=1e-9)
        assert_same_checkpoint(path / "checkpoints" / "grpo-final", alone / "checkpoints" / "grpo-final")

    back = whole[3]
    cut_back(back, back / "reached")
    assert main([*RUN, "--run_dir", str(back), "--stage", "grpo", "--resume", "auto"]) == 0
    assert curve(back)[-1] == pytest.approx(curve(alone)[-1], rel=1e-6, abs=1e-9)


HALF = {
    "plain": [],
    "zero1": ["--engine.zero_stage", "1"],
    "zero2": ["--engine.zero_stage", "2"],
    "zero3": ["--engine.zero_stage", "3"],
    "zero2_offload": ["--engine.zero_stage", "2", "--engine.offload", "true"],
    "zero3_offload": ["--engine.zero_stage", "3", "--engine.offload", "true"],
}


def test_half_precision_weights_with_float32_masters(tmp_path: Path) -> None:
    """bfloat16 weights beside float32 ones: ZeRO steps their masters as the plain engine does, offloaded or not."""
    pytest.importorskip("deepspeed")
    options = ["--model.conditioning", "pin", "--model.recompute", "selective"]
    on_ranks(2, "half_precision", {"steps": 3, "engines": HALF, "folder": str(tmp_path), "options": options})
    for name in HALF:
        assert_same_half(tmp_path / name, tmp_path / "plain")


def test_one_process_may_offload_too(tmp_path: Path) -> None:
    """And steps on all cores then, though torchrun gives PyTorch but one where several processes share them."""
    pytest.importorskip("deepspeed")
    names = {"plain": [], "offload": ["--engine.zero_stage", "3", "--engine.offload", "true"]}
    on_ranks(1, "half_precision", {"steps": 2, "engines": names, "folder": str(tmp_path), "options": [], "cores": 5})
    assert_same_half(tmp_path / "offload", tmp_path / "plain")
    *_, usual = json.loads((tmp_path / "plain" / "threads.json").read_text())
    *within, after = json.loads((tmp_path / "offload" / "threads.json").read_text())
    assert set(within) == {5}
    assert after == usual < 5


def assert_same_half(folder: Path, expected: Path) -> None:
    losses, wanted_losses = (json.loads((path / "losses.json").read_text()) for path in (folder, expected))
    assert wanted_losses[-1][0] < 0.97 * wanted_losses[0][0]
    for row, wanted_row in zip(losses, wanted_losses, strict=True):
        assert row == pytest.approx(wanted_row, rel=1e-6)
    state, wanted = TensorFiles(folder, "optimizer"), TensorFiles(expected, "optimizer")
    assert set(state) == set(wanted)
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-5, atol=1e-7)
    for name, weight in TensorFiles(folder, "model").items():
        if weight.dtype == torch.bfloat16:
            assert torch.equal(state[f"{name}.master"].to(torch.bfloat16), weight)
        else:
            assert f"{name}.master" not in state
    assert sum(key.endswith(".master") for key in state) > 10


def test_errors_leave_no_rank_waiting() -> None:
    """Raised on all ranks within an update, and a gradient that is not finite."""
    pytest.importorskip("deepspeed")
    on_ranks(2, "errors", {"engines": {name: HALF[name] for name in ("plain", "zero1", "zero2", "zero3")}})


@pytest.mark.parametrize("stage", STAGES)
def test_one_process_needs_no_deepspeed(stage: int) -> None:
    config = tiny_config("--engine.zero_stage", str(stage))
    engine = make_engine(config, World(), random_policy(config, tiny_codec(config)), 0.1, 1.0)
    assert isinstance(engine, PlainEngine)


def test_what_does_not_go_together_is_refused() -> None:
    config = tiny_config()
    policy = random_policy(config, tiny_codec(config))
    config.engine.offload = True
    with pytest.raises(UserError, match=r"engine\.offload=true needs DeepSpeed; set engine\.zero_stage"):
        make_engine(config, World(), policy, 0.0, 1.0)
    config.engine.zero_stage, config.engine.offload = 3, False
    policy.dit.proj_out.requires_grad_(False)
    with pytest.raises(UserError, match=r"engine\.zero_stage=3 spreads .* LoRA .* use engine\.zero_stage=0 to 2"):
        make_engine(config, World(0, 2), policy, 0.0, 1.0)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("--engine.zero_stage", "2")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.delitem(sys.modules, "vrlvr.zero", raising=False)
    with pytest.raises(UserError, match=r"needs the package deepspeed .* pip install vrlvr\[deepspeed\]"):
        make_engine(config, World(0, 2), random_policy(config, tiny_codec(config)), 0.0, 1.0)


def test_a_parameter_without_gradient_counts_as_zero() -> None:
    """As with several processes, where another one may have it: weight decay and AdamW's steps are then every parameter's."""
    config = tiny_config()
    policy = random_policy(config, tiny_codec(config))
    engine = make_engine(config, World(), policy, weight_decay=0.5, max_grad_norm=1.0)
    before = policy.dit.scale_shift_table.detach().clone()
    with engine.accumulate():
        policy.text.table.sum().backward()
    assert engine.step(0.1) == pytest.approx(policy.text.table.numel() ** 0.5)
    torch.testing.assert_close(policy.dit.scale_shift_table.detach(), 0.95 * before)
    steps = [tensor for key, tensor in engine.optimizer_state() if key.endswith(".step")]
    assert len(steps) == len(list(policy.parameters()))
    assert set(map(float, steps)) == {1.0}


def test_only_one_file_knows_deepspeed() -> None:
    folder = Path(engines.__file__).parent
    knowing = [
        path.name for path in folder.rglob("*.py") if re.search(r"^\s*(import|from) deepspeed", path.read_text(), re.M)
    ]
    assert knowing == ["zero.py"]
