"""Kling by its open platform: POST /v1/videos/image2video, GET /v1/videos/image2video/{task_id}.

https://app.klingai.com/global/dev/document-api. A request is signed by a JSON web token of half an hour (RFC 7519, HS256),
made of KLING_ACCESS_KEY and KLING_SECRET_KEY; newer accounts have one key instead, KLING_API_KEY, which is sent as it is.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from vrlvr.evaluation.http_api import Api, Busy, Refused, Unclear, key_from, part
from vrlvr.evaluation.providers.system import Job, job_id

_BASE = "https://api-singapore.klingai.com"
_PATH = "v1/videos/image2video"
_CONTENT_POLICY = frozenset(("1300", "1301"))


class Kling:
    """A `System`."""

    NAME: ClassVar[str] = "Kling V3"
    MODEL: ClassVar[str] = "kling-v3"
    LENGTHS: ClassVar[tuple[int, ...]] = tuple(range(3, 16))
    LENGTH: ClassVar[int] = 5

    def __init__(self, environment: Mapping[str, str], base_url: str | None, model: str | None, seconds: int) -> None:
        if "KLING_API_KEY" in environment:
            key = key_from(environment, "KLING_API_KEY")
            self.api = Api(base_url or _BASE, lambda: {"Authorization": f"Bearer {key}"}, (key,))
        else:
            access, secret = key_from(environment, "KLING_ACCESS_KEY"), key_from(environment, "KLING_SECRET_KEY")
            self.api = Api(
                base_url or _BASE,
                lambda: {"Authorization": f"Bearer {token(access, secret, int(time.time()))}"},
                (access, secret),
            )
        self.model, self.seconds = model or self.MODEL, seconds

    def submit(self, prompt: str, image_png: bytes) -> str:
        body = {
            "model_name": self.model,
            "image": base64.b64encode(image_png).decode(),  # without a data: prefix
            "prompt": prompt,
            "duration": str(self.seconds),
            "mode": "std",
            "sound": "off",
        }
        return job_id(self.api, part(self._data(self.api.call("POST", _PATH, body)), "task_id"))

    def look(self, job: str) -> Job:
        data = self._data(self.api.call("GET", f"{_PATH}/{job}"))
        match part(data, "task_status"):
            case "succeed":
                url = part(data, "task_result", "videos", 0, "url")
                return Job(url=url) if isinstance(url, str) else Job(failure="succeeded without a video")
            case "failed":
                return Job(failure=self.api.clean(f"failed: {part(data, 'task_status_msg')}"))
        return Job()

    def is_refusal(self, error: Refused) -> bool:
        return bool(error.codes & _CONTENT_POLICY)

    def _data(self, reply: Any) -> Any:
        """What a reply is about. Raises Refused where an error comes with status 200."""
        code = part(reply, "code")
        if code == 0:
            return part(reply, "data")
        if not isinstance(code, int):
            raise Unclear(f"{self.api.host} answered without a code")
        note = self.api.clean(f"{self.api.host} answered {code} {part(reply, 'message')}")
        if code in (1302, 1303, 5001):  # too many requests, too many jobs, not available
            raise Busy(note)
        if code >= 5000:
            raise Unclear(note)
        raise Refused(note, 200, frozenset((str(code),)))


def token(access_key: str, secret_key: str, now: int) -> str:
    """The token of a request made at `now`, in Unix seconds."""
    head = {"alg": "HS256", "typ": "JWT"}
    claims = {"iss": access_key, "exp": now + 1800, "nbf": now - 5}
    signed = b".".join(_base64url(json.dumps(piece, separators=(",", ":")).encode()) for piece in (head, claims))
    signature = hmac.new(secret_key.encode(), signed, hashlib.sha256).digest()
    return (signed + b"." + _base64url(signature)).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
