"""Local servers that speak the APIs of hosted systems as documented, and misbehave when a test says so.

Each counts what was asked of it, above all the billed calls. `faults[kind]` is a list of what happens to the next calls of a
kind (submit, look, download, answer) in place of an answer: a Fault, DROP (the connection ends without one), HALF (a download
stops half way), or a function, which is called before the answer is given.
"""

import base64
import email.parser
import email.policy
import hashlib
import hmac
import io
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

DROP, HALF = "drop", "half"


@dataclass(frozen=True)
class Fault:
    """An answer other than the right one."""

    status: int
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class FakeService:
    """A server on a port of its own, for the life of a `with`."""

    def __init__(self) -> None:
        self.faults: dict[str, list[Any]] = defaultdict(list)
        self.counts: dict[str, int] = defaultdict(int)
        self.seen: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers
        self.lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with service.lock:
                    service.seen.append((self.command, self.path, dict(self.headers)))
                try:
                    service.answer(self, body)
                except ConnectionError:
                    self.close_connection = True

            do_GET = do_POST = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeService":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        raise NotImplementedError

    def count(self, kind: str) -> Any:
        """Counts a call, and gives what is to go wrong with it."""
        with self.lock:
            self.counts[kind] += 1
            return self.faults[kind].pop(0) if self.faults[kind] else None

    def send(self, request: BaseHTTPRequestHandler, kind: str, make: Callable[[], Any]) -> None:
        """The answer that `make` gives, JSON or bytes, unless something is to go wrong."""
        fault = self.count(kind)
        if callable(fault):
            fault()
        if fault == DROP:
            request.close_connection = True
            return
        if isinstance(fault, Fault):
            reply(request, fault.status, fault.body, fault.headers)
        else:
            reply(request, 200, make(), half=fault == HALF)


def reply(
    request: BaseHTTPRequestHandler,
    status: int,
    content: Any,
    headers: Mapping[str, str] | None = None,
    half: bool = False,
) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    request.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(data[: len(data) // 2] if half else data)
    if half:
        request.close_connection = True


class FakeVideos(FakeService):
    """What the video services share. videos: what is made of a PNG. looks: how often a job is not done yet."""

    KEY = "sk-secret-0123456789"

    def __init__(self, videos: Mapping[bytes, bytes], looks: int = 1) -> None:
        super().__init__()
        self.videos, self.looks = videos, looks
        self.jobs: dict[str, bytes] = {}
        self.looked: dict[str, int] = defaultdict(int)
        self.failures: dict[int, Any] = {}  # of jobs, by number from 0
        self.strangers: list[str] = []  # requests without the right key

    def begin(self, png: bytes) -> str:
        """A job for a picture, billed."""
        with self.lock:
            job = self.job_name(len(self.jobs))
            self.jobs[job] = self.videos[png]
        return job

    def job_name(self, number: int) -> str:
        return f"job_{number}"

    def state(self, job: str) -> Any:
        """None while it is not done, True, or its failure."""
        with self.lock:
            self.looked[job] += 1
            number = list(self.jobs).index(job)
            return None if self.looked[job] <= self.looks else self.failures.get(number, True)


class FakeSora(FakeVideos):
    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        if request.headers.get("Authorization") != f"Bearer {self.KEY}":
            return reply(request, 401, {"error": {"message": f"Incorrect key {request.headers.get('Authorization')}"}})
        path = request.path.removeprefix("/v1/videos")
        if request.command == "POST" and not path:
            return self.send(request, "submit", lambda: self._submit(request, body))
        job, _, content = path.removeprefix("/").partition("/")
        if job not in self.jobs:
            return reply(request, 404, {"error": {"message": "no such video", "code": "not_found"}})
        if content == "content":
            return self.send(request, "download", lambda: self.jobs[job])
        return self.send(request, "look", lambda: self._look(job))

    def _submit(self, request: BaseHTTPRequestHandler, body: bytes) -> Any:
        head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        parts = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}
        fields = {name: part.get_content() for name, part in parts.items() if not part.get_filename()}
        assert set(fields) == {"model", "prompt", "size", "seconds"}
        assert fields["model"].strip() == "sora-2"
        assert fields["seconds"].strip() in ("4", "8", "12")
        assert parts["input_reference"].get_content_type() == "image/png"
        png = parts["input_reference"].get_payload(decode=True)
        with Image.open(io.BytesIO(png)) as image:
            assert fields["size"].strip() == f"{image.width}x{image.height}"
        return {"id": self.begin(png), "object": "video", "status": "queued", "progress": 0}

    def _look(self, job: str) -> Any:
        match self.state(job):
            case None:
                return {"id": job, "status": "in_progress"}
            case True:
                return {"id": job, "status": "completed"}
            case failure:
                return {"id": job, "status": "failed", "error": failure}


class FakeGemini(FakeVideos):
    MODEL = "models/veo-3.1-generate-preview"

    def job_name(self, number: int) -> str:
        return f"{self.MODEL}/operations/op{number}"

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        if request.path.startswith("/store/"):
            number = int(request.path.removeprefix("/store/").partition("?")[0])
            assert "x-goog-api-key" not in request.headers
            return self.send(request, "download", lambda: self.jobs[self.job_name(number)])
        if request.headers.get("x-goog-api-key") != self.KEY:
            error = {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}
            return reply(request, 400, {"error": error})
        path = request.path.removeprefix("/v1beta/")
        if path == f"{self.MODEL}:predictLongRunning":
            return self.send(request, "submit", lambda: {"name": self._submit(json.loads(body))})
        if found := re.fullmatch(r"files/(\d+):download\?alt=media", path):
            # As Google does: from the service's own address on to a store, which needs no key.
            return reply(request, 302, b"", {"Location": f"{self.address}/store/{found[1]}?sig=of-this-url"})
        return self.send(request, "look", lambda: self._look(path))

    def _submit(self, asked: Any) -> str:
        (instance,) = asked["instances"]
        assert instance["image"]["mimeType"] == "image/png"
        assert asked["parameters"] == {"aspectRatio": "16:9", "durationSeconds": 6, "resolution": "720p"}
        return self.begin(base64.b64decode(instance["image"]["bytesBase64Encoded"]))

    def _look(self, job: str) -> Any:
        match self.state(job):
            case None:
                return {"name": job}
            case True:
                uri = f"{self.address}/v1beta/files/{list(self.jobs).index(job)}:download?alt=media"
                samples = {"generateVideoResponse": {"generatedSamples": [{"video": {"uri": uri}}]}}
                return {"name": job, "done": True, "response": samples}
            case failure:
                return {"name": job, "done": True, **failure}


class FakeVertex(FakeVideos):
    MODEL = "projects/some-project/locations/us-central1/publishers/google/models/veo-3.1-generate-001"

    def job_name(self, number: int) -> str:
        return f"{self.MODEL}/operations/{number}-abc"

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        if request.headers.get("Authorization") != f"Bearer {self.KEY}":
            return reply(request, 401, {"error": {"code": 401, "message": "no", "status": "UNAUTHENTICATED"}})
        asked = json.loads(body)
        if request.path == f"/v1/{self.MODEL}:predictLongRunning":
            png = base64.b64decode(asked["instances"][0]["image"]["bytesBase64Encoded"])
            return self.send(request, "submit", lambda: {"name": self.begin(png)})
        assert request.path == f"/v1/{self.MODEL}:fetchPredictOperation"
        return self.send(request, "look", lambda: self._look(asked["operationName"]))

    def _look(self, job: str) -> Any:
        if self.state(job) is None:
            return {"name": job}
        video = {"bytesBase64Encoded": base64.b64encode(self.jobs[job]).decode(), "mimeType": "video/mp4"}
        return {"name": job, "done": True, "response": {"videos": [video]}}


class FakeStore(FakeService):
    """Where Kling's videos lie: another origin, which must never see a key."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        assert "Authorization" not in request.headers
        self.send(request, "download", lambda: self.files[request.path])


class FakeKling(FakeVideos):
    ACCESS, SECRET = "access-key-0123456789", "secret-key-0123456789"

    def __init__(self, videos: Mapping[bytes, bytes], store: FakeStore, looks: int = 1) -> None:
        super().__init__(videos, looks)
        self.store = store

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        if not self._is_signed(request.headers.get("Authorization", "")):
            return reply(request, 401, {"code": 1002, "message": f"bad token {request.headers.get('Authorization')}"})
        if request.command == "POST":
            assert request.path == "/v1/videos/image2video"
            return self.send(request, "submit", lambda: self._submit(json.loads(body)))
        return self.send(request, "look", lambda: self._look(request.path.rsplit("/", 1)[-1]))

    def _is_signed(self, header: str) -> bool:
        """A JSON web token as RFC 7519 has it, checked without the code under test."""
        head, claims, signature = header.removeprefix("Bearer ").split(".")
        wanted = hmac.new(self.SECRET.encode(), f"{head}.{claims}".encode(), hashlib.sha256).digest()
        given, now = json.loads(base64.urlsafe_b64decode(claims + "==")), time.time()
        return (
            base64.urlsafe_b64decode(signature + "==") == wanted
            and json.loads(base64.urlsafe_b64decode(head + "=="))["alg"] == "HS256"
            and given["iss"] == self.ACCESS
            and given["nbf"] < now < given["exp"] < now + 1801
        )

    def _submit(self, asked: Any) -> Any:
        assert asked["model_name"] == "kling-v3"
        assert asked["duration"] == "5"
        job = self.begin(base64.b64decode(asked["image"], validate=True))
        return {"code": 0, "data": {"task_id": job, "task_status": "submitted"}}

    def _look(self, job: str) -> Any:
        match self.state(job):
            case None:
                return {"code": 0, "data": {"task_id": job, "task_status": "processing"}}
            case True:
                path = f"/{job}.mp4?signature=of-this-url"
                self.store.files[path] = self.jobs[job]
                result = {"videos": [{"id": "v", "url": f"{self.store.address}{path}", "duration": "5"}]}
                return {"code": 0, "data": {"task_id": job, "task_status": "succeed", "task_result": result}}
            case failure:
                return {"code": 0, "data": {"task_id": job, "task_status": "failed", "task_status_msg": failure}}


class FakeChat(FakeService):
    """An OpenAI-compatible chat. solve: from the request's JSON to the text that it answers."""

    KEY = "sk-secret-0123456789"

    def __init__(self, solve: Callable[[Any], str]) -> None:
        super().__init__()
        self.solve = solve
        self.requests: list[Any] = []

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        if request.path != "/v1/chat/completions":
            return reply(request, 404, {"error": {"message": "no such path"}})
        if request.headers.get("Authorization") not in (None, f"Bearer {self.KEY}"):
            return reply(request, 401, {"error": {"message": f"Incorrect key {request.headers['Authorization']}"}})
        asked = json.loads(body)
        with self.lock:
            self.requests.append(asked)
        return self.send(request, "answer", lambda: self._chat(asked))

    def _chat(self, asked: Any) -> Any:
        message = {"role": "assistant", "content": self.solve(asked)}
        return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
