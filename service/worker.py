"""One of several workers: `python -m service.worker PIPE`, started by service.workers.

It gets its settings as the first line of its standard input, and drains when that input ends. It reports once: where
its own metrics are and what it serves, when it is ready, or `error`, why it does not start.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from service import process_start

if TYPE_CHECKING:
    from service.child_process import Reports
    from service.server import Server


def main() -> int:
    """The exit status. Whatever ends the worker before it is ready is reported, so that its supervisor can say it."""
    process_start.begin(serving=True)
    import asyncio
    import contextlib
    import logging

    from service.child_process import Reports
    from service.config import ConfigError
    from service.errors import StartError

    log, reports = logging.getLogger(__name__), Reports()
    try:
        _serve(reports)
    except asyncio.CancelledError:
        return 1
    except Exception as error:
        known = isinstance(error, StartError | ConfigError)
        reason = str(error) if known else repr(error)
        log.error("%s", reason, exc_info=None if known else error)
        with contextlib.suppress(BrokenPipeError):  # the supervisor is gone
            reports.send({"error": reason})
        return 1
    return 0


def _serve(reports: Reports) -> None:
    from service import config, logs, serve, workers

    settings = config.from_json(sys.stdin.readline())
    logs.configure(settings.log_level, settings.log_format)
    workers.stop_when_input_ends()

    def ready(server: Server) -> None:
        started = serve.started_as(server)
        reports.send({"metrics_port": started.metrics_port, "models": started.models})

    serve.here(settings, ready)


if __name__ == "__main__":
    status = main()
    from service.workers import leave

    sys.exit(leave(status))
