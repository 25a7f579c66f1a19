"""Ways to ask one target one thing and wait for the answer: a gRPC call, a place in a gRPC stream, an HTTP POST.

Each has `call(message)`, which returns when the answer is good and raises Refused when it is an error, and `close()`.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import tempfile
from collections import deque
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
from cifarserve.v1 import classifier_pb2

from service.connection import Options
from service.loadtest.plan import CLASSIFY_STREAM, HTTP, LoadTestError, Work, open_inference

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Refused(Exception):
    """An answer that is an error, or none: `code` to count it by, `detail` for people."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


class Sender(Protocol):
    async def call(self, message: bytes) -> None: ...

    async def close(self) -> None: ...


async def connect(work: Work, options: Options) -> list[Sender]:
    """A connected sender for each target. Raises TimeoutError and OSError when one cannot be reached."""
    if work.method == HTTP:
        posts = [Post(target, work.content_type, options, work.load.deadline) for target in work.targets]
        async with asyncio.timeout(options.timeout):
            await asyncio.gather(*(post.connect() for post in posts))
        return [*posts]
    # Connections of their own: several channels of one process to one server would share one.
    settings, credentials = [*options.channel_options(), ("grpc.use_local_subchannel_pool", 1)], options.credentials()
    channels = [
        grpc.aio.secure_channel(target, credentials, settings)
        if credentials
        else grpc.aio.insecure_channel(target, settings)
        for target in work.targets
    ]
    async with asyncio.timeout(options.timeout):
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
    kind = Stream if work.stream else Unary
    return [kind(channel, work.method, options, work.load.deadline) for channel in channels]


class Unary:
    def __init__(self, channel: grpc.aio.Channel, method: str, options: Options, deadline: float) -> None:
        self._channel, self._metadata, self._deadline = channel, options.metadata(), deadline
        self._method: Any = channel.unary_unary(method)

    async def call(self, message: bytes) -> None:
        try:
            await self._method(message, timeout=self._deadline, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code().name, error.details() or "") from None

    async def close(self) -> None:
        await self._channel.close()


class Stream:
    """One stream, in which answers come in the order of their requests; a new one after it broke."""

    def __init__(self, channel: grpc.aio.Channel, method: str, options: Options, deadline: float) -> None:
        self._channel, self._metadata, self._deadline, self._name = channel, options.metadata(), deadline, method
        self._method: Any = channel.stream_stream(method)
        self._stream: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._unanswered: deque[asyncio.Future[Refused | None]] = deque()
        self._writing = asyncio.Lock()

    async def call(self, message: bytes) -> None:
        try:
            async with asyncio.timeout(self._deadline):
                async with self._writing:
                    if self._stream is None:
                        self._stream = self._method(metadata=self._metadata)
                        self._reader = asyncio.create_task(self._read(self._stream))
                    answered: asyncio.Future[Refused | None] = asyncio.get_running_loop().create_future()
                    self._unanswered.append(answered)
                    await self._stream.write(message)
                refused = await answered
        except TimeoutError:
            raise Refused("DEADLINE_EXCEEDED", "no answer on the stream in time") from None
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code().name, error.details() or "") from None
        except asyncio.InvalidStateError:  # written to a stream that has just ended
            raise Refused("UNAVAILABLE", "the stream has ended") from None
        if refused:
            raise refused

    async def _read(self, stream: Any) -> None:
        problem = Refused("UNAVAILABLE", "the server ended the stream")
        try:
            while (reply := await stream.read()) is not grpc.aio.EOF:
                answered = self._unanswered.popleft()
                if not answered.done():  # else nobody waits for it any more
                    answered.set_result(_refused(self._name, reply))
            problem = Refused((await stream.code()).name, await stream.details() or problem.detail)
        except grpc.aio.AioRpcError as error:
            problem = Refused(error.code().name, error.details() or "")
        finally:
            self._stream = None
            while self._unanswered:
                if not (answered := self._unanswered.popleft()).done():
                    answered.set_result(problem)

    async def close(self) -> None:
        if self._reader:
            self._reader.cancel()
        await self._channel.close()


def _refused(method: str, reply: bytes) -> Refused | None:
    """The error that an answer on a stream is, if it is one."""
    if method == CLASSIFY_STREAM:
        parsed = classifier_pb2.ClassifyResponse.FromString(reply)
        if parsed.HasField("error"):
            return Refused(_CODES.get(parsed.error.code, "UNKNOWN"), parsed.error.message)
        return None
    message = open_inference().ModelStreamInferResponse.FromString(reply).error_message
    return Refused("ERROR", message) if message else None


class Post:
    """POSTs to one URL over HTTP/1.1, on as many kept connections as there are calls at once."""

    def __init__(self, url: str, content_type: str, options: Options, deadline: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LoadTestError(f"{url}: not of the form http://HOST:PORT/PATH")
        self._host, self._deadline = parts.hostname, deadline
        self._tls = _tls(options) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Type: {content_type}"]
        lines += [f"{name}: {value}" for name, value in options.metadata()]
        self._head = "\r\n".join(lines).encode()
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def connect(self) -> None:
        self._idle.append(await asyncio.open_connection(self._host, self._port, ssl=self._tls))

    async def call(self, message: bytes) -> None:
        writer = None
        try:
            async with asyncio.timeout(self._deadline):
                if not self._idle:
                    await self.connect()
                reader, writer = self._idle.pop()
                writer.write(b"%b\r\nContent-Length: %d\r\n\r\n%b" % (self._head, len(message), message))
                head = await reader.readuntil(b"\r\n\r\n")
                body = await _body(reader, head)
        except TimeoutError:
            _drop(writer)
            raise Refused("DEADLINE_EXCEEDED", "no answer in time") from None
        except (OSError, EOFError, ValueError) as error:
            _drop(writer)
            raise Refused("UNAVAILABLE", str(error)) from None
        if _CLOSES.search(head):
            writer.close()
        else:
            self._idle.append((reader, writer))
        status = head.split(maxsplit=2)[1].decode()
        if not status.startswith("2"):
            raise Refused(f"HTTP_{status}", body[:200].decode(errors="replace"))

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


def _drop(writer: asyncio.StreamWriter | None) -> None:
    if writer is not None:
        writer.transport.abort()


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if _CHUNKED.search(head):
        parts = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            parts.append((await reader.readexactly(size + 2))[:-2])
        while await reader.readuntil(b"\r\n") != b"\r\n":  # trailers
            pass
        return b"".join(parts)
    found = _LENGTH.search(head)
    return await reader.readexactly(int(found[1])) if found else await reader.read()


def _tls(options: Options) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=options.root_certificates.decode() or None)
    if options.certificate:  # which can only be loaded from files
        with tempfile.NamedTemporaryFile() as file:
            file.write(options.certificate + b"\n" + options.key)
            file.flush()
            context.load_cert_chain(file.name)
    return context
