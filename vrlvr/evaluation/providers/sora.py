"""Sora 2 by OpenAI's Videos API: POST /v1/videos, GET /v1/videos/{id}, GET /v1/videos/{id}/content.

https://developers.openai.com/api/docs/guides/video-generation. OpenAI announced the end of this API for 2026-09-24.
"""

import secrets
from collections.abc import Mapping
from typing import ClassVar

from vrlvr.evaluation.http_api import Api, Refused, key_from, part
from vrlvr.evaluation.providers.system import Job, job_id, size_of

_MODERATED = ("moderation", "content_policy", "safety", "sentinel")


class Sora:
    """A `System`. Its key is OPENAI_API_KEY."""

    NAME: ClassVar[str] = "Sora 2"
    MODEL: ClassVar[str] = "sora-2"
    LENGTHS: ClassVar[tuple[int, ...]] = (4, 8, 12)
    LENGTH: ClassVar[int] = 8

    def __init__(self, environment: Mapping[str, str], base_url: str | None, model: str | None, seconds: int) -> None:
        key = key_from(environment, "OPENAI_API_KEY")
        base = base_url or "https://api.openai.com/v1"
        self.api = Api(base, lambda: {"Authorization": f"Bearer {key}"}, (key,))
        self.model, self.seconds = model or self.MODEL, seconds

    def submit(self, prompt: str, image_png: bytes) -> str:
        """A multipart form, as the API documents it; the image must have the video's size."""
        width, height = size_of(image_png)
        fields = {"model": self.model, "prompt": prompt, "size": f"{width}x{height}", "seconds": str(self.seconds)}
        reply = self.api.call("POST", "videos", form=_form(fields, "input_reference", image_png))
        return job_id(self.api, part(reply, "id"))

    def look(self, job: str) -> Job:
        reply = self.api.call("GET", f"videos/{job}")
        match part(reply, "status"):
            case "completed":
                return Job(url=f"{self.api.base_url.rstrip('/')}/videos/{job}/content")
            case "failed" | "cancelled":
                reason = [part(reply, "error", name) or "" for name in ("code", "message")]
                return Job(failure=self.api.clean("failed: {} {}".format(*reason)))
        return Job()

    def is_refusal(self, error: Refused) -> bool:
        return error.status == 400 and any(mark in code for code in error.codes for mark in _MODERATED)


def _form(fields: Mapping[str, str], name: str, png: bytes) -> tuple[str, bytes]:
    """A multipart/form-data body with one PNG file (RFC 7578): its content type and itself."""
    boundary = secrets.token_hex(16)
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in fields.items()
    )
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="first_frame.png"\r\n'
    body = head.encode() + b"Content-Type: image/png\r\n\r\n" + png + f"\r\n--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}", body
