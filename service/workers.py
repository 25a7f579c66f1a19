"""Several server processes on one port: started, restarted when they die, drained together, measured as one.

The kernel spreads the connections (SO_REUSEPORT). The supervisor serves no call itself; it keeps the port, starts the
workers (service.worker), passes signals on, and answers scrapes with their merged metrics; its page asks the workers
through the common port. A worker drains when its standard input ends: none outlives its supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
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

from service import addresses, cpu, process_start, tracing
from service.child_process import ChildProcess, ReportError, ending
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
_ENDING_SECONDS = 5.0  # for a worker to end in, beyond the time to drain
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
    """Belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._at_once = False
        self._starting = asyncio.Lock()  # one worker at a time: see process_start.signals_held
        self._living: dict[int, ChildProcess] = {}  # by the worker's number
        self._ready: dict[int, list[str]] = {}  # what each of them serves
        self._all_ready = asyncio.Event()
        self._metrics = MergedMetrics(exemplars=bool(os.environ.get(tracing.ENDPOINT)))
        families = Families()
        self._registry = families.registry
        self._registry.register(self._metrics)
        self._restarts, ready = worker_metrics(families)
        self._probes = WorkerProbes()
        ready.set_function(self._probes.ready)

    async def run(self, metrics_port: int, started: Callable[[Started], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        # A worker that is still starting keeps the signal until it can look.
        loop.add_signal_handler(signal.SIGHUP, lambda: self._tell(signal.SIGHUP, self._living))
        http = self._listen(metrics_port, Heartbeat(loop))
        tasks = [self._keep(number) for number in range(self._settings.workers)]
        tasks += [self._announce(http.port, started), self._keep_looking()]
        running = [asyncio.create_task(task) for task in tasks]
        try:
            await asyncio.gather(*running)
        except StartError:
            raise
        except Exception as error:
            log.exception("the supervisor fails")
            raise StartError(f"the supervisor of the workers fails: {error!r}") from error
        finally:  # a failure of one of them ends all
            if not self._stop.is_set():
                self._on_stop()
            await asyncio.wait(running)
            http.close()
        if self._at_once:
            raise asyncio.CancelledError

    def _listen(self, metrics_port: int, heartbeat: Heartbeat) -> HttpServer:
        host = self._settings.metrics_host or self._settings.host
        page = Page(self._settings, self._settings.port) if self._settings.page else None
        try:
            return HttpServer(
                host, metrics_port, self._registry,
                ready=lambda: self._probes.ready() > 0 and not self._stop.is_set() and heartbeat.beats(),
                live=heartbeat.beats, page=page,
            )  # fmt: skip
        except OSError as error:
            address = addresses.joined(host, metrics_port)
            raise StartError(f"metrics_port: cannot listen on {address}: {error.strerror}") from None

    async def _announce(self, metrics_port: int, started: Callable[[Started], None]) -> None:
        await self._all_ready.wait()
        if not self._stop.is_set():
            started(Started(self._settings.port, metrics_port, next(iter(self._ready.values()), [])))

    def _on_stop(self) -> None:
        """Let the workers drain, and kill those that do not end in time; at the second call, let them end at once."""
        self._at_once = self._stop.is_set()
        self._stop.set()
        self._all_ready.set()
        self._tell(signal.SIGTERM, self._living)
        loop, drain = asyncio.get_running_loop(), self._settings.lame_duck_seconds + self._settings.drain_seconds
        loop.call_later(_ENDING_SECONDS, lambda: self._kill(self._living.keys() - self._ready.keys()))
        loop.call_later(_ENDING_SECONDS + (0.0 if self._at_once else drain), lambda: self._kill(self._living))

    def _kill(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            log.error("worker %d does not end: it is killed", number)
        self._tell(signal.SIGKILL, numbers)

    def _tell(self, signal_number: signal.Signals, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._living[number].signal(signal_number)

    async def _keep(self, number: int) -> None:
        """Keep worker `number` running until the server stops. Raises StartError when it does not come up at first."""
        delay, came_up = _FIRST_DELAY, False
        while not self._stop.is_set():
            began = time.monotonic()
            reason = await self._live(number)
            came_up = came_up or reason.was_ready
            if self._stop.is_set():
                return
            if not came_up:
                raise StartError(f"worker {number} did not start: {reason.words}")
            self._restarts.inc()
            delay = _FIRST_DELAY if time.monotonic() - began > _HEALTHY_SECONDS else min(2 * delay, _LONGEST_DELAY)
            log.error("worker %d died: %s; started again in %.1f s", number, reason.words, delay)
            with contextlib.suppress(TimeoutError):  # of `timeout`: the delay is over
                async with asyncio.timeout(delay):
                    await self._stop.wait()

    async def _live(self, number: int) -> _End:
        """One life of a worker, from its start to its end."""
        try:
            async with self._starting:
                with process_start.signals_held():
                    # A session of its own, so that the end of a terminal reaches the supervisor alone.
                    worker = await ChildProcess.start("service.worker", session=True)
        except OSError as error:
            return _End(f"its process cannot be started: {error}")
        self._living[number] = worker
        end, url = _End(), ""
        try:
            if self._stop.is_set():
                worker.signal(signal.SIGTERM)
            worker.tell(dataclasses.asdict(self._settings))
            while (report := await worker.report()) is not None:
                if "error" in report:
                    end.words = report["error"]
                    continue
                end.was_ready, url = True, f"http://127.0.0.1:{report['metrics_port']}/metrics"
                self._metrics.add(url)
                self._has_come_up(number, report["models"])
                self._probes.add(number, report["metrics_port"])
                log.info("worker %d is ready, process %d", number, worker.pid)
            status = await worker.wait()
            end.words = end.words or ending(status)
        except ReportError as error:
            end.words = str(error)
        finally:
            await worker.kill()
            del self._living[number]
            self._ready.pop(number, None)
            self._probes.remove(number)
            self._metrics.remove(url)
        return end

    def _has_come_up(self, number: int, models: list[str]) -> None:
        self._ready[number] = models
        if len(self._ready) == self._settings.workers:
            self._all_ready.set()

    async def _keep_looking(self) -> None:
        while not self._stop.is_set():
            await asyncio.to_thread(self._metrics.look)
            for number in await asyncio.to_thread(self._probes.ask):
                if number in self._living:
                    log.error("worker %d hangs: /live has not been good for too long; it is killed", number)
                    self._tell(signal.SIGKILL, [number])
            with contextlib.suppress(TimeoutError):  # of `timeout`: it is time to look again
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._stop.wait()


@dataclass
class _End:
    """Why a worker ended, for people, and whether it had been ready."""

    words: str = ""
    was_ready: bool = False


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
        raise StartError(f"port: cannot listen on {addresses.joined(host, port)}: {error.strerror}") from None
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
