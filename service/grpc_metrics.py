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
from service.unparsable import Refused, accepted_only, tolerant

if TYPE_CHECKING:
    from service.door import Door

# Paths of the methods whose requests count as requests for inference. Written out: who reads metrics need not load the
# messages, of which tritonclient has others under the same names.
INFERENCE = frozenset(
    (
        "/cifarserve.v1.Classifier/Classify",
        "/cifarserve.v1.Classifier/ClassifyStream",
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStreamInfer",
    )
)
_METHOD = ("grpc_type", "grpc_service", "grpc_method")
_Handler = Callable[[Any, Any], Awaitable[Any]]
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class CallMetrics:
    """The three families. Of a request for inference that failed before a model's metrics could count it, and of a
    fault of ours in any other method, `failed` is told the code.
    """

    def __init__(self, families: Families, failed: Callable[[str], None]) -> None:
        self._failed = failed
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
        self.failed(method, code)

    def failed(self, method: str, code: grpc.StatusCode) -> None:
        """Count a call that nothing else has counted: `method` is its path."""
        if method in INFERENCE or code is grpc.StatusCode.INTERNAL:
            self._failed(code.name)


class Methods(grpc.GenericRpcHandler):
    """All methods of the server, counted. Takes the place of a grpc.aio.Server where the generated `add_..._to_server`
    functions register them.
    """

    def __init__(self, metrics: CallMetrics, door: Door, most_images: int) -> None:
        """`most_images` bounds the fields of a message: see unparsable.tolerant."""
        self._metrics = metrics
        self._most_images = most_images
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
        parse = tolerant(handler.request_deserializer, self._most_images)
        # Of the streaming functions, ours write to the context, and reflection's is a generator.
        wrap = _generated if inspect.isasyncgenfunction(function) else _called
        return make(wrap(function, _Counts(self._metrics, labels)), parse, handler.response_serializer)


class _Counts:
    """The counts of one method."""

    def __init__(self, metrics: CallMetrics, labels: tuple[str, str, str]) -> None:
        self._metrics = metrics
        self._path = f"/{labels[1]}/{labels[2]}"
        self._started, self._seconds = metrics.started.labels(*labels), metrics.seconds.labels(*labels)
        self._handled = {code: metrics.handled.labels(*labels, code.name) for code in grpc.StatusCode}

    def began(self) -> float:
        self._started.inc()
        return time.monotonic()

    def ended(self, began: float, code: grpc.StatusCode) -> None:
        self._handled[code].inc()
        self._seconds.observe(time.monotonic() - began)

    async def failed(self, context: Any, error: Exception) -> None:
        """End the call with the status of an error, which nothing has counted yet. Returns only if it has ended."""
        if isinstance(error, grpc.aio.AbortError) or context.done():
            return
        failure = status.from_error(error)
        self._metrics.failed(self._path, status.code_of(failure))
        await status.abort(context, failure)


def _called(function: Any, counts: _Counts) -> _Handler:
    """`function`, counted whatever happens in it, with its exceptions as statuses."""

    async def call(request: Any, context: Any) -> Any:
        began = counts.began()
        try:
            try:
                if isinstance(request, Refused):
                    raise request.error
                reply = await function(request, context)
                status.end_if_late(context)
            except Exception as error:
                await counts.failed(context, error)
                raise
        except BaseException as error:
            counts.ended(began, _code(context, error))
            raise
        counts.ended(began, _code(context))
        return reply

    return call


def _generated(function: Any, counts: _Counts) -> Any:
    """As _called, of an asynchronous generator."""

    async def generate(request: Any, context: Any) -> Any:
        began = counts.began()
        if hasattr(request, "__aiter__"):
            request = accepted_only(request)
        try:
            try:
                async for reply in function(request, context):
                    yield reply
            except Exception as error:
                await counts.failed(context, error)
                raise
        except BaseException as error:
            counts.ended(began, _code(context, error))
            raise
        counts.ended(began, _code(context))

    return generate


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
