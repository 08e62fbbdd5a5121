"""`vrlvr eval verifiers`: rows, intervals, and that slices add up."""

import json

import pytest

from vrlvr.cli import main
from vrlvr.errors import UserError
from vrlvr.evaluation.verifier_rows import Judged, clopper_pearson, line_of, lines_of, markdown
from vrlvr.evaluation.verifiers import evaluate_verifiers


def video(kind, task, name, first, second, rule=None, dense=0.0):
    return Judged("v", "tiny", kind, task, name, 0, {"first": first, "second": second}, dense, rule)


@pytest.mark.parametrize(
    ("wrong", "videos", "low", "high"),
    [  # R: binom.test(5, 100), (99, 100), (1, 20); one-sided at the ends
        (5, 100, 0.016432, 0.112835),
        (99, 100, 0.945541, 0.999747),
        (1, 20, 0.001265, 0.248733),
        (0, 3000, 0.0, 0.000998),
        (20, 20, 0.860892, 1.0),
    ],
)
def test_exact_intervals(wrong, videos, low, high):
    assert clopper_pearson(wrong, videos) == pytest.approx((low, high), abs=1e-6)


def test_lines_count_what_is_wrong():
    videos = [
        video("attacks", "maze", "static", False, False, "not_solved"),
        video("attacks", "maze", "static", True, False, None, 1.0),
        video("attacks", "maze", "noise", False, True, "unreadable_cell", -0.2),
        video("honest", "maze", "blur", False, True, "teleport", 0.4),
        video("honest", "maze", "blur", True, True, None, 1.0),
    ]
    lines = {(line.kind, line.task, line.name): line for line in lines_of(videos)}
    assert list(lines) == [
        ("attacks", "maze", "static"), ("attacks", "maze", "noise"), ("attacks", "maze", "all"), ("attacks", "all", "all"),
        ("honest", "maze", "blur"), ("honest", "maze", "all"), ("honest", "all", "all"),
    ]  # fmt: skip
    everything = lines["attacks", "all", "all"]
    assert (everything.videos, everything.wrong, everything.split) == (3, {"first": 1, "second": 1}, 2)
    assert everything.largest_dense == 1.0
    assert everything.rules == ["not_solved", "unreadable_cell"]
    assert lines["honest", "maze", "blur"] == line_of("honest", "maze", "blur", videos[3:])
    assert lines["honest", "maze", "blur"].wrong == {"first": 1, "second": 0}
    assert "| honest | maze | blur | 2 | 1 [1.26, 98.74] | 0 [0.00, 77.64] | 1 | 1.000 | teleport |" in markdown(
        [*lines.values()]
    )


def test_slices_add_up_and_nothing_is_judged_twice(tmp_path, capsys):
    def run(*options):
        arguments = ["eval", "verifiers", "--size", "tiny", "--tasks", "maze", "--verifiers", "first", "--workers", "1"]
        assert main([*arguments, "--out", str(tmp_path), *options]) == 0
        return (tmp_path / "verifiers.jsonl").read_text().splitlines()

    first = run("--num-seeds", "1", "--kinds", "honest")
    assert len(first) == len(set(first)) >= 20
    assert run("--num-seeds", "1", "--kinds", "honest") == first
    both = run("--num-seeds", "1", "--first-seed", "7", "--kinds", "honest")
    assert both[: len(first)] == first
    assert {json.loads(line)["seed"] for line in both} == {0, 7}
    rows = json.loads((tmp_path / "verifiers.json").read_text())["rows"]
    assert rows[-1]["videos"] == len(both) == 2 * len(first)
    assert rows[-1]["wrong"] == {"first": 0}
    assert rows[-1]["ci95"]["first"] == [0, pytest.approx(1 - 0.05 ** (1 / len(both)))]
    assert "| honest | maze | all |" in capsys.readouterr().out
    assert "| honest | maze | blur_darker_h264 |" in (tmp_path / "verifiers.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "chess"}, "task 'chess' is unknown; use any of maze"),
        ({"kinds": "friendly"}, "kind 'friendly' is unknown"),
        ({"verifiers": "third"}, "verifier 'third' is unknown; use any of first, second"),
        ({"num_seeds": 0}, "num_seeds=0"),
    ],
)
def test_bad_options_are_refused_in_a_line(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        evaluate_verifiers(tmp_path, **options)


def test_a_damaged_journal_is_refused(tmp_path):
    (tmp_path / "verifiers.jsonl").write_text('{"task": 3}\n')  # a last line that a crash cut off is dropped, no other
    with pytest.raises(UserError, match="is no journal of"):
        evaluate_verifiers(tmp_path, num_seeds=1, size="tiny", tasks="maze", workers=1)
