"""A stream, whatever its requests take: replies in the order of the requests, no more under way than the window."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.streams import Streams

# A request: its number, its images, and how many turns of the loop its answer takes.
Request = tuple[int, int, int]


class Aborted(Exception):
    pass


class Context:
    """A caller that sends `requests`, each after `pause` turns, and reads a reply in `pause` turns."""

    def __init__(self, requests: list[Request], window: int, pause: int) -> None:
        self.left, self.window, self.pause = list(requests), window, pause
        self.read_images = self.written_images = 0
        self.read_requests: list[int] = []
        self.replies: list[int] = []
        self.code: grpc.StatusCode | None = None

    async def read(self) -> object:
        assert self.read_images - self.written_images < self.window, "it is read no further"
        await turns(self.pause)
        if not self.left:
            return grpc.aio.EOF
        request = self.left.pop(0)
        self.read_images += max(1, request[1])
        self.read_requests.append(request[0])
        return request

    async def write(self, request: Request) -> None:
        await turns(self.pause)
        self.written_images += max(1, request[1])
        self.replies.append(request[0])

    def time_remaining(self) -> None:
        """It has no deadline."""

    async def abort(self, code: grpc.StatusCode, *_: object) -> None:
        self.code = code
        raise Aborted


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def answer(request: Request) -> Request:
    await turns(request[2])
    return request


sizes = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), max_size=20)


@given(sizes, st.integers(1, 30), st.integers(0, 3), st.none() | st.integers(0, 60))
def test_replies_come_in_the_order_of_the_requests_and_none_is_lost(
    sizes: list[tuple[int, int]], window: int, pause: int, drained_after: int | None
) -> None:
    requests = [(number, images, takes) for number, (images, takes) in enumerate(sizes)]
    context = Context(requests, window, pause)

    async def main() -> None:
        streams = Streams(window)
        serving = asyncio.create_task(streams.serve(context, answer, lambda request: request[1]))  # type: ignore[arg-type]
        if drained_after is not None:
            await turns(drained_after)
            streams.drain()
        async with asyncio.timeout(20):
            if drained_after is None:
                await serving
            else:
                await asyncio.wait({serving})
                if (error := serving.exception()) is not None:
                    assert isinstance(error, Aborted)

    asyncio.run(main())
    assert context.replies == context.read_requests, "all that was read is answered, in its order"
    if context.code is None:
        assert len(context.replies) == len(requests)
    else:
        assert drained_after is not None
        assert context.code is grpc.StatusCode.UNAVAILABLE


def test_a_caller_that_goes_away_ends_the_stream_and_its_answers() -> None:
    context = Context([(0, 1, 0), (1, 1, 10**9)], window=8, pause=0)
    under_way: list[asyncio.Task[object] | None] = []

    async def remembered(request: Request) -> Request:
        under_way.append(asyncio.current_task())
        return await answer(request)

    async def main() -> None:
        serving = asyncio.create_task(Streams(8).serve(context, remembered, lambda request: request[1]))  # type: ignore[arg-type]
        await turns(20)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    asyncio.run(main())
    assert context.replies == [0]
    assert [task is not None and task.done() for task in under_way] == [True, True]
