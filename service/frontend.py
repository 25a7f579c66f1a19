"""What every request goes through, whatever its protocol: find the model, do the work, count it, map its errors.

The servicers of both protocols are thin: they read a message, call this, and write a message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import grpc
import numpy as np
from google.rpc import status_pb2

from service import status
from service.config import Settings
from service.errors import DeadlineExceeded, InvalidInput
from service.images import Effort, Pixels
from service.logs import AccessLog
from service.metrics import Metrics
from service.pending import Answer
from service.repository import Repository
from service.serving import ServedModel
from service.shadow import Shadow
from service.tracing import RequestTrace, Tracing

_Reply = TypeVar("_Reply")
# Writes one decoded image into its row, uint8 [height, width, channels]. Raises InvalidInput.
Decode = Callable[[Pixels], None]


@dataclass
class Timing:
    """Where one request's time went; filled in by Frontend.classify."""

    name: str = ""  # the caller's id of the request
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    computed_at: float | None = None  # on time.monotonic()'s clock; None: it never came so far
    trace: RequestTrace | None = None


class Frontend:
    def __init__(
        self,
        repository: Repository,
        settings: Settings,
        metrics: Metrics,
        decoders: ThreadPoolExecutor,
        tracing: Tracing | None = None,
    ) -> None:
        self.repository = repository
        self.settings = settings
        self._metrics = metrics
        self._decoders = decoders
        self._tracing = tracing
        self._access = AccessLog(settings.access_log_share)
        self.shadow = Shadow()
        # Counts a request that failed before its model was known, by the name of its status code.
        self.uncounted = metrics.unknown

    def limits(self) -> tuple[int, Effort]:
        """For the pictures of one request: most pixels of each, and the time to decode all."""
        return self.settings.max_image_pixels, Effort(self.settings.decode_seconds)

    async def answer(
        self,
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
        name: str,
        version: int,
        work: Callable[[ServedModel, Timing], Awaitable[_Reply]],
        field: str = "model",
    ) -> _Reply | status_pb2.Status:
        """The reply that `work` gives with the model, or the status that the request fails with; counted either way.

        `field` is what the request calls the model's name.
        """
        started, timing = time.monotonic(), Timing()
        model: ServedModel | None = None
        code = grpc.StatusCode.CANCELLED
        try:
            if self._tracing is not None:
                timing.trace = self._tracing.request(context.invocation_metadata() or ())
            header = self.repository.sticky_header(name)
            sticky = _metadata(context, header) if header else None
            model = self.repository.find(name, version, sticky, field)
            reply = await work(model, timing)
            code = grpc.StatusCode.OK
            return reply
        except Exception as error:
            failure = status.from_error(error)
            code = status.code_of(failure)
            return failure
        finally:
            now = time.monotonic()
            # Counted first: what comes after it may fail.
            if model is None:
                self._metrics.unknown(code.name)
            else:
                trace_id = timing.trace.trace_id if timing.trace is not None else ""
                model.metrics.answered(code.name, now - started, trace_id)
                if timing.computed_at is not None:
                    model.metrics.went_through(
                        timing.decode_seconds, timing.queue_seconds, timing.compute_seconds, now - timing.computed_at
                    )
            if timing.trace is not None:
                _end_trace(timing.trace, model, code, timing)
            if self._access.wants():
                _log_access(self._access, context, model, code, now - started, timing)

    async def classify(
        self,
        model: ServedModel,
        timing: Timing,
        field: str,
        count: int,
        read: Callable[[], Pixels | Sequence[Decode]],
        size: Callable[[], int],
        deadline: float | None,
        priority: int = 0,
    ) -> Answer:
        """Admit, decode and compute `count` images. Only once they are admitted, `read` is asked for them: pixels in
        the model's shape, or functions that write one each.

        `field` is what the request calls them, `size` tells the bytes of its message; see Request for the rest. Raises
        ServiceError.
        """
        most = self.settings.max_images_per_request
        if not 1 <= count <= most:
            raise InvalidInput(field, f"must be from 1 to {most} images, are {count}")
        started = time.monotonic()
        with model.batcher.admit(count, size, deadline) as admitted:
            admitted.trace, admitted.name = timing.trace, timing.name
            images = read()
            if not isinstance(images, np.ndarray):
                images = await self._decode(model.manifest.image_shape, images, deadline)
            timing.decode_seconds = time.monotonic() - started
            answer = await model.compute_answer(admitted, images, priority)
        timing.queue_seconds, timing.compute_seconds = answer.queue_seconds, answer.compute_seconds
        timing.computed_at = time.monotonic()
        if (shadow := self.repository.shadow_of(model)) is not None:
            self.shadow.mirror(shadow, model, images, answer.probabilities)
        return answer

    async def _decode(self, shape: tuple[int, int, int], images: Sequence[Decode], deadline: float | None) -> Pixels:
        """uint8 [n, height, width, channels], each row written by one of `images` on the decoders' threads.

        Raises what they raise, and DeadlineExceeded when the deadline comes before a thread was free for all of them.
        """
        batch = np.empty((len(images), *shape), np.uint8)
        loop = asyncio.get_running_loop()
        jobs = (
            loop.run_in_executor(self._decoders, _decode, decode, row, deadline)
            for decode, row in zip(images, batch, strict=True)
        )
        # All are waited for, so that none still writes into the batch when this returns or raises.
        for outcome in await asyncio.gather(*jobs, return_exceptions=True):
            if outcome is not None:
                raise outcome
        return batch


def _decode(decode: Decode, row: Pixels, deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineExceeded("the deadline came while the pictures waited to be decoded")
    decode(row)


def _end_trace(trace: RequestTrace, model: ServedModel | None, code: grpc.StatusCode, timing: Timing) -> None:
    if timing.computed_at is not None:
        trace.stages(
            timing.computed_at, decode=timing.decode_seconds, queue=timing.queue_seconds, compute=timing.compute_seconds
        )
    trace.end(code.name, model.manifest.name if model else "", model.manifest.version if model else 0)


def _log_access(
    access: AccessLog,
    context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
    model: ServedModel | None,
    code: grpc.StatusCode,
    seconds: float,
    timing: Timing,
) -> None:
    access.write(
        code=code.name,
        model=model.manifest.name if model else None,
        version=model.manifest.version if model else None,
        peer=context.peer(),
        seconds=round(seconds, 6),
        decode_seconds=round(timing.decode_seconds, 6),
        queue_seconds=round(timing.queue_seconds, 6),
        compute_seconds=round(timing.compute_seconds, 6),
    )


def deadline_of(context: grpc.aio.ServicerContext) -> float | None:  # type: ignore[type-arg]
    """The call's deadline on time.monotonic()'s clock."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def _metadata(context: grpc.aio.ServicerContext, key: str) -> str | None:  # type: ignore[type-arg]
    """The first value that the caller sent under `key`."""
    return next((str(value) for name, value in context.invocation_metadata() or () if name == key), None)
