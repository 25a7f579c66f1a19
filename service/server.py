"""Assembles the gRPC server and its metrics endpoint, runs them until a signal comes, and drains."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from cifarserve.v1 import classifier_pb2_grpc
from inference import grpc_predict_v2_pb2_grpc

from service import addresses, cpu, gpu, memory, reflection, security, tracing
from service.classifier import Classifier
from service.config import Settings
from service.door import Door
from service.errors import StartError
from service.event_loop import new_loop
from service.frontend import Frontend
from service.grpc_metrics import CallMetrics, Methods
from service.health import Health
from service.heartbeat import Heartbeat
from service.http import HttpServer
from service.metrics import Metrics
from service.open_inference import OpenInference
from service.page import Page
from service.repository import Repository
from service.streams import Streams

log = logging.getLogger(__name__)

# Seconds for a batch that is still being computed when nobody waits for it any more; see workers.leave.
_LAST_BATCH = 1.0

MAX_UNSEEN_CALLS = 16_384


class _Executor(ThreadPoolExecutor):
    """The event loop's own, for asyncio.to_thread. What still runs there when the loop ends, such as the loading of a
    model, does not keep it: nobody waits for that any more. See workers.leave.
    """

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        super().shutdown(wait=False, cancel_futures=True)


class Lost(StartError):
    """Only a new process can go on: an engine of a worker is lost, or gRPC has ended by itself."""


class Server:
    """One server on one event loop: `await start()`, then `await stop()`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._shares_port = settings.workers > 1
        self.metrics = Metrics()
        self._health = Health()
        self.repository = Repository(settings, self.metrics, self._report)
        self.metrics.watch_states(self.repository.states)
        self.metrics.watch_gpus(gpu.find())
        self.port = 0
        self.metrics_port = 0
        self._decoders = ThreadPoolExecutor(settings.decode_threads or cpu.usable_cores(), "decode")
        self._streams = Streams(settings.stream_window)
        self._tracing = tracing.start()
        self._frontend = Frontend(self.repository, settings, self.metrics, self._decoders, self._tracing)
        self._classifier = Classifier(self._frontend, self._streams)
        self._open_inference = OpenInference(self._frontend, self._streams)
        self._certificates = security.certificates(settings)
        if self._certificates is not None:
            self.metrics.watch_certificate(self._certificates.expires)
        self._grpc = self._make_grpc_server()
        self._http: HttpServer | None = None
        self._draining = False
        self._engine_lost = asyncio.Event()
        self.look_again = asyncio.Event()  # set it for a look into the repository once the server has started
        self._looking: asyncio.Task[None] | None = None
        self._grpc_ended: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Listen, load the models, then report SERVING. Calls that come before that are answered UNAVAILABLE.

        One of several workers listens when it is ready: until then, the port leads to the others.

        Raises StartError when a port is taken and serving.LoadError when a model cannot be served.
        """
        loop = asyncio.get_running_loop()
        self.metrics.watch_loop(loop)
        if self._shares_port:
            await self.repository.start()
        self._listen(Heartbeat(loop))
        await self._grpc.start()
        if not self._shares_port:
            await self.repository.start()
        self._looking = asyncio.create_task(self._keep_looking(), name="look again")

    async def ended(self, stop: asyncio.Event) -> str:
        """Wait until `stop` is set, which gives an empty text, or until this process cannot go on: why not."""
        self._grpc_ended = asyncio.create_task(self._grpc.wait_for_termination(), name="gRPC")
        waits: dict[asyncio.Task[Any], str] = {asyncio.create_task(stop.wait()): ""}
        if self._shares_port:  # no liveness probe asks one of several workers
            waits[asyncio.create_task(self._engine_lost.wait())] = "an engine is lost"
        own = {self._grpc_ended: "gRPC has ended by itself"}
        if self._looking is not None:
            own[self._looking] = "looking into the model repository has ended by itself"
        try:
            done, _ = await asyncio.wait({*waits, *own}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        return min((waits | own)[task] for task in done)

    async def stop(self, lame_duck_seconds: float = 0.0) -> None:
        """Drain: report NOT_SERVING, wait the lame-duck time, refuse new calls, answer every accepted one.

        Takes at most lame_duck_seconds + drain_seconds, and a second; calls that are not done by then are cancelled.
        """
        log.info("draining")
        if self._looking is not None:
            self._looking.cancel()
        self._draining = True
        self._health.not_serving()
        await asyncio.sleep(lame_duck_seconds)
        deadline = time.monotonic() + self.settings.drain_seconds
        self._health.end_watches()
        self._streams.drain()
        self._frontend.shadow.end()
        # The batchers refuse and finish first: what comes while gRPC itself stops would be answered CANCELLED.
        closing = asyncio.create_task(self.repository.close())
        await asyncio.wait({closing}, timeout=self.settings.drain_seconds)
        await self._grpc.stop(max(0.0, deadline - time.monotonic()))
        for done in (await asyncio.wait({closing}, timeout=_LAST_BATCH))[0]:
            done.result()
        if self._grpc_ended is not None:  # not cancelled: what it waits for is what gRPC's own stop waits for
            await asyncio.wait({self._grpc_ended})
            self._grpc_ended.exception()
        # Not waited for: a picture may take any time, and nobody waits for it any more. See workers.leave.
        self._decoders.shutdown(wait=False, cancel_futures=True)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        if self._http is not None:
            self._http.close()
        log.info("stopped")

    def _make_grpc_server(self) -> grpc.aio.Server:
        options = [
            ("grpc.max_receive_message_length", self.settings.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # A second server on the port would otherwise start without an error and take half of the calls.
            ("grpc.so_reuseport", int(self._shares_port)),
            *connection_age(self.settings.max_connection_age_seconds, self.settings.drain_seconds),
            *limits(self.settings),
        ]
        calls = CallMetrics(self.metrics.families, self.metrics.unknown)
        guard = security.guard(self.settings, calls.refused)
        server = grpc.aio.server(options=options, interceptors=[guard] if guard else None)
        methods: Any = Methods(calls, Door(self._frontend), self.settings.max_images_per_request)
        classifier_pb2_grpc.add_ClassifierServicer_to_server(self._classifier, methods)
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._open_inference, methods)
        self._health.register(methods)
        reflection.register(methods)
        server.add_generic_rpc_handlers((methods,))
        return server

    def _listen(self, heartbeat: Heartbeat) -> None:
        settings = self.settings
        address = addresses.joined(settings.host, settings.port)
        try:
            self.port = (
                self._grpc.add_secure_port(address, self._certificates.credentials())
                if self._certificates
                else self._grpc.add_insecure_port(address)
            )
        except RuntimeError as error:
            raise StartError(f"port: cannot listen on {address}: {error}") from None
        # A worker's own metrics are for its supervisor, on this machine; the page is the supervisor's.
        metrics_host = "127.0.0.1" if self._shares_port else settings.metrics_host or settings.host
        try:
            health = self._health
            self._http = HttpServer(
                metrics_host, settings.metrics_port, self.metrics.registry,
                ready=lambda: health.is_serving and heartbeat.beats(),
                live=lambda: health.is_live and heartbeat.beats(),
                page=Page(settings, self.port) if settings.page and not self._shares_port else None,
            )  # fmt: skip
        except OSError as error:
            address = addresses.joined(metrics_host, settings.metrics_port)
            raise StartError(f"metrics_port: cannot listen on {address}: {error.strerror}") from None
        self.metrics_port = self._http.port

    async def _keep_looking(self) -> None:
        """Look into the repository when asked, and by the clock. Publishing is one rename: there is no half state."""
        failed = ""
        while True:
            # Without polling, the clock counts as long as a model is missing that should be served.
            by_clock = self.settings.model_control == "poll" or self.repository.missing
            with contextlib.suppress(TimeoutError):  # of the wait
                async with asyncio.timeout(self.settings.poll_seconds if by_clock else None):
                    await self.look_again.wait()
            asked = self.look_again.is_set()
            self.look_again.clear()
            try:
                await self.repository.refresh(asked)
                failed = ""
            except Exception as error:  # a fault of ours: what is served goes on, and so does looking
                if repr(error) != failed:
                    log.exception("the look into the model repository failed")
                failed = repr(error)

    def _report(self) -> None:
        """Tell the health service what is ready."""
        if self._draining:
            return
        whole = ("", *reflection.SERVED) if self.repository.ready() else ()
        lost = self.repository.lost()
        self._health.serving((*whole, *self.repository.names()), self.repository.known(), live=not lost)
        if lost:
            self._engine_lost.set()


def serve(settings: Settings, started: Callable[[Server], None]) -> None:
    """Run `run` on an event loop of its own."""
    memory.bound()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.get_loop().set_default_executor(_Executor(thread_name_prefix="work"))
        runner.run(run(settings, started))


def connection_age(seconds: float, grace_seconds: float) -> list[tuple[str, int]]:
    """gRPC's options that end a connection after `seconds` (0: never), so that clients look for new replicas.

    Calls that are under way get `grace_seconds` to end.
    """
    if not seconds:
        return []
    ages = {"grpc.max_connection_age_ms": seconds, "grpc.max_connection_age_grace_ms": grace_seconds}
    return [(name, round(1000 * value)) for name, value in ages.items()]


def limits(settings: Settings) -> list[tuple[str, int]]:
    """gRPC's options against callers that take more than their part."""
    return [
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", settings.max_streams),
        # gRPC itself ends calls as CANCELLED, from 1,000 on some and from 3,000 on all, that wait for the event loop to
        # look at them, as after a pause of the machine. Seen by the loop, they get an answer or RESOURCE_EXHAUSTED.
        ("grpc.server.max_pending_requests", MAX_UNSEEN_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_UNSEEN_CALLS),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", round(1000 * settings.ping_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


async def run(settings: Settings, started: Callable[[Server], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal stops at once. SIGHUP looks for new versions.

    Calls `started` once the models are ready. Raises what Server.start raises, CancelledError when a second signal
    came before everything accepted was answered, and Lost when this process cannot go on.
    """
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            main.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    server = Server(settings)
    loop.add_signal_handler(signal.SIGHUP, server.look_again.set)
    lame_duck_seconds, problem = 0.0, ""
    try:
        if await _started(server, stop):
            # What is there now stays: the collector need not look through it again and again.
            gc.collect()
            gc.freeze()
            started(server)
            problem = await server.ended(stop)
            lame_duck_seconds = settings.lame_duck_seconds
    finally:
        await server.stop(lame_duck_seconds)
    if problem:
        raise Lost(problem)


async def _started(server: Server, stop: asyncio.Event) -> bool:
    """Start it; False when `stop` is set before it is ready, however long the models load. Raises as Server.start."""
    starting, stopping = asyncio.create_task(server.start()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return False
        await starting
        return True
    finally:
        stopping.cancel()
        starting.cancel()
        await asyncio.wait({starting})
