"""Hosted video systems, against local servers that speak their APIs and fail in every way that matters for money."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_servers import DROP, HALF, FakeGemini, FakeKling, FakeSora, FakeStore, FakeVertex, Fault
from PIL import Image

from vrlvr import cli, dataset, puzzles
from vrlvr.errors import UserError
from vrlvr.evaluation import provider
from vrlvr.evaluation.benchmark import Item, Outcome, failed, read_items
from vrlvr.evaluation.jobs import Entry, open_ledger
from vrlvr.evaluation.letterbox import fit
from vrlvr.evaluation.patience import Patience, Stopped
from vrlvr.evaluation.providers.system import frame_for
from vrlvr.evaluation.tables import read_results
from vrlvr.puzzles import maze
from vrlvr.puzzles.board import BACKGROUND
from vrlvr.video_io import read_mp4, write_mp4

KEYS = {
    "OPENAI_API_KEY": FakeSora.KEY,
    "GEMINI_API_KEY": FakeGemini.KEY,
    "KLING_ACCESS_KEY": FakeKling.ACCESS,
    "KLING_SECRET_KEY": FakeKling.SECRET,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("hosted") / "data"
    difficulties = {"maze": maze.Difficulty()}
    dataset.build(out, 0, 3, 5, 96, 160, 5, tasks=("maze",), difficulties=difficulties, workers=1)
    return out


@pytest.fixture(scope="module")
def items(data) -> list[Item]:
    return read_items(data)


@pytest.fixture(scope="module")
def videos(data, items, tmp_path_factory) -> dict[bytes, bytes]:
    """What a perfect system makes: the planner's video, in the size that it was asked for, at another rate."""
    made = {}
    path = tmp_path_factory.mktemp("made") / "video.mp4"
    for item in items:
        frames = read_mp4(item.first_frame.with_suffix(".mp4"))
        boxed = np.stack([np.asarray(fit(Image.fromarray(frame), 720, 1280)[0]) for frame in frames])
        write_mp4(path, boxed, fps=24, holds=[2] * len(boxed))
        made[frame_for(item.first_frame)] = path.read_bytes()
    return made


class QuickPatience(Patience):
    """Never waits, and remembers how long it would have."""

    waits: list[float]

    def wait(self, seconds: float) -> None:
        if self.is_stopped():
            raise Stopped
        self.waits.append(seconds)


@pytest.fixture
def really() -> None:
    """For tests that decode and judge as users do, in processes that take a second to start; see `quick`."""


@pytest.fixture(autouse=True)
def quick(monkeypatch, request, videos) -> type[QuickPatience]:
    """No waiting, keys in the environment, and, but for `really`, files compared with what the service made."""
    if "really" not in request.fixturenames:
        readable = frozenset(videos.values())
        monkeypatch.setattr(Comparer, "readable", readable, raising=False)
        monkeypatch.setattr(provider, "Decoder", Comparer)
        monkeypatch.setattr(
            provider, "judge_folder", lambda folder, items: [compared(folder, i, readable) for i in items]
        )
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    for name in ("KLING_API_KEY", "GOOGLE_OAUTH_ACCESS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    QuickPatience.waits = []
    monkeypatch.setattr(provider, "Patience", QuickPatience)
    return QuickPatience


class Comparer(contextlib.nullcontext):
    """In place of a decoder: what the service made is readable, all else is not."""

    readable: frozenset[bytes]

    def __enter__(self) -> "Comparer":
        return self

    def read(self, path: Path) -> None:
        if path.read_bytes() not in self.readable:
            raise UserError("no video")


def compared(folder: Path, item: Item, readable: frozenset[bytes]) -> Outcome:
    path = folder / f"{item.id}.mp4"
    if not path.exists():
        return failed(item, "missing")
    if path.read_bytes() not in readable:
        return failed(item, "undecodable")
    return Outcome(item, "judged", maze.judge_moves(item.puzzle, item.puzzle.solution))


@pytest.fixture
def sora(videos):
    with FakeSora(videos) as service:
        yield service


def run(service: Any, data: Path, out: Path, *options: str, name: str = "sora2", base: str = "/v1") -> int:
    where = ["--data", str(data), "--out", str(out), "--base-url", service.address + base]
    return cli.main(["eval", "provider", "--provider", name, *where, "--poll_s", "0.5", *options])


def everything(out: Path, captured: Any) -> str:
    """All that was printed and written."""
    files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".mp4"]
    return captured.out + captured.err + "".join(path.read_text() for path in files)


def events(out: Path, name: str) -> list[str]:
    lines = [json.loads(line) for line in (out / "jobs.jsonl").read_text().splitlines()]
    return [line["event"] for line in lines if line["id"] == name]


def test_sora_is_asked_once_a_puzzle_and_judged(really, sora, data, items, tmp_path, capsys):
    assert run(sora, data, tmp_path / "out", "--yes") == 0
    (row,) = read_results(tmp_path / "out" / "results.json")
    assert (row["system"], row["success_rate"], row["f1"], row["num_puzzles"]) == ("Sora 2", 100, 100, 3)
    assert (row["num_missing"], row["num_undecodable"]) == (0, 0)
    assert sora.counts == {"submit": 3, "look": 6, "download": 3}
    assert events(tmp_path / "out", items[0].id) == ["submitting", "submitted", "finished"]
    assert run(sora, data, tmp_path / "out") == 0  # needs no --yes, as nothing is left to pay for
    assert sora.counts == {"submit": 3, "look": 6, "download": 3}
    assert FakeSora.KEY not in everything(tmp_path / "out", capsys.readouterr())
    assert not any(FakeSora.KEY in path for _, path, _ in sora.seen)


def test_a_task_that_is_named_twice_is_paid_for_once(sora, data, tmp_path):
    assert run(sora, data, tmp_path / "out", "--yes", "--tasks=maze,maze") == 0
    assert sora.counts["submit"] == 3


def test_veo_by_gemini_follows_the_redirect_without_its_key(videos, data, tmp_path, capsys):
    with FakeGemini(videos) as gemini:
        assert run(gemini, data, tmp_path / "out", "--yes", "--parallel=1", name="veo3.1", base="/v1beta") == 0
        assert gemini.counts == {"submit": 3, "look": 6, "download": 3}
    (row,) = read_results(tmp_path / "out" / "results.json")
    assert (row["system"], row["success_rate"]) == ("Veo 3.1", 100)
    text = everything(tmp_path / "out", capsys.readouterr())
    assert FakeGemini.KEY not in text
    assert "of-this-url" not in text


def test_veo_by_vertex_takes_the_video_out_of_the_answer(videos, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", FakeVertex.KEY)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "some-project")
    with FakeVertex(videos) as vertex:
        assert run(vertex, data, tmp_path / "out", "--yes", name="veo3.1") == 0
    (row,) = read_results(tmp_path / "out" / "results.json")
    assert row["success_rate"] == 100
    assert FakeVertex.KEY not in everything(tmp_path / "out", capsys.readouterr())


def test_kling_signs_its_requests_and_its_store_sees_no_key(really, videos, data, items, tmp_path, capsys):
    with FakeStore() as store, FakeKling(videos, store) as kling:
        kling.failures[1] = "Failure to pass the risk control system"
        assert run(kling, data, tmp_path / "out", "--yes", "--parallel=1", name="kling3", base="") == 0
        assert kling.counts["submit"] == 3
        assert store.counts["download"] == 2
    (row,) = read_results(tmp_path / "out" / "results.json")
    assert (row["system"], row["num_missing"]) == ("Kling V3", 1)
    assert row["success_rate"] == pytest.approx(200 / 3)
    outcome = json.loads((tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()[1])
    assert (outcome["id"], outcome["status"]) == (items[1].id, "missing")
    assert "risk control" in outcome["note"]
    text = everything(tmp_path / "out", capsys.readouterr())
    for hidden in (FakeKling.ACCESS, FakeKling.SECRET, "eyJ", "of-this-url"):
        assert hidden not in text


def test_a_single_kling_key_is_sent_as_it_is(videos, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KLING_API_KEY", "single-key-0123456789")
    with FakeStore() as store, FakeKling(videos, store) as kling:
        kling._is_signed = lambda header: header == "Bearer single-key-0123456789"
        assert run(kling, data, tmp_path / "out", "--yes", name="kling3", base="") == 0
    assert "single-key" not in everything(tmp_path / "out", capsys.readouterr())


def test_nothing_is_billed_without_consent(sora, data, tmp_path, capsys):
    assert run(sora, data, tmp_path / "out") == 2
    assert "3 videos of sora-2 would be asked for, each a billed call; add --yes" in capsys.readouterr().err
    assert run(sora, data, tmp_path / "out", "--max-spend-videos=1", "--yes") == 2
    assert "1 of 3 videos are there" in capsys.readouterr().err
    assert sora.counts["submit"] == 1
    assert run(sora, data, tmp_path / "out", "--max-spend-videos=0") == 2
    assert sora.counts["submit"] == 1
    assert not (tmp_path / "out" / "results.json").exists()


def test_busy_services_are_asked_again_later(sora, data, items, tmp_path, quick):
    sora.faults["submit"] = [
        Fault(429, {"error": {"message": "slow down"}}, {"Retry-After": "7"}),
        Fault(503, b"", {"Retry-After": "1"}),
    ]
    sora.faults["look"] = [Fault(500), DROP, Fault(200, b"<html>")]
    sora.faults["download"] = [Fault(502), DROP]
    assert run(sora, data, tmp_path / "out", "--yes", "--parallel=1") == 0
    assert len(sora.jobs) == 3  # what was refused was not billed, and what was billed not repeated
    assert events(tmp_path / "out", items[0].id) == ["submitting", "rejected"] * 2 + [
        "submitting",
        "submitted",
        "finished",
    ]
    assert 7 <= max(quick.waits) < 7 + 2
    assert sum(wait == 0.5 for wait in quick.waits) == 3  # between two looks at each job


@pytest.mark.parametrize(
    "fault",
    [
        DROP,
        Fault(500),
        Fault(503, b"<html>a gateway's</html>"),
        Fault(504),
        Fault(200, b"no JSON"),
        Fault(200, {"id": "../../etc"}),
    ],
)
def test_a_lost_reply_is_never_paid_for_twice_by_itself(sora, data, items, tmp_path, capsys, fault):
    sora.faults["submit"] = [fault]
    assert run(sora, data, tmp_path / "out", "--yes", "--parallel=1") == 2
    assert (
        f"2 of 3 videos are there, 0 failed for good, 0 under way, 1 unknown ({items[0].id})" in capsys.readouterr().err
    )
    assert run(sora, data, tmp_path / "out", "--yes") == 2
    assert sora.counts["submit"] == 3
    assert events(tmp_path / "out", items[0].id) == ["submitting"]
    assert run(sora, data, tmp_path / "out", "--resubmit-unknown") == 2
    assert "1 videos of sora-2 would be asked for" in capsys.readouterr().err
    assert run(sora, data, tmp_path / "out", "--resubmit-unknown", "--yes") == 0
    assert sora.counts["submit"] == 4


def test_a_kill_between_call_and_reply_leaves_it_unknown(sora, data, items, tmp_path, capsys):
    command = "import sys; from vrlvr.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["eval", "provider", "--provider", "sora2", "--data", str(data), "--out", str(tmp_path / "out")]
    options += ["--base_url", f"{sora.address}/v1", "--yes", "--parallel=1"]
    process: list[subprocess.Popen] = []
    sora.faults["submit"] = [lambda: os.kill(process[0].pid, signal.SIGKILL)]
    process.append(subprocess.Popen([sys.executable, "-c", command, *options]))
    assert process[0].wait(timeout=60) == -signal.SIGKILL
    assert len(sora.jobs) == 1
    assert run(sora, data, tmp_path / "out", "--yes") == 2
    assert f"1 unknown ({items[0].id})" in capsys.readouterr().err
    assert len(sora.jobs) == 3


def test_a_kill_while_waiting_costs_nothing(sora, data, items, tmp_path):
    out = tmp_path / "out"
    request = provider_request(sora, data, items[0], out)
    sora.jobs["job_0"] = sora.videos[frame_for(items[0].first_frame)]
    with open_ledger(out / "jobs.jsonl") as ledger:
        ledger.write(Entry(items[0].id, "submitting", request))
        ledger.write(Entry(items[0].id, "submitted", request, "job_0"))
    (out / "videos").mkdir()
    (out / "videos" / f".{items[0].id}.mp4.1.partial").write_bytes(b"half")
    (out / "jobs.jsonl").write_bytes((out / "jobs.jsonl").read_bytes() + b'{"id": "maze-00001", "event": "submi')
    assert run(sora, data, out, "--yes") == 0
    assert sora.counts["submit"] == 2
    assert sorted(path.name for path in (out / "videos").iterdir()) == [f"{item.id}.mp4" for item in items]


def provider_request(service: Any, data: Path, item: Item, out: Path) -> str:
    """The hash that the ledger has for an item, seen in a run that stays without consequences."""
    seen = out.parent / "seen"
    service.faults["submit"] = [Fault(400, {"error": {"code": "invalid_value", "message": "seconds"}})]
    assert run(service, data, seen, "--yes", "--num_puzzles=1") == 2
    service.counts.clear()
    return json.loads((seen / "jobs.jsonl").read_text().splitlines()[0])["request"]


def test_half_downloads_are_fetched_again_without_a_new_call(sora, data, tmp_path):
    sora.faults["download"] = [HALF, HALF]
    assert run(sora, data, tmp_path / "out", "--yes", "--parallel=1") == 0
    assert (sora.counts["submit"], sora.counts["download"]) == (3, 5)
    (row,) = read_results(tmp_path / "out" / "results.json")
    assert row["success_rate"] == 100


def test_a_file_cut_off_by_the_service_itself_is_fetched_again(sora, data, tmp_path):
    whole = next(iter(sora.videos.values()))
    sora.faults["download"] = [Fault(200, whole[: len(whole) // 2]), Fault(200, b"")]
    assert run(sora, data, tmp_path / "out", "--yes", "--parallel=1") == 0
    assert (sora.counts["submit"], sora.counts["download"]) == (3, 5)
    assert read_results(tmp_path / "out" / "results.json")[0]["num_undecodable"] == 0


def test_a_file_that_is_broken_otherwise_every_time_is_left_to_the_next_run(sora, data, tmp_path, capsys):
    sora.faults["download"] = [Fault(200, b"x" * size) for size in (1, 2, 3, 4)]
    assert run(sora, data, tmp_path / "out", "--yes", "--parallel=1") == 2
    assert "2 of 3 videos are there, 0 failed for good, 1 under way" in capsys.readouterr().err
    assert run(sora, data, tmp_path / "out") == 0
    assert (sora.counts["submit"], sora.counts["download"]) == (3, 7)
    assert read_results(tmp_path / "out" / "results.json")[0]["success_rate"] == 100


def test_a_file_that_is_always_the_same_nonsense_is_the_answer(sora, data, tmp_path):
    sora.faults["download"] = [Fault(200, b"no video at all")] * 2
    assert run(sora, data, tmp_path / "out", "--yes", "--parallel=1") == 0
    assert (sora.counts["submit"], sora.counts["download"]) == (3, 4)
    assert read_results(tmp_path / "out" / "results.json")[0]["num_undecodable"] == 1


def test_a_deleted_video_is_fetched_again_for_nothing(sora, data, items, tmp_path):
    assert run(sora, data, tmp_path / "out", "--yes") == 0
    (tmp_path / "out" / "videos" / f"{items[0].id}.mp4").unlink()
    assert run(sora, data, tmp_path / "out") == 0
    assert (sora.counts["submit"], sora.counts["download"]) == (3, 4)


def test_a_job_that_the_service_forgot_is_unknown_until_asked_again(sora, data, items, tmp_path, capsys):
    assert run(sora, data, tmp_path / "out", "--yes", "--parallel=1") == 0
    (tmp_path / "out" / "videos" / f"{items[0].id}.mp4").unlink()
    kept = sora.jobs.pop("job_0")
    assert run(sora, data, tmp_path / "out") == 2
    assert f"1 unknown ({items[0].id})" in capsys.readouterr().err
    sora.jobs["job_0"] = kept  # as after a wrong --base_url: the job is looked for again first
    assert run(sora, data, tmp_path / "out") == 0
    assert sora.counts["submit"] == 3


def test_a_refusal_for_content_is_final_and_counts_as_missing(sora, data, items, tmp_path, capsys):
    body = {"error": {"code": "moderation_blocked", "message": f"blocked; your key {FakeSora.KEY} is fine"}}
    sora.faults["submit"] = [Fault(400, body)]
    sora.failures[0] = {"code": "moderation_blocked", "message": "[red]unsafe[/red]\nsecond line"}
    assert run(sora, data, tmp_path / "out", "--yes", "--parallel=1") == 0
    assert read_results(tmp_path / "out" / "results.json")[0]["num_missing"] == 2
    assert events(tmp_path / "out", items[0].id) == ["submitting", "failed"]
    assert events(tmp_path / "out", items[1].id) == ["submitting", "submitted", "failed"]
    assert run(sora, data, tmp_path / "out", "--yes") == 0
    assert sora.counts["submit"] == 3
    assert run(sora, data, tmp_path / "out", "--yes", "--resubmit_failed") == 0
    assert sora.counts["submit"] == 5
    assert read_results(tmp_path / "out" / "results.json")[0]["success_rate"] == 100
    assert FakeSora.KEY not in everything(tmp_path / "out", capsys.readouterr())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(401, {"error": {"message": f"Incorrect API key provided: {FakeSora.KEY}"}}), "answered 401"),
        (Fault(404, {"error": {"message": "model gone", "code": "model_not_found"}}), "model_not_found model gone"),
        (Fault(429, {"error": {"message": "no money", "code": "insufficient_quota"}}), "insufficient_quota no money"),
        (Fault(302, b"", {"Location": "http://127.0.0.1:1/"}), "answered 302"),
    ],
)
def test_what_would_fail_for_all_stops_the_run(sora, data, items, tmp_path, capsys, fault, words):
    sora.faults["submit"] = [fault]
    assert run(sora, data, tmp_path / "out", "--yes", "--parallel=1") == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert sora.counts["submit"] == 1
    assert FakeSora.KEY not in everything(tmp_path / "out", captured)
    assert run(sora, data, tmp_path / "out", "--yes") == 0  # nothing was billed, so it is asked again
    assert sora.counts["submit"] == 4


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_a_state_to_go_on_from(sora, data, tmp_path, capsys):
    main = threading.main_thread().ident
    sora.faults["look"] = [lambda: signal.pthread_kill(main, signal.SIGINT)]
    sora.looks = 10**9
    assert run(sora, data, tmp_path / "out", "--yes", "--parallel=2") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vrlvr: interrupted: 0 of 3 videos are there")
    billed = len(sora.jobs)
    assert billed <= 3
    sora.looks = 0
    assert run(sora, data, tmp_path / "out", "--yes") == 0
    assert sora.counts["submit"] == len(sora.jobs) == 3


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_does_not_wait_for_calls_under_way(sora, data, items, tmp_path, capsys):
    main, released = threading.main_thread().ident, threading.Event()

    def interrupt_twice() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.5)
        signal.pthread_kill(main, signal.SIGINT)
        released.wait(20)

    sora.faults["submit"] = [interrupt_twice]
    try:
        assert run(sora, data, tmp_path / "out", "--yes", "--parallel=1") == 2
        assert not released.is_set()
    finally:
        released.set()
    assert f"1 unknown ({items[0].id})" in capsys.readouterr().err
    assert sora.counts["submit"] == 1


def test_another_request_does_not_pass_for_this_one(sora, data, tmp_path, capsys):
    assert run(sora, data, tmp_path / "out", "--yes") == 0
    assert run(sora, data, tmp_path / "out", "--yes", "--seconds=4") == 2
    assert "made from another first frame, prompt, model or length" in capsys.readouterr().err


def test_two_runs_cannot_share_a_ledger(sora, data, tmp_path, capsys):
    with open_ledger(tmp_path / "out" / "jobs.jsonl"):
        assert run(sora, data, tmp_path / "out", "--yes") == 2
    assert "is in use by another run" in capsys.readouterr().err
    assert sora.counts["submit"] == 0


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "[" * 100_000,
        '{"id": "maze-00000", "event": "paid", "request": "x"}',
        '{"id": "maze-00000", "event": "submitted", "request": "x"}',
        '{"id": "maze-00000", "event": "submitted", "request": "x", "job": "../admin"}',
        '{"id": "maze-00000", "event": "submitted", "request": "x", "job": 3}',
    ],
)
def test_a_damaged_ledger_is_named_and_nothing_is_paid(sora, data, tmp_path, capsys, line):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "jobs.jsonl").write_text(f"{line}\n")
    assert run(sora, data, tmp_path / "out", "--yes") == 2
    assert "jobs.jsonl line 1" in capsys.readouterr().err
    assert sora.counts["submit"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seconds=5",), "seconds=5 is not offered by sora2; use one of 4, 8, 12"),
        (("--base_url=http://example.com/v1",), "must begin with https://"),
        (("--base_url=https://user:word@example.com",), "without blanks, a user"),
        (("--base_url=file:///etc/passwd",), "must begin with https://"),
        (("--model=../x",), "model='../x' must be a plain name"),
        (("--parallel=0",), "parallel=0 must be 1 to 64"),
        (("--poll_s=0",), "poll_s=0.0 up to 3600"),
    ],
)
def test_bad_options_are_named(sora, data, tmp_path, capsys, options, words):
    assert run(sora, data, tmp_path / "out", "--yes", *options) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("key", [None, "short", "two words of a key", "line\nbreak-0123456789"])
def test_a_missing_or_odd_key_is_named_and_not_shown(sora, data, tmp_path, capsys, monkeypatch, key):
    monkeypatch.delenv("OPENAI_API_KEY")
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    assert run(sora, data, tmp_path / "out", "--yes") == 2
    error = capsys.readouterr().err
    assert "OPENAI_API_KEY" in error
    assert key is None or key not in error
    assert not sora.seen


def test_the_first_frame_is_fitted_whole_on_the_boards_background(items, tmp_path):
    with Image.open(io.BytesIO(frame_for(items[0].first_frame))) as image:
        assert image.size == (1280, 720)
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels[:, :38] == BACKGROUND).all()  # 160x96 becomes 1200x720, with 40 pixels on either side
    assert (pixels[:, -38:] == BACKGROUND).all()
    small = np.asarray(Image.fromarray(pixels[:, 40:-40]).resize((160, 96), Image.Resampling.BOX), int)
    assert np.abs(small - puzzles.render_first_frame(items[0].puzzle, 96, 160)).mean() < 4
    Image.new("RGB", (90, 160)).save(tmp_path / "upright.png")
    with Image.open(io.BytesIO(frame_for(tmp_path / "upright.png"))) as image:
        assert image.size == (720, 1280)
    (tmp_path / "no.png").write_bytes(b"GIF89a")
    with pytest.raises(UserError, match=r"no\.png cannot be read as a PNG"):
        frame_for(tmp_path / "no.png")
    with pytest.raises(UserError, match=r"none\.png cannot be read \(No such file"):
        frame_for(tmp_path / "none.png")
    Image.new("1", (5000, 2)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match="5000x2 pixels; at most 4096"):
        frame_for(tmp_path / "wide.png")
