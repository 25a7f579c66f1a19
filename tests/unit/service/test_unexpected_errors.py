"""A method that raises what nobody expected: INTERNAL with an id, counted once, and no stack for the caller."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from grpc_health.v1 import health_pb2

from service.errors import InvalidInput
from service.grpc_metrics import CallMetrics, Methods
from service.metrics import Metrics

CLASSIFY, STREAM = "/cifarserve.v1.Classifier/Classify", "/cifarserve.v1.Classifier/ClassifyStream"
CHECK = "/grpc.health.v1.Health/Check"


async def broken(_request: Any, _context: Any) -> Any:
    raise RuntimeError("a secret of the server")


async def broken_generator(_requests: Any, _context: Any) -> AsyncIterator[Any]:
    yield pb.ClassifyResponse()
    raise KeyError("a secret of the server")


async def broken_group(_requests: Any, _context: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(broken(None, None))


async def refusing(_request: Any, _context: Any) -> Any:
    raise InvalidInput("images", "are wrong")


def ran(path: str, function: Any, request: Any, calls: Callable[[Any], Awaitable[None]]) -> Metrics:
    """The metrics after `calls` were made to a real server with this function at `path`."""
    streams = path == STREAM
    make = grpc.stream_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
    reply: Any = pb.ClassifyResponse
    metrics = Metrics()

    async def main() -> None:
        door: Any = SimpleNamespace(crowded=False, methods=frozenset())
        methods: Any = Methods(CallMetrics(metrics.families, metrics.unknown), door, 256)
        service, name = path[1:].split("/")
        handler = make(function, request.FromString, reply.SerializeToString)
        methods.add_registered_method_handlers(service, {name: handler})
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((methods,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await calls(channel)
        await server.stop(None)

    asyncio.run(main())
    return metrics


def counted(metrics: Metrics, code: str) -> float:
    labels = {"model": "", "version": "", "code": code}
    return metrics.registry.get_sample_value("cifarserve_requests_total", labels) or 0.0


@pytest.mark.parametrize(
    ("path", "function", "request_type"),
    [
        (CLASSIFY, broken, pb.ClassifyRequest),
        (STREAM, broken_generator, pb.ClassifyRequest),
        (STREAM, broken_group, pb.ClassifyRequest),
        (CHECK, broken, health_pb2.HealthCheckRequest),
    ],
)
def test_what_a_method_does_not_expect_is_internal_with_an_id_and_counts(
    path: str, function: Any, request_type: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[grpc.aio.AioRpcError] = []

    async def calls(channel: Any) -> None:
        try:
            if path == STREAM:
                async for _ in channel.stream_stream(path)(iter([b""])):
                    pass
            else:
                await channel.unary_unary(path)(b"")
        except grpc.aio.AioRpcError as error:
            found.append(error)

    metrics = ran(path, function, request_type, calls)
    (error,) = found
    assert error.code() is grpc.StatusCode.INTERNAL
    identifier = re.fullmatch(r"internal error ([0-9a-f]{16})", error.details() or "")
    assert identifier is not None
    logged = [record for record in caplog.records if identifier[1] in record.getMessage()]
    assert len(logged) == 1
    assert counted(metrics, "INTERNAL") == 1
    service, name = path[1:].split("/")
    labels = {"grpc_service": service, "grpc_method": name, "grpc_code": "INTERNAL"}
    kind = {"grpc_type": "bidi_stream" if path == STREAM else "unary"}
    assert metrics.registry.get_sample_value("grpc_server_handled_total", labels | kind) == 1


@pytest.mark.parametrize(("path", "counts"), [(CLASSIFY, 1), (CHECK, 0)])
def test_a_refusal_that_a_method_raises_is_answered_and_counts_if_it_was_a_request_for_inference(
    path: str, counts: int
) -> None:
    async def calls(channel: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="images: are wrong") as caught:
            await channel.unary_unary(path)(b"")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    metrics = ran(path, refusing, pb.ClassifyRequest, calls)
    assert counted(metrics, "INVALID_ARGUMENT") == counts


def test_a_call_that_is_refused_for_its_token_counts_if_it_was_a_request_for_inference() -> None:
    metrics = Metrics()
    calls = CallMetrics(metrics.families, metrics.unknown)
    handler = grpc.unary_unary_rpc_method_handler(refusing)
    calls.refused(CHECK, handler, grpc.StatusCode.UNAUTHENTICATED)
    assert counted(metrics, "UNAUTHENTICATED") == 0
    calls.refused(CLASSIFY, handler, grpc.StatusCode.UNAUTHENTICATED)
    assert counted(metrics, "UNAUTHENTICATED") == 1
