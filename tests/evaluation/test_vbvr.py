"""`vrlvr eval vbvr` on a small bench, with a stand-in of the public evaluator's interface."""

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vrlvr.cli import main
from vrlvr.errors import UserError
from vrlvr.evaluation import vbvr_evalkit
from vrlvr.evaluation.vbvr_bench import (
    BASELINES,
    SPLIT,
    Sample,
    end_jump,
    frozen_frame,
    noise,
    read_image,
    read_prompt,
    read_samples,
)
from vrlvr.evaluation.vbvr_evalkit import Score, identity, read_scores, scoring_mode
from vrlvr.evaluation.vbvr_rows import CATEGORIES, NUM_VIDEOS, weighted_average
from vrlvr.evaluation.vbvr_scores import row_of
from vrlvr.video_io import read_mp4, write_mp4

EVALKIT = Path(__file__).parents[1] / "assets" / "evalkit"
TASKS = ("G-1_circle_data-generator", "G-2_count_data-generator")
HEIGHT, WIDTH = 48, 81  # of the first frames: another aspect than the tiny model's, and an odd side


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Two tasks of three samples in the public layout."""
    for task in TASKS:
        for i in range(3):
            folder = tmp_path / "bench" / SPLIT / task / f"{i:05d}"
            folder.mkdir(parents=True)
            for name, left in (("first_frame", 8), ("final_frame", 40)):
                pixels = np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8)
                pixels[8:40, left : left + 32] = (250, 200, 90)
                Image.fromarray(pixels).save(folder / f"{name}.png")
            (folder / "prompt.txt").write_text(f"Move it. {i}\n")
            (folder / "ground_truth.mp4").write_bytes(b"only the evaluator looks at it")
    return tmp_path / "bench"


@pytest.fixture
def evalkit(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EVALKIT, tmp_path / "evalkit"))


@pytest.fixture
def videos(bench: Path, tmp_path: Path) -> Path:
    """What a system made: of the first task all solved; of the second one solved, one broken, one missing."""
    for sample in read_samples(bench):
        stills, holds = end_jump(sample, 4)
        path = tmp_path / "theirs" / sample.name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mp4(path, stills, 8, holds=holds)
    folder = tmp_path / "theirs" / SPLIT / TASKS[1]
    (folder / "00001.mp4").write_bytes((folder / "00001.mp4").read_bytes()[:300])
    (folder / "00002.mp4").unlink()
    return tmp_path / "theirs"


def run(bench: Path, evalkit: Path, out: Path, *arguments: object) -> int:
    where = ["--bench", bench, "--evalkit", evalkit, "--out", out, "--system", "ours"]
    return main(["eval", "vbvr", *map(str, [*where, *arguments])])


def rows_of(out: Path) -> dict[str, dict]:
    return {row["system"]: row for row in json.loads((out / "results.json").read_text())}


def test_missing_and_undecodable_videos_count_as_0(bench, evalkit, videos, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "out"
    assert run(bench, evalkit, out, "--videos", videos) == 0
    rows = rows_of(out)
    assert list(rows) == ["ours", *BASELINES]
    ours = rows["ours"]
    assert ours["average"] == pytest.approx(100 * 4 / 6)
    assert ours["categories"] == {"Perception": pytest.approx(100), "Knowledge": pytest.approx(100 / 3)}
    assert (ours["num_videos"], ours["num_tasks"], ours["num_missing"]) == (6, 2, 2)
    assert ours["scoring"] == "task_specific only, no SSIM fallback"
    assert ours["evaluator"] == identity(evalkit)
    assert {name: round(row["average"], 6) for name, row in rows.items() if name != "ours"} == {
        "frozen first frame": 40.0,
        "noise": 0.0,
        "end jump": 100.0,
    }
    states = [json.loads(line) for line in (out / "outcomes.jsonl").read_text().splitlines()]
    assert len(states) == 4 * 6
    assert [line["status"] for line in states[:6]] == ["scored"] * 4 + ["undecodable", "missing"]
    shown = capsys.readouterr().out
    assert f"1 videos missing, counted as 0: {SPLIT}/{TASKS[1]}/00002.mp4" in shown
    assert f"1 videos undecodable, counted as 0: {SPLIT}/{TASKS[1]}/00001.mp4" in shown
    assert "only 6 of its 250 videos" in shown
    assert "…" not in shown[shown.index("VBVR-OOD, percent") :], "80 columns are enough"
    assert "frozen first frame" in shown


def test_videos_of_another_aspect_are_named(bench, evalkit, videos, tmp_path, capsys) -> None:
    name = f"{SPLIT}/{TASKS[0]}/00000.mp4"
    write_mp4(videos / name, np.zeros((4, 64, 64, 3), np.uint8), 8)
    options = ("--videos", videos, "--tasks", TASKS[0], "--baselines", "false")
    assert run(bench, evalkit, tmp_path / "out", *options) == 0
    assert f"1 videos of another aspect than the first frame, so the evaluator crops borders and stretches: {name}" in (
        capsys.readouterr().out
    )


def test_the_rows_join_the_table(bench, evalkit, videos, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert (
        run(bench, evalkit, out, "--videos", videos, "--tasks", TASKS[0], "--num-videos", 2, "--baselines", "false")
        == 0
    )
    capsys.readouterr()
    assert main(["table", str(out / "results.json"), "--table", "vbvr"]) == 0
    text = capsys.readouterr().out
    assert "| ours | measured | 100.0 [34.2, 100.0]<sup>" in text
    assert "only 2 videos of 1 tasks: the whole set has 250" in text
    assert "| VideoRLVR | published | 60.2" in text


def test_nothing_is_made_or_evaluated_twice(bench, evalkit, videos, tmp_path, monkeypatch) -> None:
    out, calls = tmp_path / "out", []
    evaluate = vbvr_evalkit.evaluate
    monkeypatch.setattr(
        "vrlvr.evaluation.vbvr.evaluate",
        lambda kit, handed, *rest: calls.append(handed.name) or evaluate(kit, handed, *rest),
    )
    assert run(bench, evalkit, out, "--videos", videos) == 0
    assert calls == ["system", "frozen-first-frame", "noise", "end-jump"]
    first, made = rows_of(out), (out / "baselines/noise" / read_samples(bench)[0].name).stat().st_mtime_ns
    assert run(bench, evalkit, out, "--videos", videos) == 0
    assert len(calls) == 4
    assert rows_of(out) == first
    assert (out / "baselines/noise" / read_samples(bench)[0].name).stat().st_mtime_ns == made
    shutil.copy(videos / SPLIT / TASKS[1] / "00000.mp4", videos / SPLIT / TASKS[1] / "00002.mp4")
    assert run(bench, evalkit, out, "--videos", videos) == 0
    assert calls[4:] == ["system"], "a video came, so it is scored again; the baselines are not"
    assert rows_of(out)["ours"]["num_missing"] == 1
    with (evalkit / "run_evaluation.py").open("a") as script:
        script.write("# another version\n")
    assert run(bench, evalkit, out, "--videos", videos, "--baselines", "false") == 0
    assert calls[5:] == ["system"], "another evaluator scores anew"
    assert rows_of(out)["ours"]["evaluator"] != first["ours"]["evaluator"]


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        (
            "crash",
            "exit code 1 and no results (it said: Traceback (most recent call last): / ... / ModuleNotFoundError",
        ),
        ("hang", "took more than 0.02 minutes (it said: going to sleep); raise --timeout_minutes"),
        ("strange", "is not what VBVR-EvalKit writes (KeyError: 'folder')"),
        ("silent", "exit code 0 and no results (it said nothing)"),
    ],
)
def test_an_evaluator_that_fails_is_one_line(behaviour, told, bench, evalkit, videos, tmp_path, capsys) -> None:
    (evalkit / "behaviour").write_text(behaviour)
    timeout = "0.02" if behaviour == "hang" else "1"
    (tmp_path / "out").mkdir()
    assert (
        run(bench, evalkit, tmp_path / "out", "--videos", videos, "--baselines", "false", "--timeout-minutes", timeout)
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "out/results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "one of --model and --videos is needed"),
        (["--videos", "empty"], "has no video of the 6 samples; name them like Out-of-Domain_50/G-1"),
        (["--videos", "theirs", "--tasks", "G-3"], "task 'G-3' is not in"),
        (["--videos", "theirs", "--tasks", f"{TASKS[0]},{TASKS[0]}"], "must name each task once"),
        (["--videos", "theirs", "--num_videos", "0"], "num_videos=0 must be at least 1"),
        (["--videos", "theirs", "--timeout_minutes", "0"], "timeout_minutes=0 must be above 0"),
        (["--videos", "broken", "--baselines", "false"], "broken has no video that can be decoded"),
        (["--videos", "theirs", "--num_videos", "4"], "has 3 samples, 4 are asked for"),
        (["--videos", "theirs", "--bench", "empty"], "empty has no folder Out-of-Domain_50"),
        (["--videos", "theirs", "--evalkit", "empty"], "empty has no run_evaluation.py"),
        (["--videos", "theirs", "--system", "noise"], "is the name of a baseline"),
        (["--videos", "theirs", "--system", ""], "system is empty"),
        (["--videos", "theirs", "--python", "empty/python", "--baselines", "false"], "cannot be started"),
    ],
)
def test_bad_input_is_one_line(arguments, told, bench, evalkit, videos, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken" / read_samples(bench)[0].name
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no video")
    assert run(bench, evalkit, tmp_path / "out", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_model_generates_the_set_and_goes_on_after_a_stop(bench, evalkit, tmp_path, capsys) -> None:
    wan_folder = pytest.importorskip("wan_folder")
    model, out = wan_folder.make_wan_folder(tmp_path / "model"), tmp_path / "out"
    options = ["--model", model, "--height", 32, "--width", 64, "--num_frames", 5, "--steps", 1, "--baselines", "false"]
    options += ["--tasks", TASKS[0]]
    assert run(bench, evalkit, out, *options, "--num_videos", 1) == 0
    (path,) = (out / "videos").rglob("*.mp4")
    assert str(path.relative_to(out / "videos")) == f"{SPLIT}/{TASKS[0]}/00000.mp4"
    video = read_mp4(path)
    assert video.shape == (5, HEIGHT, WIDTH + 1, 3), "as large as the first frame, its sides made even"
    assert rows_of(out)["ours"]["num_missing"] == 0
    made = path.stat().st_mtime_ns
    assert run(bench, evalkit, out, *options, "--num_videos", 2) == 0
    assert path.stat().st_mtime_ns == made
    assert len(list((out / "videos").rglob("*.mp4"))) == 2
    assert run(bench, evalkit, out, *options, "--seed", 1) == 2
    assert "was begun with seed=0 (now 1)" in capsys.readouterr().err


def test_baselines_show_what_they_say(bench) -> None:
    sample = read_samples(bench)[0]
    first, final = (np.asarray(read_image(sample.folder / f"{name}.png")) for name in ("first_frame", "final_frame"))
    (still,), holds = frozen_frame(sample, 9)
    assert holds == [9]
    assert still.shape == (HEIGHT, WIDTH + 1, 3)
    assert np.abs(still[:, :WIDTH].astype(int) - first).mean() < 4
    stills, holds = end_jump(sample, 9)
    assert holds == [4, 5]
    assert np.abs(stills[1][:, :WIDTH].astype(int) - final).mean() < 4
    frames, holds = noise(sample, 10)
    assert frames.shape == (4, HEIGHT, WIDTH + 1, 3)
    assert holds == [3, 3, 3, 1]
    assert (frames[0] != frames[1]).mean() > 0.9
    assert 90 < frames.mean() < 165
    other = Sample(sample.task, "00001", sample.folder)
    assert (noise(other, 10)[0] != frames).mean() > 0.9
    assert (noise(sample, 10)[0] == frames).all(), "equal for equal samples"


def test_hostile_files_of_the_bench_are_refused(bench) -> None:
    sample = read_samples(bench)[0]
    (sample.folder / "prompt.txt").write_bytes(b"x" * 70_000)
    with pytest.raises(UserError, match="larger than 64 KiB"):
        read_prompt(sample)
    (sample.folder / "prompt.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompt(sample)
    path = sample.folder / "first_frame.png"
    Image.new("RGB", (8, 8)).save(path, format="BMP")
    with pytest.raises(UserError, match="cannot be read as a PNG"):
        read_image(path)
    Image.new("L", (4097, 4096)).save(path)
    with pytest.raises(UserError, match="4096x4097 pixels"):
        read_image(path)


def test_the_evaluators_identity_is_its_code(evalkit) -> None:
    before = identity(evalkit)
    assert before.startswith("sha256 ")
    assert before.endswith(" over 3 files")
    (evalkit / "venv").mkdir()
    (evalkit / "venv" / "pyvenv.cfg").touch()
    (evalkit / "venv" / "module.py").write_text("x = 1")
    (evalkit / "README.md").write_text("text")
    assert identity(evalkit) == before
    (evalkit / "vbvr_bench" / "evaluators" / "__init__.py").write_text("TASK_CATEGORY_MAP = {}")
    assert identity(evalkit) != before


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_checkout_names_its_commit(evalkit, monkeypatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", evalkit, *who, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    assert identity(evalkit).startswith(f"commit {git('rev-parse', 'HEAD')[:12]}, sha256 ")
    assert "commit" not in identity(Path(shutil.copytree(EVALKIT, evalkit / "inner"))), "another repository's commit"


def sample_of(**changes: object) -> dict:
    fields = {"task_name": "t", "video_file": "00003.mp4", "folder": SPLIT, "category": "Perception", "score": 0.5}
    return fields | {"dimensions": {"task_specific": 0.5}, "error": None} | changes


def test_scores_of_a_results_file(tmp_path: Path) -> None:
    path = tmp_path / "x_vbvr_results.json"
    samples = [
        sample_of(),
        sample_of(video_file="00004.mp4", score=math.nan),
        sample_of(video_file="00005.mp4", score=0.0, error="Cannot\nopen video", dimensions={}),
        sample_of(folder="In-Domain_50"),
    ]
    path.write_text(json.dumps({"samples": samples}))
    scores = read_scores(path)
    assert scores["t", "00003"] == Score(0.5, "Perception", ("task_specific",), None)
    assert scores["t", "00004"].error == "its score is no number"
    assert scores["t", "00005"] == Score(0.0, "Perception", (), "Cannot open video")
    assert len(scores) == 3
    for wrong in ([sample_of(), sample_of()], [sample_of(score=1.5)], [sample_of(category=None)], [{}], {"a": 1}, [3]):
        path.write_text(json.dumps({"samples": wrong}))
        with pytest.raises(UserError) as caught:
            read_scores(path)
        assert "\n" not in str(caught.value)


def test_scoring_modes(evalkit: Path) -> None:
    only = Score(0.5, "Perception", ("task_specific",), None)
    five = Score(0.5, "Perception", ("final_frame_accuracy", "task_specific"), None)
    assert scoring_mode(evalkit, [only, Score(0.0, "", (), "failed")]) == "task_specific only, no SSIM fallback"
    assert scoring_mode(evalkit, [five]) == "weighted mean of final_frame_accuracy, task_specific, no SSIM fallback"
    assert scoring_mode(evalkit, [only, five]) == "several modes"
    assert scoring_mode(evalkit, []) == "unknown"


def test_a_whole_set_follows_the_papers_weights() -> None:
    rng = np.random.default_rng(0)
    categories = {f"{name}-{i}": name for name, count in CATEGORIES.items() for i in range(count)}
    samples = [Sample(task, f"{i:05d}", Path()) for task in categories for i in range(5)]
    scores = {(s.task, s.index): Score(rng.random(), categories[s.task], ("x",), None) for s in samples[3:]}
    row = row_of("ours", samples, scores, categories, "x", "y")
    assert row["num_videos"] == NUM_VIDEOS
    assert row["num_missing"] == 3
    assert row["average"] == pytest.approx(100 * sum(score.value for score in scores.values()) / 250)
    assert weighted_average(row["categories"]) == pytest.approx(row["average"])
    low, high = row["average_ci95"] or (0.0, 0.0)
    assert low < row["average"] < high
    assert high - low == pytest.approx(2 * 1.96 * 100 * math.sqrt(1 / 12 / 250), rel=0.15)


def test_the_interval_holds_the_mean_of_the_tasks_95_times_of_100() -> None:
    rng = np.random.default_rng(1)
    means = rng.random(50)
    samples = [Sample(f"t{task}", f"{i:05d}", Path()) for task in range(50) for i in range(5)]
    held = 0
    for _ in range(200):
        drawn = (rng.random((50, 5)) < means[:, None]).astype(float).ravel()
        scores = {(s.task, s.index): Score(value, "c", ("x",), None) for s, value in zip(samples, drawn, strict=True)}
        low, high = row_of("ours", samples, scores, {}, "x", "y")["average_ci95"] or (0.0, 0.0)
        held += low <= 100 * means.mean() <= high
    assert 180 <= held <= 199
