"""The waterfall: its recipes, its counts, the updates that it times, and its files."""

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import esf_saving
import pytest
import torch
import update_bench
from sizes import SIZES, default_layers
from tiny_run import CPU
from update_bench import PHASES, Problem, Recipe, Rows, Update, count_rows, predicted_units

from vrlvr.errors import UserError

PROBLEM = Problem(SIZES["tiny"], 48, puzzles=2, group_size=4, num_steps=20)
SMALL = replace(PROBLEM, group_size=2, num_steps=4)
ALL = Recipe(
    trained_steps=2,
    recompute="auto",
    cached_text=True,
    shared_noise=True,
    rows=3,
    graphs=True,
    tail_steps=1,
    keep_fraction=0.5,
)


def test_every_lever_changes_one_thing() -> None:
    table = esf_saving.recipes(20, rows=2)
    levers = [asdict(recipe) for group, _, recipe in table if group == "lever"]
    for before, after in itertools.pairwise(levers):
        assert sum(before[key] != after[key] for key in before) == 1
    windows = {recipe.trained_steps for group, _, recipe in table if group == "window"}
    assert windows | {levers[0]["trained_steps"], levers[1]["trained_steps"]} == {2, 5, 10, 19}
    assert table[1][2].trained_steps == 12


def test_units_are_those_of_the_design() -> None:
    """Full-step training with everything recomputed is 20 + 19 * 4 forwards a sample, Early-Step Focus 20 + 10 * 4."""
    assert predicted_units(Recipe(trained_steps=19), PROBLEM, "full") == 96
    assert predicted_units(Recipe(trained_steps=10), PROBLEM, "full") == 60
    assert predicted_units(Recipe(trained_steps=10), PROBLEM, "none") == 50
    shared = Recipe(trained_steps=10, shared_noise=True)
    assert predicted_units(shared, PROBLEM, "none") == 19.25 + 3 * 9.25
    assert predicted_units(replace(shared, tail_steps=5), PROBLEM, "none") == 14.25 + 3 * 9.25
    half = replace(shared, tail_steps=5, keep_fraction=0.5)
    assert count_rows(half, PROBLEM).rollout == 2 + 14 * 8
    assert count_rows(half, PROBLEM).replay == 2 + 9 * 4
    assert count_rows(half, PROBLEM, num_steps=2) == Rows(2 + 8, 2 + 4)


@pytest.mark.parametrize("recipe", [ALL, replace(ALL, shared_noise=False, cached_text=False, tail_steps=None)])
@pytest.mark.parametrize("num_steps", [None, 2])
def test_the_counted_rows_are_those_that_run(
    recipe: Recipe, num_steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Update(recipe, SMALL, CPU, num_steps)
    counted = {False: 0, True: 0}
    forward = update.policy.dit.forward

    def counting(latents, *arguments, **options):
        counted[torch.is_grad_enabled()] += len(latents)
        return forward(latents, *arguments, **options)

    monkeypatch.setattr(update.policy.dit, "forward", counting)
    assert update.run() < 1e-3
    assert Rows(counted[False], counted[True]) == count_rows(recipe, SMALL, num_steps)
    assert set(update.stopwatch.seconds) == set(PHASES)


def test_the_published_update_and_ours_take_the_same_step() -> None:
    """Full-step training: equal weights before, equal rows; both move every weight, and the text stays."""
    recipes = (Recipe(model="reference", trained_steps=3), Recipe(trained_steps=3))
    updates = [Update(recipe, SMALL, CPU) for recipe in recipes]
    updates[0].policy.dit.load_state_dict(updates[1].policy.dit.state_dict(), strict=True)
    before = {name: value.clone() for name, value in updates[0].policy.dit.state_dict().items()}
    for update in updates:
        assert update.run() < 1e-3
        moved = [name for name, value in update.policy.dit.state_dict().items() if not torch.equal(value, before[name])]
        assert len(moved) == len(before)
    assert updates[1].policy.text.table.grad is None


def test_extrapolation_multiplies_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks once a reading every phase of a probe lasts 1 s: the update is the rows over the probe's."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(update_bench.time, "perf_counter", lambda: float(next(ticks)))
    recipe = Recipe(trained_steps=3)
    start = update_bench.first_steps(recipe, 2)
    probed = update_bench.probe(start, SMALL, CPU, num_steps=2, repeats=1)
    assert probed.seconds == dict.fromkeys(PHASES, 1.0)
    row = update_bench.whole_update(recipe, SMALL, probed)
    assert (row["seconds_rollout"], row["seconds_replay"], row["seconds_optimizer"]) == (4 / 2, 3 / 2, 1)
    assert row["seconds"] == 4.5
    assert row["units_predicted"] == 4 + 4 * 3
    assert row["units_measured"] == pytest.approx(4.5 / (2 / 16) / 4)


def test_recipes_with_the_same_first_steps_share_a_probe() -> None:
    recipe = Recipe(trained_steps=10, rows=2)
    alike = [replace(recipe, trained_steps=3), replace(recipe, tail_steps=5)]
    assert {update_bench.first_steps(r, 2) for r in [recipe, *alike]} == {replace(recipe, trained_steps=2)}
    for other in (replace(recipe, trained_steps=1), replace(recipe, graphs=True), replace(recipe, keep_fraction=0.5)):
        assert update_bench.first_steps(other, 2) != update_bench.first_steps(recipe, 2)
    assert update_bench.first_steps(alike[1], None) == alike[1]


def test_a_run_leaves_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--layers", "1", "--group_size", "2", "--num_steps", "4", "--probe_steps", "0", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["esf_saving.py", *options])
    assert esf_saving.main() == 0
    assert "times_faster_than_reference_exact" in capsys.readouterr().out
    result = json.loads((tmp_path / "esf_saving.json").read_text())
    assert result["note"].endswith("whole updates timed")
    assert result["agreement"]["gradient_error"] < 1e-4
    names = [row["name"] for row in result["rows"]]
    assert len(names) == len(set(names)) == len(esf_saving.recipes(4, 2))
    assert all(row["seconds"] > 0 for row in result["rows"])
    seconds = {row["name"]: row["seconds"] for row in result["rows"]}
    last, reference = seconds[names[-1]], next(s for name, s in seconds.items() if name.startswith("reference"))
    assert result["summary"]["times_faster_than_reference_all_levers"] == pytest.approx(reference / last)
    assert result["summary"]["fastest_exact_recipe"] in names
    full, half = seconds[esf_saving.OURS], seconds["+ Early-Step Focus, 2 of 4"]
    assert result["summary"]["saved_by_window_2"] == pytest.approx(1 - half / full)
    assert "saved_by_window_1" in result["summary"]
    assert all(name in (tmp_path / "esf_saving.md").read_text() for name in names)
    pytest.importorskip("matplotlib")
    assert (tmp_path / "esf_saving.png").stat().st_size > 10_000


def test_a_recipe_without_memory_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = update_bench.probe(Recipe(trained_steps=2), SMALL, CPU, 2, 1)

    def probe(recipe: Recipe, *arguments, **options):
        if recipe.model == "compiled":
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore")
        return one

    monkeypatch.setattr(esf_saving, "probe", probe)
    options = ["--layers", "1", "--group_size", "2", "--num_steps", "4", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["esf_saving.py", *options])
    assert esf_saving.main() == 1
    rows = json.loads((tmp_path / "esf_saving.json").read_text())["rows"]
    assert [row["problem"] for row in rows if "problem" in row] == ["CUDA out of memory."]
    assert "times_faster_than_peers" not in capsys.readouterr().out


def test_whole_updates_check_the_extrapolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes foretell 1 s a row; whole updates of two samples take 1 s a row and 1 s more."""

    def probe(recipe: Recipe, problem: Problem, device: torch.device, num_steps: int | None, *rest, **options):
        rows = count_rows(recipe, problem, num_steps)
        extra = 1.0 if num_steps is None else 0.0
        seconds = {"rollout": float(rows.rollout), "replay": float(rows.replay), "optimizer": extra}
        return update_bench.Probe(num_steps, rows, seconds, 0.0, None, None, "full", None, 0.0)

    monkeypatch.setattr(esf_saving, "probe", probe)
    start = Recipe(trained_steps=2)
    probes = {start: probe(start, SMALL, CPU, 2)}
    result = esf_saving.whole_updates(SMALL, 2, probes, 2, CPU)
    full, esf = 2 * 4 + 2 * 3, 2 * 4 + 2 * 2
    assert (result["seconds_full_step"], result["seconds_esf"]) == (full + 1, esf + 1)
    assert result["saved"] == pytest.approx(1 - (esf + 1) / (full + 1))
    assert result["extrapolation_error_esf"] == pytest.approx(esf / (esf + 1) - 1)
    assert esf_saving.whole_updates(SMALL, 2, probes, 2, CPU, seconds_left=full + esf - 1) is None
    assert esf_saving.whole_updates(SMALL, 2, {}, 2, CPU) is None  # memory did not suffice for the probe


def test_nothing_is_timed_where_the_two_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(esf_saving, "TOLERANCE", {torch.float32: 1e-12})
    monkeypatch.setattr("sys.argv", ["esf_saving.py", "--layers", "1"])
    assert esf_saving.main() == 2
    assert "nothing is timed" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--num_steps", "3"), ("--group_size", "1"), ("--puzzles", "0")])
def test_bad_sizes_are_one_line(
    option: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["esf_saving.py", *option])
    assert esf_saving.main() == 2
    assert "raise them" in capsys.readouterr().err


def test_a_disagreement_of_nan_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments):
        model = real(*arguments)
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        return model

    real = esf_saving.random_model
    monkeypatch.setattr(esf_saving, "random_model", broken)
    with pytest.raises(UserError, match="nothing is timed"):
        esf_saving.agreement(SMALL, CPU)


@pytest.mark.parametrize(("gib", "layers"), [(80, 20), (141, None)])
def test_a_smaller_gpu_gets_a_shallower_model(gib: int, layers: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert default_layers(torch.device("cuda")) == layers
    assert default_layers(CPU) is None
