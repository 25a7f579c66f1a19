"""`grpc_server_*`: calls by method, in the names and labels that gRPC's Prometheus middlewares have in common.

Each handler is wrapped once, when it is registered. An interceptor would cost every call a look-up of its handler and a
second coroutine, and would see methods that a caller invented.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import grpc

from service import status
from service.metric_families import SECONDS, Families
from service.unparsable import UNPARSABLE, parsed_only, refuse, tolerant

if TYPE_CHECKING:
    from service.door import Door

_METHOD = ("grpc_type", "grpc_service", "grpc_method")
_Handler = Callable[[Any, Any], Awaitable[Any]]
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class CallMetrics:
    """The three families."""

    def __init__(self, families: Families) -> None:
        self.started = families.counter("grpc_server_started", "Calls begun.", *_METHOD)
        self.handled = families.counter("grpc_server_handled", "Calls ended, by status code.", *_METHOD, "grpc_code")
        self.seconds = families.histogram(
            "grpc_server_handling_seconds", "From a call's begin to its end; of a stream, its whole life.",
            *_METHOD, buckets=SECONDS,
        )  # fmt: skip

    def refused(self, method: str, handler: Any, code: grpc.StatusCode) -> None:
        """Count a call that ended before its handler was asked."""
        labels = (_kind(handler), *method.lstrip("/").rsplit("/", 1))
        self.started.labels(*labels).inc()
        self.handled.labels(*labels, code.name).inc()


class Methods(grpc.GenericRpcHandler):
    """All methods of the server, counted. Takes the place of a grpc.aio.Server where the generated `add_..._to_server`
    functions register them.
    """

    def __init__(self, metrics: CallMetrics, door: Door) -> None:
        self._metrics = metrics
        self._door = door
        self._handlers: dict[str, Any] = {}  # by path, as in a call's headers
        self._behind_door: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The same handlers as add_registered_method_handlers gets, but hidden behind a look-up."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            labels = _kind(handler), service, name
            self._handlers[path] = self._counted(handler, labels)
            self._behind_door[path] = (
                self._counted(self._door.before(handler), labels)
                if path in self._door.methods
                else self._handlers[path]
            )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """What handles a call with these headers; None when there is no such method."""
        handlers = self._behind_door if self._door.crowded else self._handlers
        return handlers.get(handler_call_details.method)

    def _counted(self, handler: Any, labels: tuple[str, str, str]) -> Any:
        """The handler, of whichever of gRPC's four kinds it is, with its function wrapped."""
        many_in, many_out = handler.request_streaming, handler.response_streaming
        function = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
        make = getattr(grpc, f"{_ways(many_in)}_{_ways(many_out)}_rpc_method_handler")
        return make(self._timed(function, labels), tolerant(handler.request_deserializer), handler.response_serializer)

    def _timed(self, function: Any, labels: tuple[str, str, str]) -> Any:
        """`function`, counted. Of the streaming ones, ours write to the context, and reflection's is a generator."""
        started, seconds = self._metrics.started.labels(*labels), self._metrics.seconds.labels(*labels)
        handled = {code: self._metrics.handled.labels(*labels, code.name) for code in grpc.StatusCode}

        def ended(began: float, code: grpc.StatusCode) -> None:
            handled[code].inc()
            seconds.observe(time.monotonic() - began)

        async def call(request: Any, context: Any) -> Any:
            began = time.monotonic()
            started.inc()
            try:
                if request is UNPARSABLE:
                    await refuse(context)
                reply = await function(request, context)
                status.end_if_late(context)
            except BaseException as error:
                ended(began, _code(context, error))
                raise
            ended(began, _code(context))
            return reply

        async def generate(request: Any, context: Any) -> Any:
            began = time.monotonic()
            started.inc()
            if hasattr(request, "__aiter__"):
                request = parsed_only(request, context)
            try:
                async for reply in function(request, context):
                    yield reply
            except BaseException as error:
                ended(began, _code(context, error))
                raise
            ended(began, _code(context))

        return generate if inspect.isasyncgenfunction(function) else call


def _kind(handler: Any) -> str:
    kinds = {(False, False): "unary", (False, True): "server_stream", (True, False): "client_stream"}
    return kinds.get((handler.request_streaming, handler.response_streaming), "bidi_stream")


def _ways(many: bool) -> str:
    return "stream" if many else "unary"


def _code(context: Any, error: BaseException | None = None) -> grpc.StatusCode:
    """The status that the caller gets."""
    code = context.code()
    if code and code is not grpc.StatusCode.OK:
        return code if isinstance(code, grpc.StatusCode) else _BY_NUMBER[code]
    # To a stream, a caller that is gone may also look like the end of its requests.
    if isinstance(error, asyncio.CancelledError) or context.done():
        remaining = context.time_remaining()
        late = remaining is not None and remaining <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    return grpc.StatusCode.OK if error is None else grpc.StatusCode.UNKNOWN
