"""Bidirectional streams: read, work and reply at the same time, with the replies in the order of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from service import status
from service.errors import Unavailable
from service.unparsable import Refused

_Context = grpc.aio.ServicerContext[Any, Any]
# A request to its reply.
Answer = Callable[[Any], Coroutine[Any, Any, Any]]


class Streams:
    """All open streams of the server.

    A stream is read on only while fewer than `window` of its images are unanswered. gRPC's flow control then holds
    the caller back, so that a fast stream waits where separate calls would be shed.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._readers: set[asyncio.Task[None]] = set()

    async def serve(self, context: _Context, answer: Answer, images: Callable[[Any], int]) -> None:
        """Answer every request by the message that `answer` gives for it, and does not raise.

        `images` tells how many a request carries. Raises InvalidInput at a message that is Refused, once those before
        it are answered.
        """
        stream = _Stream(context, answer, images, self._window)
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(stream.read(group))
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
            reader.add_done_callback(lambda _: stream.end())
            await stream.reply()
        if stream.refused is not None:
            raise stream.refused.error
        if reader.cancelled():
            await status.abort(context, status.from_error(Unavailable("draining: nothing new is accepted")))

    def drain(self) -> None:
        """Read no more from any stream; each ends, with UNAVAILABLE, when what was read is answered."""
        for reader in self._readers:
            reader.cancel()


class _Stream:
    def __init__(self, context: _Context, answer: Answer, images: Callable[[Any], int], window: int) -> None:
        self._context = context
        self._answer = answer
        self._images = images
        self._window = window
        self.refused: Refused | None = None  # the message that ended it
        self._unanswered = 0
        self._room = asyncio.Event()
        self._replies: asyncio.Queue[tuple[asyncio.Task[Any], int] | None] = asyncio.Queue()

    async def read(self, group: asyncio.TaskGroup) -> None:
        while True:
            while self._unanswered >= self._window:
                self._room.clear()
                await self._room.wait()
            request = await self._context.read()
            if request is grpc.aio.EOF:
                return
            if isinstance(request, Refused):
                self.refused = request
                return
            images = max(1, self._images(request))
            self._unanswered += images
            self._replies.put_nowait((group.create_task(self._answer(request)), images))

    async def reply(self) -> None:
        while (entry := await self._replies.get()) is not None:
            task, images = entry
            await self._context.write(await task)
            self._unanswered -= images
            self._room.set()

    def end(self) -> None:
        """There will be no more requests."""
        self._replies.put_nowait(None)
