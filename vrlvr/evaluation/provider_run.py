"""One run of `vrlvr eval provider`: what is left to do, and each puzzle brought from a billed call to a video on disk."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vrlvr.atomic_write import replacing
from vrlvr.errors import UserError
from vrlvr.evaluation.benchmark import Item
from vrlvr.evaluation.http_api import ApiError, Busy, Refused, Unclear, Unsent
from vrlvr.evaluation.jobs import Entry, Ledger
from vrlvr.evaluation.patience import Patience
from vrlvr.evaluation.providers.system import Job, System, frame_for, png_of

MAX_DOWNLOAD_BYTES = 512 * 1024**2
DOWNLOADS = 4  # of a file that does not decode
_GONE = (404, 410)
_STATES = {"submitting": "unknown", "lost": "unknown", "failed": "failed", "rejected": "new"}


@dataclass(frozen=True)
class Run:
    """A run over puzzles. videos: their folder. decodes: tells whether a file is a whole video. max_looks: at a job, poll_s
    apart, before it is left to a later run.
    """

    service: System
    ledger: Ledger
    videos: Path
    decodes: Callable[[Path], bool]
    patience: Patience
    poll_s: float
    max_looks: int

    def path(self, item: Item) -> Path:
        """Of an item's video."""
        return self.videos / f"{item.id}.mp4"

    def state(self, item: Item) -> str:
        """done; failed, for good; waiting, as its job is known; unknown, whether it was billed or where it is; or new."""
        if self.path(item).exists():
            return "done"
        entry = self.ledger.entries.get(item.id)
        return "new" if entry is None else _STATES.get(entry.event, "waiting")

    def summary(self, items: Sequence[Item]) -> str:
        """How far everything is, in a line."""
        states = {item.id: self.state(item) for item in items}
        counts = Counter(states.values())
        unknown = [name for name, state in states.items() if state == "unknown"]
        names = f" ({', '.join(unknown[:8])}{', ...' if len(unknown) > 8 else ''})" if unknown else ""
        return (
            f"{counts['done']} of {len(items)} videos are there, {counts['failed']} failed for good, "
            f"{counts['waiting']} under way, {counts['unknown']} unknown{names}, {counts['new']} not asked for"
        )

    def check(self, items: Sequence[Item]) -> None:
        """Raises UserError where the ledger tells of another request: the same id of another data set, model or length."""
        for item in items:
            entry = self.ledger.entries.get(item.id)
            if entry is not None and entry.event != "rejected" and entry.request != self.request(item):
                raise UserError(
                    f"{self.videos.parent} holds a video of {item.id} made from another first frame, prompt, model or length; "
                    "repeat the former options or choose another --out"
                )

    def request(self, item: Item) -> str:
        """A hash of all that an item is asked with."""
        asked = [self.service.NAME, self.service.model, str(self.service.seconds), item.prompt]
        return hashlib.sha256("\0".join(asked).encode() + b"\0" + png_of(item.first_frame)).hexdigest()

    def fetch(self, item: Item) -> None:
        """Looks after a job that is known and gets its video, which costs nothing however often it is tried."""
        self._guarded(item, lambda: self._fetch(item, self.ledger.entries[item.id]))

    def submit(self, item: Item) -> None:
        """Asks for a video, which is billed, and then looks after it."""
        self._guarded(item, lambda: self._fetch(item, self._submit(item)))

    def _guarded(self, item: Item, work: Callable[[], None]) -> None:
        """Raises UserError for what would go wrong with every other item too; leaves the rest to the next run."""
        try:
            work()
        except (Refused, Unsent) as error:
            raise UserError(
                f"{item.id}: {error}; correct that (key, credit, --model, --base_url, network) and repeat the command, which "
                "goes on from here"
            ) from None
        except ApiError:
            return  # the ledger holds how far it got, and the summary counts it

    def _submit(self, item: Item) -> Entry:
        """Makes the billed call, and once more whenever the service did nothing. Any other trouble leaves it unknown."""
        image_png = frame_for(item.first_frame)
        entry = Entry(item.id, "submitting", self.request(item))

        def call() -> Entry:
            self.ledger.write(entry)
            try:
                after = replace(entry, event="submitted", job=self.service.submit(item.prompt, image_png))
            except (Unsent, Busy) as error:
                self.ledger.write(replace(entry, event="rejected", note=str(error)))
                raise
            except Refused as error:
                refusal = self.service.is_refusal(error)
                after = replace(entry, event="failed" if refusal else "rejected", note=str(error))
                self.ledger.write(after)
                if not refusal:
                    raise
                return after
            self.ledger.write(after)
            return after

        return self.patience.retry(call, (Unsent, Busy))

    def _fetch(self, item: Item, entry: Entry) -> None:
        if entry.job is None:  # refused for what it shows
            return
        try:
            job = self._ended(entry.job)
            if job.failure is not None:
                self.ledger.write(replace(entry, event="failed", note=job.failure))
            elif job != Job():
                self._keep(item, entry, job)
        except Refused as error:
            if error.status not in _GONE:
                raise
            self.ledger.write(replace(entry, event="lost", note=str(error)))

    def _ended(self, job: str) -> Job:
        """What became of a job: nothing yet, if that is so after max_looks."""
        for _ in range(self.max_looks - 1):
            seen = self.patience.retry(lambda: self.service.look(job), (Unsent, Busy, Unclear))
            if seen != Job():
                return seen
            self.patience.wait(self.poll_s)
        return self.patience.retry(lambda: self.service.look(job), (Unsent, Busy, Unclear))

    def _keep(self, item: Item, entry: Entry, job: Job) -> None:
        """Puts the video under its name once it is whole."""
        with replacing(self.path(item)) as partial:
            digest = self._whole(job, partial)
            size = partial.stat().st_size
        self.ledger.write(replace(entry, event="finished", note=f"{size} bytes, sha256 {digest}"))

    def _whole(self, job: Job, path: Path) -> str:
        """Writes a video that decodes, and gives its hash. One that comes twice the same is what the service made, readable or
        not: the scorer counts it as undecodable. Raises Unclear if it comes otherwise every time.
        """
        former = ""
        for _ in range(DOWNLOADS):
            self.patience.retry(lambda: self._get(job, path), (Unsent, Busy, Unclear))
            digest = _digest(path)
            if self.decodes(path) or digest == former:
                return digest
            former = digest
        raise Unclear(f"{self.service.api.host} sends another broken file every time")

    def _get(self, job: Job, path: Path) -> None:
        if job.video is not None:
            path.write_bytes(job.video)
        else:
            self.service.api.download(job.url or "", path, MAX_DOWNLOAD_BYTES)


def _digest(path: Path) -> str:
    """Of a file, which is on disk afterwards."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
