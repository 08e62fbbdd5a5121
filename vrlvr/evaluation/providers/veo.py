"""Veo 3.1 by Google's long-running predictions, at either of the two places that offer or offered it.

- Vertex AI (now part of Gemini Enterprise Agent Platform), if GOOGLE_OAUTH_ACCESS_TOKEN is set, as by
  `gcloud auth print-access-token`: POST MODEL:predictLongRunning, POST MODEL:fetchPredictOperation; the video comes in the
  answer. Project and place: GOOGLE_CLOUD_PROJECT, GOOGLE_CLOUD_LOCATION.
  https://docs.cloud.google.com/vertex-ai/generative-ai/docs/model-reference/veo-video-generation
- Gemini API, with GEMINI_API_KEY: POST models/MODEL:predictLongRunning, GET OPERATION; the video lies at an address.
  https://ai.google.dev/gemini-api/docs/video. Google closed its Veo 3.1 models there on 2026-10-22.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from vrlvr.errors import UserError
from vrlvr.evaluation.http_api import Api, Refused, Unclear, key_from, part
from vrlvr.evaluation.providers.system import Job, job_id, size_of

_UNSAFE = re.compile(r"safety|responsible ai|usage guidelines|prohibited|violat", re.IGNORECASE)
_PLACE = re.compile(r"[a-z][\w-]*(?::[a-z][\w-]*)?", re.ASCII)  # projects may be `domain:name`


class Veo:
    """A `System`."""

    NAME: ClassVar[str] = "Veo 3.1"
    MODEL: ClassVar[str] = "veo-3.1-generate-preview"
    LENGTHS: ClassVar[tuple[int, ...]] = (4, 6, 8)
    LENGTH: ClassVar[int] = 6

    def __init__(self, environment: Mapping[str, str], base_url: str | None, model: str | None, seconds: int) -> None:
        self._on_vertex = "GOOGLE_OAUTH_ACCESS_TOKEN" in environment
        self.model, self.seconds = model or ("veo-3.1-generate-001" if self._on_vertex else self.MODEL), seconds
        if not self._on_vertex:
            key = key_from(environment, "GEMINI_API_KEY")
            base = base_url or "https://generativelanguage.googleapis.com/v1beta"
            self.api = Api(base, lambda: {"x-goog-api-key": key}, (key,))
            self._path = f"models/{self.model}"
            return
        token = key_from(environment, "GOOGLE_OAUTH_ACCESS_TOKEN")
        project, place = (
            environment.get("GOOGLE_CLOUD_PROJECT", ""),
            environment.get("GOOGLE_CLOUD_LOCATION", "us-central1"),
        )
        if not _PLACE.fullmatch(project) or not _PLACE.fullmatch(place):
            raise UserError("GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_LOCATION must name a project and a region; set them")
        base = base_url or f"https://{place}-aiplatform.googleapis.com/v1"
        self.api = Api(base, lambda: {"Authorization": f"Bearer {token}"}, (token,))
        self._path = f"projects/{project}/locations/{place}/publishers/google/models/{self.model}"

    def submit(self, prompt: str, image_png: bytes) -> str:
        width, height = size_of(image_png)
        image = {"bytesBase64Encoded": base64.b64encode(image_png).decode(), "mimeType": "image/png"}
        parameters: dict[str, Any] = {
            "aspectRatio": "16:9" if width > height else "9:16",
            "durationSeconds": self.seconds,
            "resolution": "720p",
        }
        if self._on_vertex:
            parameters |= {"generateAudio": False, "sampleCount": 1}
        body = {"instances": [{"prompt": prompt, "image": image}], "parameters": parameters}
        return job_id(self.api, part(self.api.call("POST", f"{self._path}:predictLongRunning", body), "name"))

    def look(self, job: str) -> Job:
        if self._on_vertex:
            reply = self.api.call("POST", f"{self._path}:fetchPredictOperation", {"operationName": job})
        else:
            reply = self.api.call("GET", job)
        if part(reply, "done") is not True:
            return Job()
        if (error := part(reply, "error")) is not None:
            return Job(failure=self.api.clean(f"failed: {part(error, 'code')} {part(error, 'message')}"))
        answer = part(reply, "response") if self._on_vertex else part(reply, "response", "generateVideoResponse")
        video = part(answer, "videos", 0) if self._on_vertex else part(answer, "generatedSamples", 0, "video")
        if isinstance(url := part(video, "uri"), str):
            return Job(url=url)
        if isinstance(data := part(video, "bytesBase64Encoded"), str):
            return Job(video=self._decoded(data))
        reasons = part(answer, "raiMediaFilteredReasons") or "no reason given"
        return Job(failure=self.api.clean(f"no video: {reasons}"))

    def is_refusal(self, error: Refused) -> bool:
        return error.status == 400 and bool(_UNSAFE.search(str(error)))

    def _decoded(self, data: str) -> bytes:
        try:
            return base64.b64decode(data, validate=True)
        except (ValueError, binascii.Error):
            raise Unclear(f"{self.api.host} sent a video that is no base64") from None
