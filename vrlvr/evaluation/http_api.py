"""Calls to billed services over HTTPS, by the standard library: one code path for every service, and for the tests' server.

Keys travel in a header to the service's own origin and nowhere else: not along redirects, not to where a result lies, not
into an error's text. What a service answers is as hostile as any file: its size is limited, and of its words one line is kept.
"""

import http.client
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from vrlvr.errors import UserError

MAX_REPLY_BYTES = 256 * 1024**2  # some services put the video into their JSON
MAX_ERROR_BYTES = 64 * 1024
MAX_NOTE = 300  # characters kept of what a service says
_LOCAL = ("localhost", "127.0.0.1", "::1")
_TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*|(?<=Bearer )\S+")
# What a service says with 429 where waiting does not help: no money, no right (OpenAI; Kling's numbers).
_HOPELESS = frozenset(("insufficient_quota", "billing_hard_limit_reached", "1100", "1101", "1102", "1304"))


class ApiError(Exception):
    """A call that brought no result. Its text is one line, without any key."""

    def __init__(self, note: str, retry_after_s: float | None = None) -> None:
        super().__init__(note)
        self.retry_after_s = retry_after_s


class Unsent(ApiError):
    """The service was not reached."""


class Busy(ApiError):
    """The service refused for now and did nothing: 429, or a 503 that is its own (with a reason or Retry-After)."""


class Unclear(ApiError):
    """Whether the service did what it was asked cannot be told: the answer is lost, unreadable or a server error."""


class Failing(Unclear):
    """The service itself answered with a server error: most likely it did not do what it was asked."""


class Refused(ApiError):
    """The service refused for good. codes: the names and numbers that it gave its reason."""

    def __init__(self, note: str, status: int, codes: frozenset[str]) -> None:
        super().__init__(note)
        self.status, self.codes = status, codes


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Hands every reply to the caller, redirects and errors included."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response

    https_response = http_response


@dataclass(frozen=True)
class Api:
    """A service. headers: made anew for every request, as some hold a token of short life. secrets: the keys in use."""

    base_url: str
    headers: Callable[[], Mapping[str, str]]
    secrets: tuple[str, ...]
    timeout_s: float = 180.0

    def __post_init__(self) -> None:
        if (
            any(mark in self.base_url for mark in "?#@ ") or not self.base_url.isprintable()
        ):  # not shown: it may hold a key
            raise UserError(
                "base_url must be an address alone, without blanks, a user, a query or a fragment; leave those out"
            )
        if not _is_safe(self.base_url, local=True):
            raise UserError(
                f"base_url={self.base_url!r} must begin with https:// (http:// for localhost only); a key is sent there"
            )

    @property
    def host(self) -> str:
        """The service's name in messages."""
        return urlsplit(self.base_url).netloc

    def call(self, method: str, path: str, body: Any = None, form: tuple[str, bytes] | None = None) -> Any:
        """The JSON that the service answers. body: of JSON. form: a content type and a body of that, instead.

        Raises an ApiError of the kinds above.
        """
        data = None if body is None else json.dumps(body).encode()
        content_type, data = form or ("application/json", data)
        headers = {**self.headers(), "Content-Type": content_type}
        with self._open(method, f"{self.base_url.rstrip('/')}/{path}", headers, data) as response:
            if not 200 <= response.status < 300:
                raise self._error(response)
            text = b"".join(self._chunks(response, MAX_REPLY_BYTES, self.timeout_s))
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise Unclear(f"{self.host} answered something that is no JSON") from None

    def download(self, url: str, path: Path, max_bytes: int, timeout_s: float = 1800.0) -> None:
        """Writes what lies at `url` to `path`, whole. The key goes along only if it lies at the service itself.

        Raises an ApiError where it is out of reach, refused, cut off, larger than max_bytes, or not over https.
        """
        for hop in range(6):
            if not _is_safe(url, local=urlsplit(self.base_url).hostname in _LOCAL):
                raise Refused(f"{self.host} gave an address that is not https", 0, frozenset())
            at_home = hop == 0 and _origin(url) == _origin(self.base_url)
            with self._open("GET", url, self.headers() if at_home else {}, None) as response:
                if response.status in (301, 302, 303, 307, 308):
                    url = _joined(url, response.headers.get("Location", ""))
                    continue
                if response.status != 200:
                    raise self._error(response)
                with path.open("wb") as file:
                    for chunk in self._chunks(response, max_bytes, timeout_s):
                        file.write(chunk)
                    if not file.tell():
                        raise Unclear(f"{self.host} sent an empty file")
                return
        raise Refused(f"{self.host} redirects without end", 0, frozenset())

    def clean(self, text: object) -> str:
        """What a service says, as one line of limited length without keys."""
        line = " ".join(_TOKEN.sub("[key]", self.without_keys(str(text))).split())
        return "".join(letter for letter in line if letter.isprintable())[:MAX_NOTE]

    def without_keys(self, text: str) -> str:
        """A text from the service, in which it may have put what it was sent."""
        for secret in self.secrets:
            text = text.replace(secret, "[key]")
        return text

    def _open(self, method: str, url: str, headers: Mapping[str, str], data: bytes | None) -> Any:
        request = urllib.request.Request(url, data, dict(headers), method=method)
        is_local = urlsplit(url).hostname in _LOCAL
        proxies = urllib.request.ProxyHandler({} if is_local else None)
        try:
            return urllib.request.build_opener(_AnyStatus, proxies).open(request, timeout=self.timeout_s)
        except urllib.error.URLError as error:
            reason = error.reason
            unsent = isinstance(reason, ConnectionRefusedError | socket.gaierror | ssl.SSLCertVerificationError)
            raise (Unsent if unsent else Unclear)(self.clean(f"{self.host}: {reason}")) from None
        except (OSError, ValueError, http.client.HTTPException) as error:  # whose text may hold a signed address
            raise Unclear(f"{self.host}: {type(error).__name__}") from None

    def _chunks(self, response: Any, max_bytes: int, timeout_s: float) -> Iterator[bytes]:
        """The body, piece by piece. Raises Unclear if it is cut off, too large or too slow."""
        announced, size, deadline = response.headers.get("Content-Length"), 0, time.monotonic() + timeout_s
        try:
            while chunk := response.read1(1 << 16):
                size += len(chunk)
                if size > max_bytes:
                    raise Unclear(f"{self.host} sends more than {max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise Unclear(f"{self.host} sends for more than {timeout_s:.0f} seconds")
                yield chunk
        except (OSError, http.client.HTTPException) as error:
            raise Unclear(self.clean(f"{self.host}: {type(error).__name__} after {size} bytes")) from None
        if announced is not None and announced != str(size):
            raise Unclear(self.clean(f"{self.host} sent {size} of {announced} bytes"))

    def _error(self, response: Any) -> ApiError:
        status = response.status
        try:
            text = b"".join(self._chunks(response, MAX_ERROR_BYTES, self.timeout_s)).decode(errors="replace")
        except Unclear:
            text = ""
        message, codes = _reason(text)
        note = self.clean(f"{self.host} answered {status} {message}")
        retry_after_s = _retry_after(response.headers.get("Retry-After"))
        its_own = status == 429 or (status == 503 and (codes or retry_after_s is not None))  # else a gateway's
        if its_own and not codes & _HOPELESS:
            return Busy(note, retry_after_s)
        if status in (408, 425, 504):  # it may be working still
            return Unclear(note, retry_after_s)
        if status >= 500:
            return Failing(note, retry_after_s)
        return Refused(note, status, codes)


def key_from(environment: Mapping[str, str], variable: str) -> str:
    """A key of the environment. Raises UserError if it is not set, or holds what no header can."""
    key = environment.get(variable, "").strip()
    if not key:
        raise UserError(f"{variable} is not set; put the service's key into this environment variable")
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{variable} holds no key: 8 or more visible ASCII characters are needed; copy it again")
    return key


def part(value: Any, *path: str | int) -> Any:
    """value[path[0]][path[1]]..., or None where an answer is not as deep as documented."""
    for step in path:
        if isinstance(value, dict) and isinstance(step, str):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and len(value) > step:
            value = value[step]
        else:
            return None
    return value


def _reason(text: str) -> tuple[str, frozenset[str]]:
    """The message and codes of an error's body, in any of {"error": {...}}, [{"error": {...}}] and {"code": ..., ...}."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text, frozenset()
    error = part(body, "error") or part(body, 0, "error") or body
    codes = {part(error, name) for name in ("code", "type", "status")}
    words = {str(code) for code in codes if isinstance(code, str | int)}
    return " ".join([*sorted(words), str(part(error, "message") or "")]), frozenset(words)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which gives seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _is_safe(url: str, local: bool) -> bool:
    """Whether a URL is https, or, where `local` allows that, http to this machine."""
    try:
        parts = urlsplit(url)
        on_this_machine = local and parts.scheme == "http" and parts.hostname in _LOCAL
        return bool(parts.hostname) and (parts.port or 1) > 0 and (parts.scheme == "https" or on_this_machine)
    except ValueError:
        return False


def _joined(url: str, location: str) -> str:
    """Where a redirect leads; nowhere, if that is no address."""
    try:
        return urljoin(url, location)
    except ValueError:
        return ""


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)
