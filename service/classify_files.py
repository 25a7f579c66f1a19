"""Classifies any number of picture files, in requests that the server takes, and reports on each of them."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from service.client import AsyncClient, ClientError, Prediction

# Of one request to begin with. The server's own limits are not known: see `_Files._retry`.
MOST_IMAGES, MOST_BYTES = 32, 3 << 20
REQUESTS_AT_ONCE = 4
_FRAMING_BYTES = 4096  # of a message, beside its one picture

# What is true of any other file too.
_OF_THE_CALL = (
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED,
)  # fmt: skip
_PICTURE = re.compile(r"images\[(\d+)\]")  # how an error names a picture of its request


@dataclass(frozen=True)
class Failure:
    """Why one file has no prediction."""

    reason: str


@dataclass(frozen=True)
class Choice:
    """What is asked of each picture, as in `Client.classify`."""

    model: str = ""
    version: int = 0
    top_k: int | None = None


@dataclass(frozen=True)
class _Picture:
    index: int  # of its path
    content: bytes


async def classify(
    client: AsyncClient, paths: Sequence[Path], choice: Choice, most_bytes: int
) -> tuple[list[Prediction | Failure], ClientError | None]:
    """An outcome for each of `paths`, in their order; and the error, if any, that kept the server from answering more.

    `most_bytes` is the size of a message that the client may send. At most REQUESTS_AT_ONCE requests, and as many
    more files as fit in one, are in memory.
    """
    files = _Files(client, paths, choice, most_bytes)
    await files.run()
    missing = Failure(str(files.error) if files.error else "no answer")
    return [files.outcomes.get(index, missing) for index in range(len(paths))], files.error


class _Files:
    """The files of one command. Its state is the event loop's."""

    def __init__(self, client: AsyncClient, paths: Sequence[Path], choice: Choice, most_bytes: int) -> None:
        self._client, self._paths, self._choice = client, paths, choice
        self._most_file_bytes = most_bytes - _FRAMING_BYTES
        self._most_images, self._most_bytes = MOST_IMAGES, MOST_BYTES
        self._room = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self.outcomes: dict[int, Prediction | Failure] = {}
        self.error: ClientError | None = None  # not of a file: nothing more is sent

    async def run(self) -> None:
        async with asyncio.TaskGroup() as requests:
            async for pictures in self._requests():
                await self._room.acquire()
                requests.create_task(self._send_in_turn(pictures))

    async def _requests(self) -> AsyncIterator[list[_Picture]]:
        """The pictures of each request, read only when it is asked for."""
        pictures: list[_Picture] = []
        size = 0
        for index, path in enumerate(self._paths):
            try:
                if self.error is not None:  # nothing more is sent, but what is wrong with a file is reported
                    _check(path.stat(), self._most_file_bytes)
                    continue
                content = await asyncio.to_thread(_read, path, self._most_file_bytes)
            except OSError as error:
                self.outcomes[index] = Failure(error.strerror or str(error))
                continue
            if pictures and (len(pictures) >= self._most_images or size + len(content) > self._most_bytes):
                yield pictures
                pictures, size = [], 0
            pictures.append(_Picture(index, content))
            size += len(content)
        if pictures:
            yield pictures

    async def _send_in_turn(self, pictures: Sequence[_Picture]) -> None:
        try:
            await self._send(pictures)
        finally:
            self._room.release()

    async def _send(self, pictures: Sequence[_Picture]) -> None:
        if self.error is not None or not pictures:
            return
        choice = self._choice
        try:
            predictions = await self._client.classify(
                [picture.content for picture in pictures],
                model=choice.model, version=choice.version, top_k=choice.top_k,
            )  # fmt: skip
        except ClientError as error:
            if await self._is_of_the_call(error):
                self.error = self.error or error
            else:
                await self._retry(pictures, error)
            return
        for picture, prediction in zip(pictures, predictions, strict=True):
            self.outcomes[picture.index] = prediction

    async def _is_of_the_call(self, error: ClientError) -> bool:
        """Whether the pictures are not to blame."""
        if error.code is grpc.StatusCode.INVALID_ARGUMENT:
            return bool(error.fields) and not any(field.startswith("images") for field in error.fields)
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            try:
                await self._client.models()
            except ClientError:
                return True
            return False  # it answers: these pictures took too long
        return error.code in _OF_THE_CALL

    async def _retry(self, pictures: Sequence[_Picture], error: ClientError) -> None:
        """Send a request that failed again as two halves, without the pictures that the error names.

        An error that names none may be about the request's size. Later requests are then smaller, too.
        """
        named = _named(error, len(pictures))
        if not named:
            if len(pictures) == 1:
                named = {0: str(error)}
            else:
                self._most_images = min(self._most_images, (len(pictures) + 1) // 2)
                self._most_bytes = min(self._most_bytes, sum(len(picture.content) for picture in pictures) // 2)
        for position, reason in named.items():
            self.outcomes[pictures[position].index] = Failure(reason)
        rest = [picture for position, picture in enumerate(pictures) if position not in named]
        middle = (len(rest) + 1) // 2
        await self._send(rest[:middle])
        await self._send(rest[middle:])


def _named(error: ClientError, count: int) -> dict[int, str]:
    """The positions in a request of `count` pictures of those that the error names, with what is wrong with each."""
    found = {}
    for field, reason in error.fields.items():
        match = _PICTURE.match(field)
        if match and int(match[1]) < count:
            found[int(match[1])] = reason
    return found


def _read(path: Path, most: int) -> bytes:
    """The content of a regular file of 1 to `most` bytes. Raises OSError for anything else, and never waits for one.

    A FIFO may have no writer, and a device no end.
    """
    _check(path.stat(), most)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # neither is on every system
    with os.fdopen(os.open(path, flags), "rb") as file:
        _check(os.fstat(file.fileno()), most)  # it may be another one by now
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(0, _too_large(most))
    return content


def _check(status: os.stat_result, most: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise OSError(0, "is a directory; name the files in it")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "is not a regular file")
    if not status.st_size:
        raise OSError(0, "is empty")
    if status.st_size > most:
        raise OSError(0, _too_large(most))


def _too_large(most: int) -> str:
    return f"is too large; one file may have {most:,} bytes"
