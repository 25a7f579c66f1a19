"""Several server processes on one port: started, restarted when they die, drained together, measured as one.

The kernel spreads the connections (SO_REUSEPORT). The supervisor serves no call itself; it keeps the port, starts the
workers (this module as a program), passes signals on, and answers scrapes with their merged metrics; its page asks the
workers through the common port. A worker gets its settings as one line of JSON on its standard input, says on its
standard output where its own metrics are once its models are ready, and drains when its standard input ends: no worker
outlives its supervisor.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from service import config, cpu, logs, tracing
from service.config import Settings
from service.errors import StartError
from service.heartbeat import Heartbeat
from service.http import HttpServer
from service.merged_metrics import MergedMetrics
from service.metric_families import Families
from service.page import Page
from service.worker_probes import WorkerProbes

log = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 0.1, 30.0  # seconds before a restart: doubled at each death in a row
_HEALTHY_SECONDS = 60.0  # a worker that lived so long died of something new
_LEAVE_SECONDS = 0.5  # for threads that are at work when the process is to end
_LOOK_SECONDS = 2.0  # so much of what a killed worker had counted may be missing in the sums


@dataclass(frozen=True)
class Started:
    """Where the whole server listens, and what it serves, in words."""

    port: int
    metrics_port: int
    models: list[str]


def count(settings: Settings) -> int:
    """How many processes `settings` ask for; for auto, one for every two cores: one's event loop, one's engine."""
    return settings.workers or max(1, cpu.usable_cores() // 2)


def share(settings: Settings, cores: int, port: int) -> Settings:
    """The settings of one of `settings.workers` processes: its part of the cores, the common port, its own metrics."""
    part = max(1, cores // settings.workers)
    return dataclasses.replace(
        settings,
        port=port,
        metrics_port=0,
        threads=settings.threads or part,
        decode_threads=settings.decode_threads or part,
    )


async def supervise(settings: Settings, started: Callable[[Started], None]) -> None:
    """Run `settings.workers` workers until SIGTERM or SIGINT, then drain them; a second signal stops them at once.

    SIGHUP makes all look for new versions. Calls `started` once all are ready. Raises StartError when a port is taken
    or a worker does not come up, and CancelledError when a second signal stopped them.
    """
    with _reserve(settings.host, settings.port) as reserved:
        port = reserved.getsockname()[1]
        supervisor = _Supervisor(share(settings, cpu.usable_cores(), port))
        await supervisor.run(settings.metrics_port, started)


def worker_metrics(families: Families) -> tuple[Counter, Gauge]:
    """The supervisor's own: restarts of workers, and how many are ready."""
    return (
        families.counter("cifarserve_worker_restarts", "Workers started again after they died."),
        families.gauge("cifarserve_workers", "Workers that are ready."),
    )


class _Supervisor:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._at_once = False
        self._living: dict[int, asyncio.subprocess.Process] = {}  # by the worker's number
        self._metrics = MergedMetrics(exemplars=bool(os.environ.get(tracing.ENDPOINT)))
        families = Families()
        self._registry = families.registry
        self._registry.register(self._metrics)
        self._restarts, ready = worker_metrics(families)
        self._ready: dict[int, list[str]] = {}  # what each of them serves
        self._to_look_again: set[int] = set()  # workers that were not ready when the others were told to
        self._probes = WorkerProbes()
        ready.set_function(self._probes.ready)

    async def run(self, metrics_port: int, started: Callable[[Started], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        host = self._settings.metrics_host or self._settings.host
        page = Page(self._settings, self._settings.port) if self._settings.page else None
        heartbeat = Heartbeat(loop)
        try:
            http = HttpServer(
                host, metrics_port, self._registry,
                ready=lambda: self._probes.ready() > 0 and not self._stop.is_set() and heartbeat.beats(),
                live=heartbeat.beats, page=page,
            )  # fmt: skip
        except OSError as error:
            raise StartError(f"metrics_port: cannot listen on {host}:{metrics_port}: {error.strerror}") from None
        looking = asyncio.create_task(self._keep_looking())
        firsts = [loop.create_future() for _ in range(self._settings.workers)]
        keepers = [asyncio.create_task(self._keep(number, first)) for number, first in enumerate(firsts)]
        try:
            await asyncio.gather(*firsts)
            if not self._stop.is_set():
                started(Started(self._settings.port, http.port, next(iter(self._ready.values()), [])))
            await asyncio.gather(*keepers)
        except StartError:
            self._stop.set()
            self._tell(signal.SIGTERM, self._living)
            await asyncio.gather(*keepers, return_exceptions=True)
            raise
        finally:
            looking.cancel()
            http.close()
        if self._at_once:
            raise asyncio.CancelledError

    def _on_stop(self) -> None:
        self._at_once = self._stop.is_set()
        self._stop.set()
        self._tell(signal.SIGTERM, self._living)

    def _on_hangup(self) -> None:
        # A process that has just been started would die of it: it is told when it is ready.
        self._to_look_again = self._living.keys() - self._ready.keys()
        self._tell(signal.SIGHUP, self._ready)

    def _tell(self, signal_number: signal.Signals, numbers: Iterable[int]) -> None:
        for number in list(numbers):
            worker = self._living[number]
            if worker.returncode is None:
                worker.send_signal(signal_number)

    async def _keep(self, number: int, first: asyncio.Future[None]) -> None:
        """Keep worker `number` running until the server stops. `first` is done when it is ready for the first time."""
        delay = _FIRST_DELAY
        while not self._stop.is_set():
            began = time.monotonic()
            status = await self._live(number, first)
            if not first.done():
                if self._stop.is_set():
                    first.set_result(None)
                else:
                    first.set_exception(StartError(f"worker {number} did not start: exit status {status}"))
                return
            if self._stop.is_set():
                return
            self._restarts.inc()
            delay = _FIRST_DELAY if time.monotonic() - began > _HEALTHY_SECONDS else min(2 * delay, _LONGEST_DELAY)
            log.error("worker %d died, exit status %d; started again in %.1f s", number, status, delay)
            try:
                async with asyncio.timeout(delay):
                    await self._stop.wait()
            except TimeoutError:
                pass

    async def _live(self, number: int, first: asyncio.Future[None]) -> int:
        """One life of a worker, from its start to its exit status."""
        pipe = asyncio.subprocess.PIPE
        # A session of its own, so that Ctrl-C in a terminal reaches the supervisor alone, which passes it on.
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __spec__.name, stdin=pipe, stdout=pipe, start_new_session=True
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        self._living[number] = worker
        url = ""
        try:
            if self._stop.is_set():
                worker.terminate()
            values = dataclasses.asdict(self._settings)
            worker.stdin.write(json.dumps(values, default=str).encode() + b"\n")
            if line := await worker.stdout.readline():
                ready = json.loads(line)
                url = f"http://127.0.0.1:{ready['metrics_port']}/metrics"
                self._metrics.add(url)
                self._ready[number] = ready["models"]
                self._probes.add(number, ready["metrics_port"])
                if number in self._to_look_again:
                    self._to_look_again.discard(number)
                    self._tell(signal.SIGHUP, [number])
                log.info("worker %d is ready, process %d", number, worker.pid)
                if not first.done():
                    first.set_result(None)
            return await worker.wait()
        finally:
            del self._living[number]
            self._ready.pop(number, None)
            self._probes.remove(number)
            self._metrics.remove(url)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.to_thread(self._metrics.look)
            for number in await asyncio.to_thread(self._probes.ask):
                if number in self._living:
                    log.error("worker %d hangs: /live has not been good for too long; it is killed", number)
                    self._tell(signal.SIGKILL, [number])


def _reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for the workers without listening. Raises StartError when somebody has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # First without sharing: the workers of another server on this port would take half of the calls.
        with socket.socket(family, socket.SOCK_STREAM) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
            alone.listen()
            port = alone.getsockname()[1]
        shared = socket.socket(family, socket.SOCK_STREAM)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind((host, port))
    except OSError as error:
        raise StartError(f"port: cannot listen on {host}:{port}: {error.strerror}") from None
    return shared


def stop_when_input_ends() -> None:
    """Send this process a SIGTERM when its standard input ends, as it does when whoever holds the other end dies."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def leave(status: int) -> int:
    """The exit status. Python's own end waits for threads that are at work as long as they take: for an engine's batch,
    a picture that is being decoded, a model that is being loaded. Nobody waits for those any more, so if it takes
    longer than _LEAVE_SECONDS the process ends at once.
    """
    guard = threading.Timer(_LEAVE_SECONDS, _end, (status,))
    guard.daemon = True
    guard.start()
    return status


def _end(status: int) -> None:
    main = threading.main_thread()
    if busy := sorted(thread.name for thread in threading.enumerate() if thread is not main and not thread.daemon):
        log.warning("the process ends although nobody waits for what these threads do: %s", ", ".join(busy))
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def main() -> int:
    """One worker."""
    from service import server
    from service.serving import LoadError
    from service.tracing import TracingError

    settings = config.from_json(sys.stdin.readline())
    logs.configure(settings.log_level, settings.log_format)
    stop_when_input_ends()

    def ready(one: server.Server) -> None:
        models = [model.description for model in one.repository.models()]
        print(json.dumps({"metrics_port": one.metrics_port, "models": models}), flush=True)  # noqa: T201

    try:
        server.serve(settings, ready)
    except (LoadError, StartError, TracingError, config.ConfigError) as error:
        log.error("%s", error)
        return 1
    except asyncio.CancelledError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(leave(main()))
