"""The model card: true to the run's files, and safe whatever they hold."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vrlvr import options
from vrlvr.config import Config
from vrlvr.errors import UserError
from vrlvr.evaluation.tables import write_results
from vrlvr.model_card import hub_name, licence_of, model_card
from vrlvr.verifier_version import verifier_version

EVIL = 'x | y <img src="http://a"> `code` [link](http://b) **bold**\n# heading\n---'


def row(system: str, task: str, rate: float, source: str = "measured") -> Any:
    interval = [rate - 5, rate + 5] if source == "measured" else None
    rates = dict.fromkeys(("precision", "recall", "f1", "success_rate"), rate)
    size = 400 if source == "measured" else None
    return {
        "system": system,
        "task": task,
        **rates,
        "success_rate_ci95": interval,
        "num_puzzles": size,
        "source": source,
    }


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Config]:
    """A run of LoRA on a folder in a hub's cache, with SFT, RL, results and facts."""
    source = tmp_path / "models--Wan-AI--Wan2.2-TI2V-5B-Diffusers" / "snapshots" / "b8fff7"
    source.mkdir(parents=True)
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\n---\n# Wan\n")
    arguments = [
        f"--model.path={source}",
        "--model.lora.rank=32",
        "--seed=77",
        "--sampler.num_steps=20",
        "--sampler.shift=5",
    ]
    config = options.parse([f"--run_dir={tmp_path / 'run'}", *arguments])
    folder = tmp_path / "run"
    options.save(config, folder / "config.yaml")
    for name, stage, step in (("sft-final", "sft", 1234), ("grpo-final", "grpo", 180)):
        (folder / "checkpoints" / name).mkdir(parents=True)
        state = {"stage": stage, "progress": {"step": step}}
        (folder / "checkpoints" / name / "state.json").write_text(json.dumps(state))
    rows = [row("sft", "maze", 40.0), row("rl", "maze", 61.5), row("Sora 2", "maze", 3.1, "published")]
    write_results(folder / "results.json", rows)
    facts = {"commit": "abc1234567", "torch": "2.11.0", "hardware": "one GPU", "date": "2026-01-02", "vrlvr": "0.1.0"}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder, config


def front_matter(card: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert match is not None
    return yaml.safe_load(match[1])


def outside_fences(card: str) -> str:
    body = card.split("\n---\n", 1)[1]
    return re.sub(r"^(`{3,})\w*\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)


def test_it_tells_what_the_run_was(run: tuple[Path, Config]) -> None:
    card = model_card(*run, "grpo-final", "lora-diffusers")
    front = front_matter(card)
    assert front["base_model"] == "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    assert front["license"] == "apache-2.0"
    assert "lora" in front["tags"]
    for fact in (
        "| sft | sft-final | 1234 |",
        "| grpo | grpo-final | 180 |",
        "LoRA of rank 32",
        "- seed: 77\n",
        verifier_version().split(", ")[1],
        "commit abc1234567",
        "- hardware: one GPU\n",
        "20 steps",
        "EvenEuler(shift=5)",
        "guidance_scale=1.0",
        'from_pretrained("Wan-AI/Wan2.2-TI2V-5B-Diffusers"',
        "This model is row `rl`.",
        "61.5 [56.5, 66.5]",
        "rl over sft, Maze: +21.5 points",
        "## Limits",
        "One training run",
    ):
        assert fact in card, fact
    assert "Sora" not in card  # published numbers are not this run's
    assert (run[0] / "config.yaml").read_text() in card


def test_a_stage_that_came_later_is_not_told(run: tuple[Path, Config]) -> None:
    folder, config = run
    card = model_card(folder, config, "sft-final", "merged")
    assert "| sft | sft-final | 1234 |" in card
    assert "This model is row `sft`." in card
    early = folder / "checkpoints" / "sft-epoch-005"
    early.mkdir()
    (early / "state.json").write_text(json.dumps({"stage": "sft", "progress": {"step": 500}}))
    before = model_card(folder, config, "sft-epoch-005", "merged")
    assert "| sft | sft-epoch-005 | 500 |" in before
    assert "sft-final" not in before
    for text in (card, before):
        assert "| grpo |" not in text
        assert "It was the reward" not in text
    assert "It was the reward" in model_card(folder, config, "grpo-final", "merged")


def test_an_sft_that_rl_did_not_start_from_is_not_told(run: tuple[Path, Config]) -> None:
    folder, config = run
    config.grpo.start = "model"
    card = model_card(folder, config, "grpo-final", "merged")
    assert "| grpo | grpo-final | 180 |" in card
    assert "sft-final" not in card


def test_what_was_not_measured_is_not_claimed(run: tuple[Path, Config]) -> None:
    folder, config = run
    assert "it was not evaluated" in model_card(folder, config, "grpo-000100", "merged")
    assert "| grpo |" not in model_card(folder, config, "grpo-000100", "merged")
    for name in ("results.json", "run.json"):
        (folder / name).unlink()
    card = model_card(folder, config, "grpo-final", "merged")
    assert "This model was not evaluated.\n" in card
    assert "One training run" not in card
    assert "commit unknown" in card
    assert re.search(r"rules [0-9a-f]{12} \(of the code that exported it\)", card)


def test_what_files_hold_stays_text(run: tuple[Path, Config]) -> None:
    folder, config = run
    write_results(folder / "results.json", [row(EVIL, "maze", 10.0), row("rl", EVIL, 20.0)])
    facts = json.loads((folder / "run.json").read_text()) | {"hardware": EVIL, "verifier": EVIL, "commit": EVIL}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "checkpoints" / "grpo-final" / "state.json").write_text(
        json.dumps({"stage": EVIL, "progress": {"step": EVIL}})
    )
    (folder / "config.yaml").write_text(f"seed: 1\n# ```\n# ````\n{EVIL}\n")
    plain = model_card(folder, config, "sft-final", "comfyui")
    card = model_card(folder, config, "grpo-final", "comfyui", base_model=EVIL)
    assert front_matter(card)["base_model"] == EVIL
    body = outside_fences(card)
    for sign in ("<img", "[link]", "**bold", "`code`", "\n# heading", "\n---"):
        assert sign not in body, sign
    headings = re.findall(r"^#+ .*$", body, re.MULTILINE)
    assert len(headings) == 6 == len(re.findall(r"^#+ .*$", outside_fences(plain), re.MULTILINE))
    for table in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


@pytest.mark.parametrize("format", ["diffusers", "merged", "comfyui", "lora-diffusers", "lora-comfyui"])
def test_every_format_says_how_it_is_used(run: tuple[Path, Config], format: str) -> None:
    card = model_card(*run, "grpo-final", format)
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert (code is None) == ("comfyui" in format)
    if code is not None:
        compile(code[1], "card", "exec")
    else:
        assert "ComfyUI" in card


def test_a_damaged_state_is_told(run: tuple[Path, Config]) -> None:
    (run[0] / "checkpoints" / "sft-final" / "state.json").write_text('{"stage": "sft"}')
    with pytest.raises(UserError, match=r"state\.json is no checkpoint's state"):
        model_card(*run, "grpo-final", "merged")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/x/models--Wan-AI--Wan2.2-TI2V-5B/snapshots/1", "Wan-AI/Wan2.2-TI2V-5B"),
        ("/x/hub/models--a--b--c", "a/b--c"),
        ("/x/Wan2.2-TI2V-5B", None),
    ],
)
def test_hub_names(path: str, name: str | None) -> None:
    assert hub_name(Path(path)) == name


@pytest.mark.parametrize("text", ["no front matter", "---\n[\n---\n", "---\nlicense:\n---\n", "---\n- a\n---\n", None])
def test_an_unstated_licence_is_unknown(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) == "unknown"
    assert licence_of(None) == "unknown"


def test_the_verifier_has_a_version_that_moves_with_its_rules(tmp_path: Path) -> None:
    (tmp_path / "maze").mkdir()
    (tmp_path / "maze" / "verify.py").write_text("rule = 1\n")
    before = verifier_version(tmp_path)
    assert verifier_version(tmp_path) == before
    (tmp_path / "maze" / "verify.py").write_text("rule = 2\n")
    assert verifier_version(tmp_path) != before
    assert verifier_version() == verifier_version() != before
