"""The whole recipe on a pretrained model: a tiny Diffusers folder of the real classes, encoded data, SFT, RL, evaluation."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import ARGUMENTS

from vrlvr import cli, dataset, encode, options
from vrlvr.build import open_source
from vrlvr.checkpoint import read_average
from vrlvr.distill import distill_decoder
from vrlvr.errors import UserError
from vrlvr.evaluation.tables import read_gains, read_results
from vrlvr.models.wan import load_transformer
from vrlvr.models.wan_vae import WanVAECodec
from vrlvr.puzzles import ROOMS
from vrlvr.run_log import read_metrics
from vrlvr.train import main
from vrlvr.workload import sizes_of

pytest.importorskip("diffusers")

from wan_folder import edit_json, make_wan_folder

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
        ["--model.dtype", "bfloat16", "--model.recompute", "selective"],
        ["--model.lora.rank", "2", "--grpo.kl_weight", "0.1"],
    ],
    ids=["float32", "bfloat16", "lora"],
)
def test_sft_rl_and_evaluation(
    folders: dict[str, Path], tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folders, tmp_path / "run", *more)) == 0
    assert f"grpo: reading {folders['model']}" in capsys.readouterr().out.replace("\n", "")
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
    if format == "diffusers":  # averages are float32, what they become is as the model
        stored = load_file(next((tmp_path / "out" / "transformer").glob("*.safetensors")))
        assert stored[name].dtype == (torch.bfloat16 if "bfloat16" in more else torch.float32)
        assert stored["scale_shift_table"].dtype == torch.float32
        assert weights[f"dit.{name}"].dtype == torch.float32


def test_what_was_encoded_is_checked_before_it_is_trained_on(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Puzzles of the last stage that are missing, a bit that fell over, a model that is not trained: told in the first one."""

    def told(**changes: Path) -> str:
        run = tmp_path / "run"
        assert main(arguments(folders | changes, run, "--stage", "data")) == 2
        assert not (run / "puzzles" / "train.jsonl").exists()
        return capsys.readouterr().err

    dataset.build(
        tmp_path / "more", num_train=6, num_test=2, seed=8, height=64, width=64, num_frames=5, workers=1,
        difficulties={task: room.Difficulty() for task, room in ROOMS.items()},
    )  # fmt: skip
    assert "does not hold 6 of the run's puzzles; encode the folder of data.dir" in told(data=tmp_path / "more")
    spoilt = Path(shutil.copytree(folders["encoded"], tmp_path / "encoded"))
    content = bytearray((spoilt / "test-00000.safetensors").read_bytes())
    content[-1] ^= 1
    (spoilt / "test-00000.safetensors").write_bytes(content)
    assert "test-00000.safetensors is damaged (its checksum differs)" in told(encoded=spoilt)
    text_only = Path(shutil.copytree(folders["model"], tmp_path / "t2v"))
    edit_json(text_only / "model_index.json", expand_timesteps=False)
    assert "is a text-to-video model" in told(model=text_only)


def test_rl_needs_first_frames_and_prompts_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    encode.encode(folders["data"], folders["model"], bare, videos=[], dtype="float32", device="cpu")
    whole, frames = (
        open_source(options.parse(arguments(folders | {"encoded": folder}, tmp_path)), tmp_path, CPU)
        for folder in (folders["encoded"], bare)
    )
    drawn = [frames.rl_puzzle(number) for number in range(6)]
    assert drawn == [whole.rl_puzzle(number) for number in range(6)]
    assert torch.equal(frames.prompts(drawn).first_BC1HW, whole.prompts(drawn).first_BC1HW)
    with pytest.raises(UserError, match=r"holds no video; encode with `--videos` naming its split"):
        frames.training_set(drawn).row(0)


def test_rl_of_a_model_that_was_fine_tuned_elsewhere(folders: dict[str, Path], tmp_path: Path) -> None:
    """Not from an SFT of ours, which may lie there: from the folder itself, whose export has one stage to tell of."""
    run = tmp_path / "run"
    more = ["--model.lora.rank", "2", "--grpo.start", "model", "--grpo.updates", "1", "--grpo.anchor_weight", "0"]
    for stage in ("data", "grpo", "eval"):
        assert main(arguments(folders, run, *more, "--stage", stage)) == 0
        if stage == "grpo":
            shutil.copytree(run / "checkpoints" / "grpo-final", run / "checkpoints" / "sft-final")
    assert {row["system"] for row in read_results(run / "results.json")} == {"base", "sft", "rl"}
    assert {(gain["before"], gain["after"]) for gain in read_gains(run / "gains.json")} == {("base", "rl")}
    assert "Gain of RL over the model it started from in success rate" in (run / "results.md").read_text()
    weights = read_average(run / "checkpoints" / "grpo-final")
    assert any(tensor.any() for key, tensor in weights.items() if "lora_B" in key)
    out = tmp_path / "out"
    assert cli.main(["export", "--run_dir", str(run), "--out", str(out), "--format", "lora-comfyui"]) == 0
    card = (out / "README.md").read_text()
    assert "| grpo | grpo-final | 1 |" in card
    assert "sft-final" not in card


def test_training_holds_no_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    """Neither the VAE's nor the text's; the decoder decodes as ever, and the estimate counts what is there."""
    config = options.parse(arguments(folders, tmp_path / "run"))
    codec = open_source(config, tmp_path / "run", CPU).codec
    assert isinstance(codec, WanVAECodec)
    names = {name.split(".")[0] for name, _ in codec.vae.named_parameters()}
    assert names == {"decoder", "post_quant_conv"}
    counted = sizes_of(config).codec
    assert isinstance(counted, WanVAECodec)
    assert {name: p.shape for name, p in counted.vae.named_parameters()} == {
        name: p.shape for name, p in codec.vae.named_parameters()
    }
    whole = WanVAECodec.from_pretrained(folders["model"] / "vae", CPU)
    latents = torch.randn(1, 6, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    assert (codec.decode(latents[:, :, :1], latents) == whole.decode(latents[:, :, :1], latents)).all()


def test_rewards_by_a_small_decoder_under_audit(folders: dict[str, Path], tmp_path: Path) -> None:
    """One that was hardly trained: the audit finds it out, says so, and the run goes on with the full decode. By default all
    that it shows would be in doubt, and read anew.
    """
    small, run = tmp_path / "small", tmp_path / "run"
    distill_decoder(
        folders["model"], small, folders["data"], steps=1, batch=1, width=8, depth=1, num_test=2, device="cpu",
        side=8,
    )  # fmt: skip
    audit = ["--grpo.reward_decoder", str(small), "--grpo.audit.share", "1", "--grpo.audit.tolerance", "0"]
    audit += ["--grpo.audit.threshold", "0"]
    assert main(arguments(folders, run, *audit, "--grpo.audit.doubt", "1000", "--grpo.updates", "2")) == 0
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "decoder_audited" in row]
    assert rows[0]["decoder_audited"] == 6 * 4
    assert rows[0]["decoder_disagreement"] > 0
    assert rows[0]["decoder_reread"] == 0
    assert rows[-1]["decoder_small_in_use"] == 0
    state = json.loads((run / "checkpoints" / "grpo-final" / "state.json").read_text())
    assert state["progress"]["audit"]["trusted"] is False

    other = arguments(folders, tmp_path / "other", *audit, "--stage", "grpo", "--init_from", str(run))
    assert main([*other, "--grpo.updates", "1"]) == 0
    (row,) = (row for row in read_metrics(tmp_path / "other" / "metrics.jsonl") if "decoder_audited" in row)
    assert row["decoder_reread"] == 1
    assert row["decoder_disagreement"] < rows[0]["decoder_disagreement"]
