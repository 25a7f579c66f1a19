"""`cifarserve serve`: one process or several, as the settings say, and what is printed when they are ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from service import addresses, workers
from service.config import Settings
from service.errors import StartError
from service.workers import Started

if TYPE_CHECKING:
    from service.server import Server


def run(settings: Settings, started: Callable[[Started], None]) -> None:
    """Serve until a signal ends it. Calls `started` when everything is ready.

    Raises StartError, and CancelledError when a second signal stopped it.
    """
    if settings.workers > 1:
        asyncio.run(workers.supervise(settings, started))
    else:
        here(settings, lambda server: started(started_as(server)))


def here(settings: Settings, started: Callable[[Server], None]) -> None:
    """Serve in this process, with what `run` raises. Imports ONNX Runtime, which a supervisor of workers is without."""
    from service.server import serve
    from service.serving import LoadError
    from service.tracing import TracingError

    try:
        serve(settings, started)
    except (LoadError, TracingError) as error:
        raise StartError(str(error)) from error


def started_as(server: Server) -> Started:
    """Where the server listens, and what it serves."""
    return Started(server.port, server.metrics_port, [model.description for model in server.repository.models()])


def announcement(settings: Settings, started: Started) -> str:
    """What is printed when the server is ready. Its addresses can be called from this machine."""
    address = addresses.to_call(settings.host, started.port)
    metrics = f"http://{addresses.to_call(settings.metrics_host or settings.host, started.metrics_port)}"
    lines = [f"serving {model}" for model in started.models]
    lines += [f"gRPC     {addresses.joined(settings.host, started.port)}", f"metrics  {metrics}/metrics"]
    lines += [f"page     {metrics}/"] if settings.page else []
    return "\n".join([*lines, f"try      cifarserve classify --target {address} PICTURE"])
