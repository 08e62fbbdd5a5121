"""What a hosted video system is to the rest: jobs that are submitted, looked after and fetched; and the image that it gets."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from PIL import Image

from vrlvr.errors import UserError
from vrlvr.evaluation.http_api import Api, Refused, Unclear
from vrlvr.evaluation.jobs import is_job
from vrlvr.evaluation.letterbox import fit

SHORT_SIDE, LONG_SIDE = 720, 1280  # pixels; every system here takes and makes this size
MAX_IMAGE_SIDE = 4096
MAX_PNG_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class Job:
    """What a service says of a job: nothing yet, where the video is (or the video itself), or why there will be none."""

    url: str | None = None
    video: bytes | None = None
    failure: str | None = None


class System(Protocol):
    """A hosted system. NAME: as in the published tables. LENGTHS: of videos, in seconds. LENGTH: the shortest of them that
    lasts as long as the planner's videos, 5 s.
    """

    NAME: ClassVar[str]
    MODEL: ClassVar[str]
    LENGTHS: ClassVar[tuple[int, ...]]
    LENGTH: ClassVar[int]
    api: Api
    model: str
    seconds: int

    def submit(self, prompt: str, image_png: bytes) -> str:
        """Asks for a video, which is billed, and gives the job's id. Raises an ApiError."""
        ...

    def look(self, job: str) -> Job:
        """What became of a job. Raises an ApiError."""
        ...

    def is_refusal(self, error: Refused) -> bool:
        """Whether a `submit` was refused for what the puzzle shows or says, and not for how it was asked."""
        ...


def job_id(api: Api, job: object) -> str:
    """A job's id as the service gave it. Raises Unclear if it is none that can be kept: what was submitted is then lost."""
    if not isinstance(job, str) or not is_job(job) or api.clean(job) != job:
        raise Unclear(f"{api.host} accepted a job without saying a proper id")
    return job


def png_of(first_frame: Path) -> bytes:
    """A first frame's file as it is. Raises UserError if it cannot be read or is far too large."""
    try:
        with first_frame.open("rb") as file:
            png = file.read(MAX_PNG_BYTES + 1)
    except OSError as error:
        raise UserError(f"{first_frame} cannot be read ({error.strerror}); make the data set again") from error
    if len(png) > MAX_PNG_BYTES:
        raise UserError(f"{first_frame} is larger than {MAX_PNG_BYTES} bytes; make the data set again")
    return png


def frame_for(first_frame: Path) -> bytes:
    """A first frame as a PNG of 1280x720 (720x1280 if it is upright): all of it, the boards' background beside it.

    Raises UserError if the file is no PNG of a sane size.
    """
    try:
        with Image.open(io.BytesIO(png_of(first_frame)), formats=["PNG"]) as image:
            size = image.size
            picture = image.convert("RGB") if max(size) <= MAX_IMAGE_SIDE else None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{first_frame} cannot be read as a PNG ({error}); make the data set again") from error
    if picture is None:
        raise UserError(f"{first_frame} has {size[0]}x{size[1]} pixels; at most {MAX_IMAGE_SIDE} a side are sent")
    height, width = (LONG_SIDE, SHORT_SIDE) if picture.height > picture.width else (SHORT_SIDE, LONG_SIDE)
    frame, _ = fit(picture, height, width)
    png = io.BytesIO()
    frame.save(png, "PNG", compress_level=1)
    return png.getvalue()


def size_of(image_png: bytes) -> tuple[int, int]:
    """Width and height of what `frame_for` made."""
    with Image.open(io.BytesIO(image_png), formats=["PNG"]) as image:
        return image.size
