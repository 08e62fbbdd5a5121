"""The presets for Wan2.2-TI2V-5B: they parse, hang together, and fit the machine that each names, by the estimate."""

import json
from pathlib import Path

import pytest

from vrlvr import cli, options
from vrlvr.config import check
from vrlvr.models.dit import WanConfig

CONFIGS = Path(__file__).parents[1] / "configs" / "wan2.2-ti2v-5b"
MACHINES = {"sft": (8, 80), "grpo": (8, 80), "grpo_lora_80g": (1, 80), "grpo_full_h200": (1, 131)}  # GPUs, GiB of each


def test_every_preset_names_its_machine() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == MACHINES.keys()


@pytest.mark.parametrize("name", MACHINES)
def test_the_sizes_are_the_papers(name: str) -> None:
    config = options.parse(["--config", str(CONFIGS / f"{name}.yaml")])
    check(config, MACHINES[name][0])
    assert (config.data.height, config.data.width, config.data.num_frames) == (480, 832, 81)
    assert (config.sampler.num_steps, config.sampler.shift) == (20, 5.0)
    assert config.stage == "sft" or config.grpo.sde_steps == 10


@pytest.mark.parametrize("name", MACHINES)
def test_it_fits(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(WanConfig().to_diffusers()))
    processes, gib = MACHINES[name]
    arguments = ["--config", str(CONFIGS / f"{name}.yaml"), "--model_config", str(tmp_path / "config.json")]
    assert cli.main(["estimate", *arguments, "--processes", str(processes), "--gpu_gib", str(gib)]) == 0
    told = capsys.readouterr().out
    wanted = "sft fits" if name == "sft" else "sft fits, grpo fits" if "lora" in name else "grpo fits"
    assert wanted in told.splitlines()[-1]
