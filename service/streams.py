"""Bidirectional streams: read, work and reply at the same time, with the replies in the order of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from service import status
from service.errors import Unavailable

_Context = grpc.aio.ServicerContext[Any, Any]
# A request to its reply.
Answer = Callable[[Any], Coroutine[Any, Any, Any]]
_Replies = asyncio.Queue[asyncio.Task[Any] | None]


class Streams:
    """All open streams of the server. At most `window` requests of one stream are worked on at once."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._readers: set[asyncio.Task[None]] = set()

    async def serve(self, context: _Context, answer: Answer) -> None:
        """Answer every request of the stream by the message that `answer` gives for it. `answer` does not raise."""
        window = asyncio.Semaphore(self._window)
        replies: _Replies = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self._read(context, answer, window, replies, group))
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
            reader.add_done_callback(lambda _: replies.put_nowait(None))
            while (task := await replies.get()) is not None:
                await context.write(await task)
                window.release()
        if reader.cancelled():
            await status.abort(context, status.from_error(Unavailable("draining: nothing new is accepted")))

    def drain(self) -> None:
        """Read no more from any stream; each ends, with UNAVAILABLE, when what was read is answered."""
        for reader in self._readers:
            reader.cancel()

    async def _read(
        self,
        context: _Context,
        answer: Answer,
        window: asyncio.Semaphore,
        replies: _Replies,
        group: asyncio.TaskGroup,
    ) -> None:
        while True:
            await window.acquire()
            request = await context.read()
            if request is grpc.aio.EOF:
                return
            replies.put_nowait(group.create_task(answer(request)))
