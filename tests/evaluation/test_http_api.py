"""What hosted services may do to us, and what they may not learn."""

import socket
import time
from email.utils import formatdate
from typing import Any

import pytest
from fake_servers import FakeService, Fault, reply

from vrlvr.evaluation.http_api import Api, Busy, Failing, Refused, Unclear, Unsent, part
from vrlvr.evaluation.patience import Patience, Stopped
from vrlvr.evaluation.providers.kling import token

KEY = "sk-secret-0123456789"


class Paths(FakeService):
    """Answers a path by what the test put there."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Any] = {}

    def answer(self, request: Any, body: bytes) -> None:
        fault = self.answers[request.path]
        reply(request, fault.status, fault.body, fault.headers)


@pytest.fixture
def server():
    with Paths() as service:
        yield service


def api(address: str) -> Api:
    return Api(address, lambda: {"Authorization": f"Bearer {KEY}"}, (KEY,), timeout_s=5)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (Fault(429, b"later"), Busy, "answered 429 later"),
        (Fault(503, b"", {"Retry-After": "5"}), Busy, "answered 503"),
        (Fault(503, {"error": {"code": "overloaded"}}), Busy, "answered 503 overloaded"),
        (Fault(503, b"<html>"), Failing, "answered 503"),
        (Fault(504), Unclear, "answered 504"),
        (Fault(500, {"error": {"message": "oh"}}), Failing, "answered 500 oh"),
        (Fault(408), Unclear, "answered 408"),
        (Fault(200, b"{"), Unclear, "no JSON"),
        (Fault(200, b"[" * 100_000), Unclear, "no JSON"),
        (Fault(200, b"{}", {"Content-Length": "9"}), Unclear, ""),
        (
            Fault(403, {"error": {"status": "DENIED", "code": 403, "message": "no"}}),
            Refused,
            "answered 403 403 DENIED no",
        ),
        (Fault(400, [{"error": {"message": "in a list"}}]), Refused, "answered 400 in a list"),
        (Fault(400, {"code": 1201, "message": "flat"}), Refused, "answered 400 1201 flat"),
        (Fault(307, b"", {"Location": "/ok"}), Refused, "answered 307"),
    ],
)
def test_replies_are_told_apart(server, answer, kind, words):
    server.answers["/x"] = answer
    with pytest.raises(kind) as caught:
        api(server.address).call("GET", "x")
    assert words in str(caught.value)
    assert type(caught.value) is kind


def test_what_a_service_says_becomes_one_harmless_line(server):
    echo = f"your key {KEY}\nBearer abc.def \x1b[31m eyJhbGciOi.eyJpc3MiOi.c2ln " + "x" * 10_000
    server.answers["/x"] = Fault(400, {"error": {"message": echo}})
    with pytest.raises(Refused) as caught:
        api(server.address).call("GET", "x")
    text = str(caught.value)
    assert "your key [key] Bearer [key] [31m [key] xxx" in text
    assert len(text) <= 300


def test_a_service_that_is_not_there_was_not_asked():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unsent, match="refused"):
        api(address).call("POST", "x", {})


@pytest.mark.parametrize(
    "location",
    ["http://example.com/v.mp4", "ftp://example.com/", "file:///etc/passwd", "https://[bad", "//", "gopher:x", ""],
)
def test_downloads_follow_no_redirect_away_from_https(server, tmp_path, location):
    server.answers["/v"] = Fault(302, b"", {"Location": location})
    with pytest.raises(Refused, match=r"not https|without end"):
        api(server.address).download(f"{server.address}/v", tmp_path / "v", 100)
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize(
    "url", ["http://example.com/v", "file:///etc/passwd", "", "x", "https://h:99999/", "https://[::1"]
)
def test_only_https_addresses_are_fetched(server, tmp_path, url):
    with pytest.raises(Refused, match="not https"):
        api(server.address).download(url, tmp_path / "v", 100)
    with pytest.raises(Refused, match="not https"):  # nor anything of this machine, for a service elsewhere
        api("https://example.com").download(f"{server.address}/v", tmp_path / "v", 100)
    assert not server.seen


def test_the_key_goes_to_the_service_itself_only(server, tmp_path):
    with Paths() as other:
        server.answers["/v"] = Fault(302, b"", {"Location": f"{other.address}/w?sig=1"})
        other.answers["/w?sig=1"] = Fault(302, b"", {"Location": f"{server.address}/u"})
        server.answers["/u"] = Fault(200, b"video")
        api(server.address).download(f"{server.address}/v", tmp_path / "v", 100)
        assert (tmp_path / "v").read_bytes() == b"video"
        keys = [headers.get("Authorization") for service in (server, other) for _, _, headers in service.seen]
    assert keys == [f"Bearer {KEY}", None, None]


def test_downloads_end_at_their_limit(server, tmp_path):
    server.answers["/v"] = Fault(200, b"x" * 101)
    with pytest.raises(Unclear, match="more than 100 bytes"):
        api(server.address).download(f"{server.address}/v", tmp_path / "v", 100)
    server.answers["/v"] = Fault(200, b"x" * 100, {"Content-Length": "200"})
    with pytest.raises(Unclear, match="sent 100 of 200 bytes"):
        api(server.address).download(f"{server.address}/v", tmp_path / "v", 200)
    server.answers["/w"] = Fault(403, {"error": {"message": "expired"}})
    with pytest.raises(Refused, match="expired"):
        api(server.address).download(f"{server.address}/w", tmp_path / "v", 100)


def test_a_service_that_dribbles_is_left(server, tmp_path):
    server.answers["/v"] = Fault(200, b"x" * 100)
    with pytest.raises(Unclear, match="for more than 0 seconds"):
        api(server.address).download(f"{server.address}/v", tmp_path / "v", 100, timeout_s=0)


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("12", 12, 12),
        ("in an hour", 3000, 3600),
        ("soon", None, None),
        ("-1", None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(server, header, low, high):
    date = formatdate(time.time() + 3600, usegmt=True)
    server.answers["/x"] = Fault(429, b"", {"Retry-After": date if header == "in an hour" else header})
    with pytest.raises(Busy) as caught:
        api(server.address).call("GET", "x")
    seconds = caught.value.retry_after_s
    assert seconds is None if low is None else low <= seconds <= high


def test_waits_grow_to_a_cap_with_jitter_on_top_of_what_was_asked():
    patience = Patience(first_s=2, cap_s=60, draw=lambda: 0.5)
    assert [patience.delay(attempt, None) for attempt in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert patience.delay(0, 10.0) == 11
    assert patience.delay(0, 1e9) == 301


def test_attempts_are_limited_and_other_errors_are_not_repeated():
    patience = Patience(attempts=3, draw=lambda: 0.0)
    raised: list[Exception] = []

    def failing(error: Exception) -> None:
        raised.append(error)
        raise error

    with pytest.raises(Busy):
        patience.retry(lambda: failing(Busy("busy", 0.0)), (Busy, Unsent))
    assert len(raised) == 3
    with pytest.raises(Unclear):
        patience.retry(lambda: failing(Unclear("lost")), (Busy, Unsent))
    assert len(raised) == 4
    patience.stop()
    with pytest.raises(Stopped):
        patience.wait(1000)


def test_the_token_is_that_of_the_standard():
    """As PyJWT 2.15.1 makes it: jwt.encode({"iss": "ak", "exp": 1700001800, "nbf": 1699999995}, "sk", algorithm="HS256")."""
    head = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    claims = "eyJpc3MiOiJhayIsImV4cCI6MTcwMDAwMTgwMCwibmJmIjoxNjk5OTk5OTk1fQ"
    signature = "mgn0T3D3XT4hbNxAtEsJsDH8-Kpgvs6l8t89iZ9EkEg"
    assert token("ak", "sk", 1_700_000_000) == f"{head}.{claims}.{signature}"


def test_answers_are_only_as_deep_as_they_are():
    answer = {"a": [{"b": 1}], "c": None}
    assert part(answer, "a", 0, "b") == 1
    for path in (("a", 1, "b"), ("a", "b"), ("c", "d"), (0,), ("a", 0, "b", "c")):
        assert part(answer, *path) is None
