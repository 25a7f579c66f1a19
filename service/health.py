"""grpc.health.v1: Check, Watch and List, for the server ("") and for each model by name.

Our own and not grpcio-health-checking's servicer (whose stubs it uses), because there one watcher that leaves cuts off
the other watchers of the same name, one that reads nothing blocks every change of state, and a watch never ends, which
holds up a graceful stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc as pb_grpc

from service import health_messages

# Names in the answer to List; with more, the protocol has it fail.
MOST_LISTED = 1000
_Context = grpc.aio.ServicerContext[Any, Any]
SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
# For liveness probes: SERVING as long as the event loop answers, also while models load and while the server drains;
# NOT_SERVING when an engine is lost that only a new process may get back.
LIVENESS = "cifarserve.liveness"
_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


class Health(pb_grpc.HealthServicer):
    """The state of each name. To be used from one event loop."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {"": NOT_SERVING, LIVENESS: SERVING}
        self._changed = asyncio.Event()  # replaced at every change, so that each watcher sees each one
        self._ending = False

    @property
    def is_serving(self) -> bool:
        """Whether the server as a whole is. From any thread."""
        return bool(self._states[""] == SERVING)

    @property
    def is_live(self) -> bool:
        """What a liveness probe is told. From any thread."""
        return bool(self._states[LIVENESS] == SERVING)

    def register(self, methods: Any) -> None:
        """Add this service to the server's methods."""
        pb_grpc.add_HealthServicer_to_server(self, methods)
        request, response = health_messages.HealthListRequest, health_messages.HealthListResponse
        handler = grpc.unary_unary_rpc_method_handler(self.List, request.FromString, response.SerializeToString)
        methods.add_registered_method_handlers("grpc.health.v1.Health", {"List": handler})

    def serving(self, names: Iterable[str], others: Iterable[str] = (), live: bool = True) -> None:
        """Exactly these names are SERVING; `others`, and those that were SERVING, are NOT_SERVING."""
        states = dict.fromkeys((*self._states, *others), NOT_SERVING) | dict.fromkeys(names, SERVING)
        self._change(states | {LIVENESS: SERVING if live else NOT_SERVING})

    def not_serving(self) -> None:
        self.serving(())

    def end_watches(self) -> None:
        """Let every Watch return UNAVAILABLE after it has reported the present state."""
        self._ending = True
        self._change(self._states)

    async def Check(self, request: pb.HealthCheckRequest, context: _Context) -> pb.HealthCheckResponse:  # noqa: N802
        state = self._states.get(request.service)
        if state is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service or model")
        return pb.HealthCheckResponse(status=state)

    async def List(self, _request: Any, context: _Context) -> Any:  # noqa: N802
        if len(self._states) > MOST_LISTED:
            problem = f"there are more than {MOST_LISTED} names; ask for each by Check"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        return health_messages.HealthListResponse(
            statuses={name: health_messages.HealthCheckResponse(status=state) for name, state in self._states.items()}
        )

    async def Watch(self, request: pb.HealthCheckRequest, context: _Context) -> None:  # noqa: N802
        reported = None
        while True:
            changed = self._changed
            state = self._states.get(request.service, _UNKNOWN)
            if state != reported:
                reported = state
                await context.write(pb.HealthCheckResponse(status=state))
            elif self._ending:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is draining")
            else:
                await changed.wait()

    def _change(self, states: dict[str, Any]) -> None:
        self._states = states
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def check(target: str, service: str, timeout: float, credentials: grpc.ChannelCredentials | None = None) -> str:
    """The state of `service` at `target`, such as SERVING; of a call that failed, its status code and message."""
    channel = grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target)
    with channel:
        stub: Any = pb_grpc.HealthStub(channel)
        try:
            reply = stub.Check(pb.HealthCheckRequest(service=service), timeout=timeout)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return str(pb.HealthCheckResponse.ServingStatus.Name(reply.status))
