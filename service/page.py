"""The page for people, on the port of the metrics: the file itself, and what it asks for beside /metrics.

It has no cookies and keeps no token: what it asks of the models carries the token that was typed into it, or none. A
browser can be made to ask by other sites; those are told by Origin, and by a Host that nobody but a site of its own
would have (DNS rebinding).
"""

from __future__ import annotations

import base64
import hashlib
import html
import ipaddress
import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from wsgiref.util import FileWrapper

import grpc

from service import security, status
from service.client import to_client_error
from service.config import Settings
from service.gateway import REPORT_FILE, Caller, Gateway, describe

_PICTURES = 4  # that are received or classified at once
_UPLOAD_SECONDS = 30.0  # for a picture to arrive
_DISCARD_SECONDS = 3.0  # for the rest of one that was refused
_PIECE = 1 << 16  # bytes
_MODEL = re.compile(r"/models/([^/]+)/([1-9][0-9]{0,17})/(report\.html|samples)")
_COMMON = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
_NOTHING = "default-src 'none'; frame-ancestors 'none'"
# Trusted as far as the repository is: it may look as it likes, and do nothing.
_REPORT_POLICY = f"sandbox; {_NOTHING}; img-src data:; style-src 'unsafe-inline'"
_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: "400 Bad Request",
    grpc.StatusCode.UNAUTHENTICATED: "401 Unauthorized",
    grpc.StatusCode.PERMISSION_DENIED: "403 Forbidden",
    grpc.StatusCode.NOT_FOUND: "404 Not Found",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "429 Too Many Requests",
    grpc.StatusCode.CANCELLED: "503 Service Unavailable",
    grpc.StatusCode.UNAVAILABLE: "503 Service Unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "504 Gateway Timeout",
}
Start = Callable[..., Any]


class _Refused(Exception):
    def __init__(self, http_status: str, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.headers = headers


class Page:
    """A WSGI application, for the paths that `handles` names. Its calls come on many threads."""

    def __init__(self, settings: Settings, grpc_port: int) -> None:
        self._gateway = Gateway(settings, grpc_port)
        self._most_bytes = settings.max_message_bytes
        self._no_calls = security.why_no_calls_over_http(settings)
        self._needs_token = bool(settings.token_file)
        self._places = threading.BoundedSemaphore(_PICTURES)
        self._html, self._policy = _read_page(
            needs_token=self._needs_token,
            no_calls=self._no_calls,
            most_bytes=self._most_bytes,
            merged=settings.workers > 1,
        )

    @staticmethod
    def handles(path: str) -> bool:
        return path in ("/", "/models", "/classify") or path.startswith("/models/")

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        upload = _Upload(environ)
        try:
            return self._answer(environ, start, upload)
        except grpc.RpcError as error:
            refused = _of_call(error)
        except _Refused as error:
            refused = error
        except Exception as error:
            refused = _Refused("500 Internal Server Error", status.from_error(error).message)
        return upload.discarded_after(_json(start, refused.http_status, {"error": str(refused)}, *refused.headers))

    def _answer(self, environ: dict[str, Any], start: Start, upload: _Upload) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        methods = ("POST",) if path == "/classify" else ("GET", "HEAD")
        if environ["REQUEST_METHOD"] not in methods:
            raise _Refused("405 Method Not Allowed", f"{methods[0]} only", ("Allow", ", ".join(methods)))
        if path == "/":
            return _document(start, [self._html], self._policy)
        self._guard(environ)
        with self._gateway.connected(_authorization(environ)) as caller:
            if path == "/classify":
                return _json(start, "200 OK", self._classify(caller, environ, upload))
            if path == "/models":
                found = [describe(model, self._gateway.has_report(model)) for model in caller.models()]
                return _json(start, "200 OK", {"models": found})
            asked = _MODEL.fullmatch(path)
            if asked is None:
                raise _Refused("404 Not Found", "there is no such page")
            # Whether it is served, and whether this caller may ask, the server says; the name is then the server's own.
            model = caller.model(asked[1], int(asked[2]))
        if asked[3] == "samples":
            return _json(start, "200 OK", {"samples": self._gateway.samples(model)})
        report = self._gateway.report(model)
        if report is None:
            raise _Refused("404 Not Found", f"{model.name} version {model.version} has no {REPORT_FILE}")
        return _document(start, FileWrapper(report, _PIECE), _REPORT_POLICY)

    def _classify(self, caller: Caller, environ: dict[str, Any], upload: _Upload) -> dict[str, Any]:
        # The token is looked at here, before the picture is read.
        model = caller.model(*_wanted(environ))
        if not self._places.acquire(blocking=False):
            problem = f"{_PICTURES} pictures are at work: try again"
            raise _Refused("503 Service Unavailable", problem, ("Retry-After", "1"))
        try:
            return caller.classify(model, upload.read(self._most_bytes))
        finally:
            self._places.release()

    def _guard(self, environ: dict[str, Any]) -> None:
        """Refuse what must not go to the models over this port, and what another site has made a browser ask."""
        if self._no_calls:
            raise _Refused("403 Forbidden", self._no_calls)
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise _Refused("403 Forbidden", f"asked by a page of {origin}, not of {host}")
        if not self._needs_token and _may_be_rebound(host):
            raise _Refused(
                "403 Forbidden", f"without a token_file this answers to an address or localhost, not to {host}"
            )


class _Upload:
    """The body of a request, and what is still to come of it."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._stream = environ["wsgi.input"]
        length = environ.get("CONTENT_LENGTH", "")
        self._length = int(length) if length.isascii() and length.isdigit() and len(length) < 16 else None
        self._left = self._length or 0

    def read(self, most: int) -> bytes:
        """All of it. Raises _Refused: no length, longer than `most` bytes, too slow, or not whole."""
        if self._length is None:
            raise _Refused("411 Length Required", "the picture must come as the body, with its Content-Length")
        if self._length > most:
            raise _Refused(
                "413 Content Too Large", f"the picture is {self._length} bytes, the limit is {most} (max_message_bytes)"
            )
        pieces = self._pieces(time.monotonic() + _UPLOAD_SECONDS)
        content = b"".join(pieces)
        if self._left:
            raise _Refused("408 Request Timeout", f"{self._left} bytes of the picture did not come")
        return content

    def discarded_after(self, reply: Iterable[bytes]) -> Iterable[bytes]:
        """`reply`, and then what is left is received and dropped: a sender that is cut off may never read the reply."""
        yield from reply
        for _piece in self._pieces(time.monotonic() + _DISCARD_SECONDS):
            pass

    def _pieces(self, ends: float) -> Iterable[bytes]:
        """Until nothing is left, nothing comes, or time is up; the socket's own time-out bounds the wait for one."""
        while self._left and time.monotonic() < ends:
            try:
                piece = self._stream.read1(min(_PIECE, self._left))
            except OSError:
                return
            if not piece:
                return
            self._left -= len(piece)
            yield piece


def _read_page(**values: object) -> tuple[bytes, str]:
    """page.html with what it must know of the server, and the policy that lets only its own script and style in."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    for name, value in values.items():
        attribute = "data-" + name.replace("_", "-")
        text = text.replace(f'{attribute}=""', f'{attribute}="{html.escape(str(value))}"', 1)
    allowed = {}
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        allowed[tag] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    policy = (
        f"{_NOTHING}; script-src 'sha256-{allowed['script']}'; style-src 'sha256-{allowed['style']}';"
        " connect-src 'self'; img-src data: blob:; base-uri 'none'; form-action 'none';"
        " require-trusted-types-for 'script'"
    )
    return text.encode(), policy


def _authorization(environ: dict[str, Any]) -> str:
    given: str = environ.get("HTTP_AUTHORIZATION", "")
    if not (given.isascii() and given.isprintable()):
        raise _Refused("401 Unauthorized", "the header Authorization must be: Bearer TOKEN")
    return given


def _wanted(environ: dict[str, Any]) -> tuple[str, int]:
    """Model and version of the query, empty and 0 where it has none."""
    query = parse_qs(environ.get("QUERY_STRING", ""))
    name, version = (query.get(key, [""])[-1] for key in ("model", "version"))
    if not re.fullmatch(r"[0-9]{0,18}", version):
        raise _Refused("400 Bad Request", f"version: {version!r} is not a number")
    return name, int(version or 0)


def _may_be_rebound(host: str) -> bool:
    """Whether somebody else's name server could have given this name to our address."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        ipaddress.ip_address(name)
    except ValueError:
        return "." in host
    return False


def _of_call(failure: grpc.RpcError) -> _Refused:
    error = to_client_error(failure)
    http_status = _STATUS.get(error.code, "500 Internal Server Error")
    headers = []
    if error.code is grpc.StatusCode.UNAUTHENTICATED:
        headers.append(("WWW-Authenticate", "Bearer"))
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if error.retry_after is None:  # gRPC's own, of a message beyond the limit
            http_status = "413 Content Too Large"
        else:
            headers.append(("Retry-After", str(max(1, round(error.retry_after)))))
    return _Refused(http_status, error.message.replace("images[0].encoded:", "this file"), *headers)


def _document(start: Start, content: Iterable[bytes], policy: str) -> Iterable[bytes]:
    start("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", policy), *_COMMON])
    return content


def _json(start: Start, http_status: str, content: Any, *headers: tuple[str, str]) -> Iterable[bytes]:
    body = json.dumps(content).encode()
    own = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start(http_status, [*own, ("Content-Security-Policy", _NOTHING), *_COMMON, *headers])
    return [body]
