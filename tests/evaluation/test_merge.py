"""`vrlvr table`: measured rows beside the published ones, in every format."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from vrlvr import puzzles
from vrlvr.cli import main
from vrlvr.evaluation.benchmark import Item, failed, puzzle_digest, rows_of
from vrlvr.evaluation.comparison import build, entries_of
from vrlvr.evaluation.metrics import Row, wilson
from vrlvr.evaluation.published import ALIASES, canonical_name, published_rows, published_vbvr_rows
from vrlvr.evaluation.tables import write_results
from vrlvr.evaluation.vbvr_rows import CATEGORIES, TASK
from vrlvr.puzzles.verdict import f1


def row(system: str = "VideoRLVR", task: str = "maze", **changes: Any) -> Row:
    values: dict[str, Any] = {
        "system": system,
        "task": task,
        "precision": 60.0,
        "recall": 50.0,
        "f1": 100 * f1(0.6, 0.5),
        "success_rate": 40.0,
        "success_rate_ci95": [100 * bound for bound in wilson(0.4, 300)],
        "num_puzzles": 300,
        "source": "measured",
        "num_samples": 300,
        "date": "2026-11-23",
        "verifier": "vrlvr 0.1.0, rules 0123456789ab",
        "test_set": "cafe",
    }
    return values | changes  # type: ignore[return-value]


VBVR = {
    "system": "VideoRLVR",
    "task": TASK,
    "average": 50.0,
    "average_ci95": [45.0, 55.0],
    "categories": dict.fromkeys(CATEGORIES, 50.0),
    "num_tasks": 50,
    "num_videos": 250,
    "source": "measured",
    "num_missing": 0,
    "scoring": "task_specific only",
    "evaluator": "commit 0123, sha256 4567",
    "date": "2026-11-23",
}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["table", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def lines_of(text: str, system: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"| {system} |")]


def test_without_results_all_published_rows_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys)
    for published in published_rows() + published_vbvr_rows():  # type: ignore[operator]
        assert lines_of(text, published["system"]), published["system"]
    assert text.count("| published |") == 11 + 4 + 4
    assert "measured |" not in text
    (ours,) = [line for line in lines_of(text, "VideoRLVR") if "34.0" in line]
    assert "| 29.4<sup>" in ours, "the audit marks it"
    assert "F1 29.4 does not follow from its precision and recall, which give 18.3" in text


def test_a_measured_row_stands_above_the_published_one_that_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path / "a.json", [row(), row("rl", "sokoban")])
    write_results(tmp_path / "b.json", [row(task="sokoban", success_rate=30.0, success_rate_ci95=[25.1, 35.4])])
    text = run(capsys, tmp_path / "a.json", tmp_path / "b.json", "--table", "main")
    measured, published = lines_of(text, "VideoRLVR")
    assert measured.startswith("| VideoRLVR | measured | 60.0 | 50.0 | 54.5 | 40.0 [34.6, 45.6]<sup>")
    assert "| 30.0 [25.1, 35.4]<sup>" in measured, "files about one system fill one line"
    assert published.startswith("| VideoRLVR | published | 82.1 | 86.9 | 84.4 | 72.2 |")
    assert text.index("| rl |") > text.index(published), "systems that the paper does not have come last"
    assert (
        "measured 2026-11-23, n = 300 puzzles (300 samples), verifier vrlvr 0.1.0, rules 0123456789ab, test set cafe"
    ) in text


def test_a_training_runs_day_is_that_of_its_run_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    undated = row("rl")
    del undated["date"]
    write_results(tmp_path / "results.json", [undated])
    assert "measured on an unknown day" in run(capsys, tmp_path)
    (tmp_path / "run.json").write_text("[" * 100_000)
    assert "measured on an unknown day" in run(capsys, tmp_path)
    (tmp_path / "run.json").write_text('{"date": "2026-11-23"}')
    assert "measured 2026-11-23, n = 300 puzzles" in run(capsys, tmp_path)


def test_language_models_and_vbvr_have_tables_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([row("gpt-4o (text)"), row("new", answers="text"), VBVR]), encoding="utf-8")
    main_table, vbvr, llm = (run(capsys, path, "--table", name) for name in ("main", "vbvr", "llm"))
    assert "gpt" not in main_table
    assert "| new |" not in main_table
    assert "| new |" in llm
    assert [line.split(" | ")[1] for line in lines_of(llm, "gpt-4o (text)")] == ["measured"]
    assert llm.index("| gpt-4o (text) |") < llm.index("| GPT 4o |")
    assert lines_of(vbvr, "VideoRLVR")[0].startswith("| VideoRLVR | measured | 50.0 [45.0, 55.0]<sup>a</sup> | 50.0 |")
    assert "n = 250 videos of 50 tasks, scoring task\\_specific only, evaluator commit 0123, sha256 4567" in vbvr
    assert "frozen first frame is reported to score about 36" in vbvr
    assert run(capsys, path).count("## ") == 3


def test_csv_holds_every_number_at_full_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([row(precision=100 / 3, f1=40.0, precision_ci95=[30.0, 36.0]), VBVR]), encoding="utf-8")
    records = list(csv.DictReader(io.StringIO(run(capsys, path, "--format", "csv"), newline="")))
    assert len(records) == 4 * (11 * 3 + 4 + 1) + 6 * (4 + 1)
    (precision,) = [r for r in records if r["source"] == "measured" and r["metric"] == "precision"]
    assert float(precision["value"]) == 100 / 3
    assert [precision["ci95_low"], precision["ci95_high"]] == ["30.0", "36.0"]
    (rate,) = [r for r in records if r["source"] == "measured" and r["metric"] == "success_rate"]
    assert (rate["num_puzzles"], rate["date"], rate["test_set"]) == ("300", "2026-11-23", "cafe")
    assert [float(rate[bound]) for bound in ("ci95_low", "ci95_high")] == row()["success_rate_ci95"]
    (doubted,) = [r for r in records if r["value"] == "29.4"]
    assert "does not follow" in doubted["audit"]
    (average,) = [r for r in records if r["source"] == "measured" and r["metric"] == "average"]
    assert (average["num_videos"], average["scoring"]) == ("250", "task_specific only")


@pytest.mark.parametrize("format", ["markdown", "latex", "csv", "html"])
def test_a_nasty_file_is_written_in_every_format(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nasty = '=<script>|"\\\n\ud800'
    path, out = tmp_path / "results.json", tmp_path / "new" / "table"
    path.write_text(json.dumps([row(nasty, nasty, verifier=nasty, date=nasty), VBVR | {"system": nasty}]))
    run(capsys, path, "--format", format, "--out", out)
    text = out.read_text(encoding="utf-8")
    assert "measured" in text
    assert "<script>" not in text or format == "csv"


@pytest.mark.parametrize(
    ("name", "begins"),
    [("t.md", "Every line"), ("t.tex", "% Every"), ("t.csv", '"table"'), ("t.html", "<!doctype html>")],
)
def test_the_ending_of_the_file_tells_the_format(
    name: str, begins: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = row(num_puzzles=30, num_samples=30, success_rate_ci95=[100 * bound for bound in wilson(0.4, 30)])
    write_results(tmp_path / "run" / "results.json", [few])
    told = run(capsys, tmp_path / "run", "--out", tmp_path / name)
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(begins)
    assert told.startswith(f"{tmp_path / name}: 42 rows, 1 of them measured; 11 remarks of the audit")


def test_the_same_rows_from_two_files_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "a.json", [row(), *published_rows()])
    write_results(tmp_path / "b.json", [row()])
    assert len(lines_of(run(capsys, tmp_path / "a.json", tmp_path / "b.json", "--table", "main"), "VideoRLVR")) == 2
    write_results(tmp_path / "b.json", [row(date="2026-11-24")])
    text = run(capsys, tmp_path / "a.json", tmp_path / "b.json", "--table", "main")
    assert len(lines_of(text, "VideoRLVR")) == 3
    assert "measured more than once" in text


def test_a_file_of_no_known_kind_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--out", str(tmp_path / "table.pdf")]) == 2
    assert "table.pdf must end in one of .md, .tex, .csv, .html; or name the --format" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_huge_file_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert main(["table", str(path)]) == 2
    assert "larger than 67108864 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no JSON"),
        (json.dumps([VBVR | {"average": 101}]), "average=101 must be a number in 0..100"),
        (
            json.dumps([VBVR | {"categories": {"Perception": "50"}}]),
            "categories={'Perception': '50'} must be an object",
        ),
        (json.dumps([row(test_set=5)]), "test_set=5 must be a name"),
        (json.dumps([row(num_puzzles=10**400)]), "must be a positive integer or null"),
        (json.dumps([row("x" * 10_000, task="")]), "task='' must be a name"),
        (json.dumps([row(success_rate_ci95=["x" * 10_000])]), "must be [low, high]"),
        ("[" * 100_000, "is no JSON"),
        (
            json.dumps([row("Sora 2", source="published", success_rate_ci95=None)]),
            "arXiv 2605.15458 prints no such row",
        ),
        (json.dumps([VBVR | {"source": "published"}]), "arXiv 2605.15458 prints no such row"),
    ],
)
def test_a_bad_file_is_one_line(content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_text(content, encoding="utf-8")
    assert main(["table", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert len(line) < 400 + len(str(path))


def test_names_of_published_systems() -> None:
    for name, system in {
        "sora-2": "Sora 2",
        "KLING 3.0": "Kling V3",
        "veo3.1": "Veo 3.1",
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers": "Wan2.2-TI2V-5B",
        "openai/gpt_4o (text/image), lenient": "GPT 4o",
        "videorlvr": "VideoRLVR",
        "Wan2.2-I2V-A14B": "Wan2.2-I2V-A14B",
    }.items():
        assert canonical_name(name) == system
    assert canonical_name("my model") == "my model"
    known = {row["system"] for row in published_rows()} | {row["system"] for row in published_vbvr_rows()}
    assert set(ALIASES) <= known
    names = [name for system, others in ALIASES.items() for name in (system, *others)]
    assert all(canonical_name(name) in known for name in names)


def test_every_line_has_a_cell_for_every_column() -> None:
    table = build("main", entries_of("main", [row(task="chess"), row("x")], []))
    assert table.groups == (("Maze", 4), ("FlowFree", 4), ("Sokoban", 4), ("chess", 4))
    assert {len(line.cells) for line in table.lines} == {len(table.columns)} == {16}
    marks = [mark for line in table.lines for cell in line.cells for mark in cell.marks]
    assert dict.fromkeys(marks) == dict.fromkeys(mark for mark, _ in table.notes), "notes in the order of their marks"


def test_a_test_set_is_known_by_its_puzzles() -> None:
    made = [puzzles.generate("maze", puzzles.maze.Difficulty(4, 5), 0, "test", i) for i in range(3)]
    assert puzzle_digest(made) == puzzle_digest(made[::-1]) != puzzle_digest(made[:2])
    items = [Item(f"maze-{i:05d}", puzzle, "", Path()) for i, puzzle in enumerate(made)]
    outcomes = [failed(item, "missing") for item in items]
    assert rows_of("x", outcomes * 2)[0].get("test_set") == puzzle_digest(made), (
        "two samples a puzzle are no more puzzles"
    )
