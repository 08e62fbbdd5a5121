"""results.json on disk, and the tables made of it."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vrlvr.errors import UserError
from vrlvr.evaluation.metrics import Gain, Row
from vrlvr.evaluation.tables import (
    markdown,
    print_table,
    published_rows,
    read_gains,
    read_results,
    write_gains,
    write_results,
)


def row(system: str = "rl", task: str = "maze", **changes: Any) -> Row:
    values: dict[str, Any] = {
        "system": system,
        "task": task,
        "precision": 61.25,
        "recall": 50.0,
        "f1": 55.06,
        "success_rate": 40.0,
        "success_rate_ci95": [35.1, 45.2],
        "num_puzzles": 300,
        "source": "measured",
    }
    return values | changes  # type: ignore[return-value]


def test_results_survive_the_disk(tmp_path: Path) -> None:
    rows = [row(), *published_rows()]
    write_results(tmp_path / "results.json", rows)
    assert read_results(tmp_path / "results.json") == rows


def test_gains_survive_the_disk(tmp_path: Path) -> None:
    gain = Gain(before="sft", after="rl", task="maze", gain=-1.5, gain_ci95=[-4.0, 1.0], num_puzzles=300, paired=True)
    write_gains(tmp_path / "gains.json", [gain])
    assert read_gains(tmp_path / "gains.json") == [gain]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": 101}, r"row 1: precision=101 must be a number in 0\.\.100"),
        ({"recall": "50"}, "recall='50' must be a number"),
        ({"f1": True}, "f1=True must be a number"),
        ({"success_rate_ci95": [50, 40]}, r"success_rate_ci95=\[50, 40\] must be \[low, high\]"),
        ({"success_rate_ci95": [50]}, "must be"),
        ({"num_puzzles": 0}, "num_puzzles=0 must be a positive integer"),
        ({"source": "guessed"}, "source='guessed' must be one of measured, published"),
        ({"system": ""}, "system='' must be a name"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([row(), row(**change)]))
    with pytest.raises(UserError, match=message) as caught:
        read_results(path)
    assert "\n" not in str(caught.value)


def test_nan_is_refused_before_it_reaches_the_disk(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", [row()])
    with pytest.raises(UserError, match="precision=nan"):
        write_results(tmp_path / "results.json", [row(precision=float("nan"))])
    assert read_results(tmp_path / "results.json") == [row()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ('{"a": 1}', "holds a dict, a list is needed"),
        ("[3]", "row 0 must be an object"),
        ("[{}]", "has no system"),
    ],
)
def test_a_file_that_is_no_table_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_results(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "missing.json")


def test_markdown_groups_columns_by_task_and_keeps_the_sources_apart() -> None:
    text = markdown(
        [
            row("VideoRLVR", "maze", source="published", success_rate_ci95=None),
            row("rl", "sokoban"),
            row("rl", f1_ci95=[51.0, 59.0]),
        ]
    )
    assert text.splitlines() == [
        "| system | source | Maze Prec | Rec | F1 | SR | Sokoban Prec | Rec | F1 | SR |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| rl | measured | 61.2 | 50.0 | 55.1 [51.0, 59.0] | 40.0 [35.1, 45.2] | 61.2 | 50.0 | 55.1 | 40.0 [35.1, 45.2] |",
        "| VideoRLVR | published | 61.2 | 50.0 | 55.1 | 40.0 |  |  |  |  |",
    ]


def test_the_terminal_table_fits_80_columns() -> None:
    out = StringIO()
    widest = {"success_rate": 100.0, "success_rate_ci95": [100.0, 100.0], "num_puzzles": 1000}
    rows = [row(system, task, **widest) for task in ("maze", "flowfree", "sokoban") for system in ("base", "sft", "rl")]
    print_table([*rows, *published_rows()], Console(file=out, width=80))
    text = out.getvalue()
    assert "…" not in text
    assert text.index("FlowFree") < text.index("Sokoban")
    assert "100.0 [100.0, 100.0] 1000 measured" in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("published") == 11 * 3 + 4


def test_a_long_name_gives_way_to_the_numbers() -> None:
    out = StringIO()
    print_table([row("name " * 40, success_rate=100.0, success_rate_ci95=[100.0, 100.0])], Console(file=out, width=80))
    assert "61.2 50.0 55.1 100.0 [100.0, 100.0] 300 measured" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_names_are_no_markup_of_the_terminal_or_of_markdown() -> None:
    out = StringIO()
    print_table([row("[/red] [bold]x\n|", "[/]")], Console(file=out, width=120))
    assert "[/red] [bold]x |" in out.getvalue()
    assert "<b>" not in markdown([row("<b>|x")])
    assert markdown([row("<b>|x")]).splitlines()[2].startswith(r"| \<b\>\|x | measured |")


def test_published_rows_are_the_printed_ones() -> None:
    rows = {(row["system"], row["task"]): row for row in published_rows()}
    assert len(rows) == 11 * 3 + 4
    ours = rows["VideoRLVR", "sokoban"]
    assert [ours[key] for key in ("precision", "recall", "f1", "success_rate")] == [34.0, 12.5, 29.4, 6.1]  # type: ignore[literal-required]
    assert rows["SFT epoch 5", "flowfree"]["success_rate"] == 2.4
    assert rows["GPT 5.5 Pro", "maze"]["success_rate"] == 66.0
    assert ("GPT 5.5 Pro", "sokoban") not in rows
    assert {row["source"] for row in rows.values()} == {"published"}
