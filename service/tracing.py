"""OpenTelemetry traces, when OTEL_EXPORTER_OTLP_ENDPOINT is set; otherwise nothing of OpenTelemetry is imported.

A request is the span `classify`, child of the caller's when its metadata carry a W3C trace context, with children
`decode`, `queue` and `compute`. A batch serves many requests, so it is a trace of its own: `batch`, linked to all of
them. Spans are made when their work is done, from times that the metrics need anyway. OTEL_TRACES_SAMPLER and the
SDK's other variables apply.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_trace_id: ContextVar[str] = ContextVar("trace_id", default="")


class TracingError(RuntimeError):
    """Traces are wanted, but the package that sends them is not installed."""


class Tracing:
    """Sends the spans of one server, from a thread of its own."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("cifarserve")
        self._epoch = time.time_ns() - time.monotonic_ns()

    def request(self, metadata: Iterable[tuple[str, Any]]) -> RequestTrace | None:
        """Begin the span of a request with this gRPC metadata; None when it is not sampled."""
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind

        parent = propagate.extract({key: value for key, value in metadata if isinstance(value, str)})
        span = self._tracer.start_span("classify", parent, SpanKind.SERVER)
        return RequestTrace(self._tracer, span, self._epoch) if span.is_recording() else None

    def close(self) -> None:
        """Send what is left. Blocks for as long as that takes, or the exporter's timeout."""
        self._provider.shutdown()


class RequestTrace:
    """The span of one request. Times are in seconds on time.monotonic()'s clock."""

    def __init__(self, tracer: Tracer, span: Span, epoch: int) -> None:
        self._tracer = tracer
        self._span = span
        self._epoch = epoch
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        _trace_id.set(self.trace_id)

    def stages(self, end: float, **seconds: float) -> None:
        """Spans of these names and lengths, one after the other, the last of which ended at `end`."""
        from opentelemetry.trace import set_span_in_context

        start, parent = end - sum(seconds.values()), set_span_in_context(self._span)
        for name, length in seconds.items():
            span = self._tracer.start_span(name, parent, start_time=self._nanoseconds(start))
            start += length
            span.end(self._nanoseconds(start))

    def end(self, code: str, model: str, model_version: int) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attributes({"rpc.grpc.status": code, "model": model, "version": model_version})
        if code != "OK":
            self._span.set_status(StatusCode.ERROR, code)
        self._span.end()

    def batch(self, requests: Sequence[RequestTrace], start: float, seconds: float, images: int, bucket: int) -> None:
        """The span of a batch that computed images of `requests`, this one among them."""
        from opentelemetry.context import Context
        from opentelemetry.trace import Link

        span = self._tracer.start_span(
            "batch",
            Context(),
            links=[Link(request._span.get_span_context()) for request in requests],
            attributes={"images": images, "bucket": bucket},
            start_time=self._nanoseconds(start),
        )
        span.end(self._nanoseconds(start + seconds))

    def _nanoseconds(self, moment: float) -> int:
        return self._epoch + round(moment * 1e9)


class TraceIdFilter(logging.Filter):
    """Gives each record of a traced request its `trace_id`."""

    def filter(self, record: logging.LogRecord) -> bool:
        if trace_id := _trace_id.get():
            record.trace_id = trace_id
        return True


def start() -> Tracing | None:
    """Traces as the environment says; None when it names no endpoint. Raises TracingError."""
    if not os.environ.get(ENDPOINT):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError(f"{ENDPOINT} is set, but traces need the extra [otel]: {error}") from None
    name = os.environ.get("OTEL_SERVICE_NAME", "cifarserve")
    provider = TracerProvider(
        resource=Resource.create({"service.name": name, "service.version": version("cifarserve")}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    for handler in logging.getLogger().handlers:
        handler.addFilter(TraceIdFilter())
    return Tracing(provider)
