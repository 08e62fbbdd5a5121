"""The report: every input shown, any of them missing, nothing taken from outside, nothing unescaped."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vrlvr.errors import UserError
from vrlvr.evaluation.metrics import paired_gain, summarise
from vrlvr.evaluation.report import write_report, write_results_md
from vrlvr.evaluation.tables import published_rows, write_gains, write_results
from vrlvr.puzzles.verdict import Verdict

GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
TASKS = ("maze", "flowfree", "sokoban")
VOID = {"meta", "img", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps texts and the values of attributes that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts).replace("\N{NO-BREAK SPACE}", " ")


def judged(num_solved: int) -> list[list[Verdict]]:
    return [[Verdict(i < num_solved, {}, None, None, 0.5, 0.5)] * 2 for i in range(100)]


def make_run(folder: Path) -> Path:
    """A run with every input: SFT solves 40 of 100 puzzles of a task, RL 55."""
    folder.mkdir()
    solved = {"base": 0, "sft": 40, "rl": 55}
    rows = [summarise(system, task, judged(count)) for task in TASKS for system, count in solved.items()]
    write_results(folder / "results.json", [*rows, *published_rows()])
    write_gains(folder / "gains.json", [paired_gain("sft", "rl", task, judged(40), judged(55)) for task in TASKS])
    lines = [{"phase": "sft", "step": i, "total": 9, "seconds": i, "loss": 1 / i, "lr": 1e-3} for i in range(1, 10)]
    for i in range(1, 21):
        line = {"phase": "grpo", "step": i, "total": 20, "seconds": 9 + 2 * i, "reward": 0.1 * i, "success": None}
        line |= {f"reward_{task}": 0.1 * i for task in TASKS} | {f"success_{task}": 0.01 * i for task in TASKS}
        line |= {f"component_{task}_valid_prefix": 0.02 * i for task in TASKS}
        line |= {"seconds_rollout": 1.5, "seconds_update": 0.5, "grad_norm": 1.0, "grad_norm_step_0": 1.0, "novel": i}
        lines.append(line | ({f"val_success_{task}": 0.4 for task in TASKS} if i % 10 == 0 else {}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("grpo:\n  group_size: 8\n")
    facts = {"command": "torchrun vrlvr/train.py", "seed": 3, "versions": {"torch": "2.11"}, "ranks": [0, 1]}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "rollouts_before.gif").write_bytes(GIF)
    (folder / "rollouts_after.gif").write_bytes(GIF)
    return folder


def test_everything_is_in_one_file(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "tiny"))
    assert path == tmp_path / "tiny" / "report.html"
    text = path.read_text()
    page = Page(text)
    assert [base64.b64decode(link.removeprefix("data:image/gif;base64,")) for link in page.links] == [GIF, GIF]
    assert not re.search(r"https?:|[\"'(]//|@import|url\(|<script|<link", text)
    assert "default-src &#x27;none&#x27;" in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_the_headline_is_the_mean_of_the_tasks_and_the_paired_gain(tmp_path: Path) -> None:
    text = Page(write_report(make_run(tmp_path / "tiny")).read_text()).text
    for figure in ("VideoRLVR · tiny", "40.0 %", "55.0 %", "+15.0", "paired puzzle by puzzle"):
        assert figure in text


def test_every_scalar_is_drawn_somewhere_and_every_section_is_there(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    text = Page(write_report(run).read_text()).text
    headings = (
        "Success rate by task|Rollouts on held-out|Success during RL|Reward during RL|Reward by component|Supervised|"
        "Health|Where the time goes|Results|How it was made|Resolved configuration|All other scalars (4)"
    )
    assert [heading for heading in headings.split("|") if heading not in text] == []
    for shown in (
        "grpo: novel",
        "sft: lr",
        "valid_prefix",
        "step 0",
        "versions",
        "torch 2.11",
        "0, 1",
        "group_size: 8",
    ):
        assert shown in text


def test_seconds_go_to_the_phase_that_spent_them(tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path / "tiny")).read_text()
    cells = dict(re.findall(r"<tr><td>(\w+)</td><td>([\d.e+]+)</td>", html))
    assert {name: float(value) for name, value in cells.items()} == {
        "sft": 9,
        "grpo": 40,
        "rollout": 1.5,
        "update": 0.5,
    }


def test_the_table_keeps_measured_and_published_rows_apart(tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path / "tiny")).read_text()
    assert html.count("<td>measured</td>") == 3
    assert html.count('<tr class="dim">') == html.count("<td>published</td>") == 15
    assert "<td>55.0</td><td><small>45.2–64.4</small></td>" in html  # 55 of 100, by Wilson
    assert html.index("<td>measured</td>") < html.index("<td>published</td>")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("results.json", "No results.json"),
        ("gains.json", "unpaired"),
        ("metrics.jsonl", "No metrics.jsonl"),
        ("config.yaml", "No config.yaml"),
        ("run.json", "No run.json"),
        ("rollouts_before.gif", "No rollouts_before.gif"),
        ("rollouts_after.gif", "No rollouts_after.gif"),
    ],
)
def test_a_missing_input_is_named_and_the_rest_still_shown(tmp_path: Path, name: str, says: str) -> None:
    run = make_run(tmp_path / "tiny")
    assert says not in Page(write_report(run).read_text()).text
    (run / name).unlink()
    assert says in Page(write_report(run).read_text()).text


def test_an_empty_folder_still_gives_a_page(tmp_path: Path) -> None:
    assert Page(write_report(tmp_path).read_text()).text.count("No ") >= 6


def test_a_video_is_shown_where_there_is_no_gif(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    (run / "rollouts_after.gif").unlink()
    (run / "rollouts_after.mp4").write_bytes(b"movie")
    page = Page(write_report(run).read_text())
    assert "video" in page.tags
    assert f"data:video/mp4;base64,{base64.b64encode(b'movie').decode()}" in page.links


def test_text_from_the_run_is_escaped(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    run = make_run(tmp_path / "<b>&")
    write_results(run / "results.json", [summarise(attack, attack, judged(1)), summarise("rl", attack, judged(1))])
    (run / "config.yaml").write_text(attack)
    (run / "run.json").write_text(json.dumps({attack: attack, "command": attack, "seed": {attack: attack}}))
    row = {"phase": attack, "step": 1, "seconds": 1.0, attack: 1.0}
    row |= {f"success_{attack}": 0.5, f"seconds_{attack}": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"phase": "grpo", "step": 2}) + "\n")
    page = Page(write_report(run).read_text())
    assert "script" not in page.tags
    assert attack in page.text


def test_a_damaged_input_is_one_clear_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    (run / "run.json").write_text("[]")
    with pytest.raises(UserError, match=r"run\.json holds a list, an object is needed"):
        write_report(run)
    (run / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is no JSON"):
        write_report(run)
    with pytest.raises(UserError, match="is no folder"):
        write_report(tmp_path / "nowhere")


def test_results_md_holds_the_table_the_gains_and_how_it_was_made(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    path = write_results_md(run)
    text = path.read_text()
    assert path == run / "results.md"
    assert "| rl | measured | 50.0 | 50.0 | 50.0 | 55.0 [" in text
    assert "- Mean of the tasks: +15.0 points [" in text
    assert "- Maze: +15.0 points [" in text
    assert "(paired by puzzle, 100 puzzles)" in text
    assert "- command: torchrun vrlvr/train.py" in text
    assert "- versions: torch 2.11" in text


def test_results_md_needs_results(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.json is missing or empty"):
        write_results_md(tmp_path)
