"""The whole recipe on a pretrained model: a tiny Diffusers folder of the real classes, encoded data, SFT, RL, evaluation."""

import json
from pathlib import Path

import pytest
import torch
from tiny_run import ARGUMENTS

from vrlvr import cli, dataset, encode
from vrlvr.checkpoint import read_average
from vrlvr.distill import distill_decoder
from vrlvr.evaluation.tables import read_results
from vrlvr.models.wan import load_transformer
from vrlvr.puzzles import ROOMS
from vrlvr.run_log import read_metrics
from vrlvr.train import main

pytest.importorskip("diffusers")

from wan_folder import make_wan_folder

SIZE = ["--data.height", "64", "--data.width", "64", "--data.num_frames", "5"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, a data set of 6 + 2 puzzles a task, and its latents."""
    root = tmp_path_factory.mktemp("wan")
    folders = {"model": make_wan_folder(root / "model"), "data": root / "data", "encoded": root / "encoded"}
    difficulties = {task: room.Difficulty() for task, room in ROOMS.items()}
    dataset.build(
        folders["data"], num_train=6, num_test=2, seed=7, height=64, width=64, num_frames=5, difficulties=difficulties,
        workers=1,
    )  # fmt: skip
    encode.encode(folders["data"], folders["model"], folders["encoded"], dtype="float32", device="cpu")
    return folders


def arguments(folders: dict[str, Path], run_dir: Path, *more: str) -> list[str]:
    paths = ["--model.path", str(folders["model"]), "--data.dir", str(folders["data"])]
    paths += ["--data.encoded", str(folders["encoded"]), "--run_dir", str(run_dir), "--model.conditioning", "pin"]
    counts = ["--data.num_train", "4", "--data.num_val", "2", "--data.num_test", "2", "--grpo.micro_batch", "4"]
    return [*ARGUMENTS, *paths, *SIZE, *counts, "--sft.max_steps", "3", "--sft.batch_size", "4", *more]


@pytest.mark.parametrize(
    "more",
    [
        [],
        [
            "--model.dtype",
            "bfloat16",
            "--model.recompute",
            "selective",
            "--sft.ema_decay",
            "0",
            "--grpo.ema_decay",
            "0",
        ],
        ["--model.lora.rank", "2", "--grpo.kl_weight", "0.1"],
    ],
    ids=["float32", "bfloat16", "lora"],
)
def test_sft_rl_and_evaluation(folders: dict[str, Path], tmp_path: Path, more: list[str]) -> None:
    assert main(arguments(folders, tmp_path / "run", *more)) == 0
    results = read_results(tmp_path / "run" / "results.json")
    assert {row["system"] for row in results} == {"base", "sft", "rl"}
    weights = read_average(tmp_path / "run" / "checkpoints" / "grpo-final")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    before = load_transformer(folders["model"], CPU, torch.float32).state_dict()
    name = "blocks.0.attn1.to_q.weight"
    if "--model.lora.rank" in more:
        assert all(".lora_" in key for key in weights)
        assert any(tensor.any() for key, tensor in weights.items() if "lora_B" in key)
    else:
        assert not torch.equal(weights[f"dit.{name}"].float(), before[name])
    format = "lora-diffusers" if "--model.lora.rank" in more else "diffusers"
    export = ["--run_dir", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--format", format]
    assert cli.main(["export", *export]) == 0
    assert (tmp_path / "out" / "README.md").is_file()


def test_rewards_by_a_small_decoder_under_audit(folders: dict[str, Path], tmp_path: Path) -> None:
    """One that was hardly trained: the audit finds it out, says so, and the run goes on with the full decode."""
    small, run = tmp_path / "small", tmp_path / "run"
    distill_decoder(
        folders["model"], small, folders["data"], steps=1, batch=1, width=8, depth=1, num_test=2, device="cpu",
        side=8,
    )  # fmt: skip
    audit = ["--grpo.reward_decoder", str(small), "--grpo.audit.share", "1", "--grpo.audit.tolerance", "0"]
    assert main(arguments(folders, run, *audit, "--grpo.audit.threshold", "0", "--grpo.updates", "2")) == 0
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "decoder_audited" in row]
    assert rows[0]["decoder_audited"] == 6 * 4
    assert rows[0]["decoder_disagreement"] > 0
    assert rows[-1]["decoder_small_in_use"] == 0
    state = json.loads((run / "checkpoints" / "grpo-final" / "state.json").read_text())
    assert state["progress"]["audit"]["trusted"] is False
