"""What breaks beside the server, under load: the callers notice what docs/reliability.md says, and it goes on after."""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from PIL import Image

from service.client import Client, ClientError, Options
from tests import colour_model
from tests.integration.server_process import ROOT, ServerProcess, serving

POLL = ("--model-control", "poll", "--poll-seconds", 0.1)
RED = [colour_model.plain((255, 0, 0))]


class Load:
    """Callers that classify one picture after the other. Wrong answers fail the test; errors are counted by code."""

    def __init__(self, server: ServerProcess, callers: int = 4) -> None:
        self.answered = 0
        self.errors: Counter[str] = Counter()
        self._client = Client(server.target, Options(attempts=1, timeout=20))
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(callers)
        self._jobs = [self._pool.submit(self._call_on) for _ in range(callers)]

    def _call_on(self) -> None:
        while not self._ended.is_set():
            try:
                (prediction,) = self._client.classify(RED)
            except ClientError as error:
                self.errors[error.code.name] += 1
                time.sleep(0.01)
            else:
                assert prediction.best.label == "red"
                self.answered += 1

    def more(self, answers: int = 50, patience: float = 60) -> None:
        """Go on until so many more are answered."""
        wanted = self.answered + answers
        until(lambda: self.answered >= wanted, patience)

    def end(self) -> None:
        self._ended.set()
        for job in self._jobs:
            job.result(timeout=60)
        self._client.close()


@contextmanager
def load_on(server: ServerProcess) -> Iterator[Load]:
    load = Load(server)
    try:
        load.more()
        yield load
    finally:
        load.end()


def until(condition: Callable[[], bool], patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    colour_model.publish(models)
    return models


def test_the_repository_is_deleted_and_comes_back(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", *POLL) as server, load_on(server) as load:
        shutil.move(models, tmp_path / "gone")
        load.more()
        shutil.move(tmp_path / "gone", models)
        colour_model.publish(models, version=2)
        until(lambda: server.metric("cifarserve_model_state", version="2", state="READY") == 1)
        load.more()
        assert not load.errors


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_version_is_passed_over(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", *POLL) as server, load_on(server) as load:
        folder = colour_model.publish(tmp_path / "other", version=2)
        (folder / "model.onnx").chmod(0)
        shutil.move(folder, models / "colours" / "2")
        until(lambda: server.metric("cifarserve_load_failures_total") > 0)
        load.more()
        assert not load.errors


def test_garbage_in_the_place_of_a_new_version_is_passed_over(models: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with serving(models, tmp_path / "log", *POLL) as server, load_on(server) as load:
        folder = tmp_path / "garbage"
        folder.mkdir()
        for name in ("manifest.json", "model.onnx", "golden.npz", "config.toml"):
            (folder / name).write_bytes(generator.bytes(10_000))
        shutil.move(folder, models / "colours" / "2")
        (models / "colours" / "config.toml").write_bytes(generator.bytes(1000))
        (models / "other").write_bytes(generator.bytes(1000))
        until(lambda: "config.toml" in server.log.read_text())
        (models / "colours" / "config.toml").unlink()
        until(lambda: server.metric("cifarserve_load_failures_total") > 0)
        load.more()
        assert not load.errors
        assert server.metric("cifarserve_model_state", version="1", state="READY") == 1


def test_file_descriptors_run_out_and_come_back(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log") as server, ExitStack() as stack:
        used = open_files(server)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 30, used + 30))
        with load_on(server) as load:
            idle = [stack.enter_context(_connect(server)) for _ in range(100)]
            load.more()
            assert not load.errors, "who was connected before notices nothing"
            for one in idle:
                one.close()
            until(lambda: open_files(server) < used + 15)
            with Client(server.target, Options(attempts=5, timeout=30)) as late:
                assert late.classify(RED)[0].best.label == "red"


def test_thousands_of_idle_connections_cost_the_others_nothing(models: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8000:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8000), hard))
    with serving(models, tmp_path / "log") as server, ExitStack() as stack:
        before = server.metric("process_resident_memory_bytes")
        for _ in range(3000):
            stack.enter_context(_connect(server))
        until(lambda: server.metric("process_open_fds") > 3000)
        with load_on(server) as load:
            load.more(200)
            assert not load.errors
        grown = server.metric("process_resident_memory_bytes") - before
        assert grown < 150e6, f"{grown / 3000:.0f} bytes a connection"
        stack.close()
        until(lambda: server.metric("process_open_fds") < 200)


def test_a_caller_that_reads_nothing_is_read_no_further_and_disturbs_no_one(models: Path, tmp_path: Path) -> None:
    images = [pb.Image(raw=pb.RawImage(rgb=RED[0].tobytes(), width=8, height=8))] * 16
    sent = 0
    ended = threading.Event()

    def endless() -> Iterator[pb.ClassifyRequest]:
        nonlocal sent
        while not ended.is_set():
            sent += 1
            yield pb.ClassifyRequest(images=images, id="x" * 1000)

    with serving(models, tmp_path / "log", "--stream-window", 64) as server, load_on(server) as load:
        before = server.metric("process_resident_memory_bytes")
        with grpc.insecure_channel(server.target) as channel:
            call = pb_grpc.ClassifierStub(channel).ClassifyStream(endless())
            next(call)  # and then no more: the library buffers one answer, the windows of HTTP/2 fill
            quiet = Quiet(lambda: sent)
            until(quiet, 60)
            load.more(100)
            assert server.metric("process_resident_memory_bytes") - before < 100e6
            ended.set()
            call.cancel()
        load.more(100)
        assert not load.errors


class Quiet:
    """Whether a number has stood still for a second."""

    def __init__(self, number: Callable[[], int]) -> None:
        self._number = number
        self._last, self._since = number(), time.monotonic()

    def __call__(self) -> bool:
        if (now := self._number()) != self._last:
            self._last, self._since = now, time.monotonic()
        return time.monotonic() - self._since > 1


PUBLISH_INTO = """
import sys
from pathlib import Path
from training.publish import _publish
from service.manifest import read_manifest
source, folder = map(Path, sys.argv[1:])
try:
    print(_publish(source, read_manifest(source), folder, None).version)
except OSError as error:
    sys.exit(f"refused: {error.strerror}")
"""


def test_a_full_disk_while_publishing_leaves_no_half_version_and_the_server_serving(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        models = disk / "models"
        source = colour_model.publish(tmp_path / "source")

        def publish() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", PUBLISH_INTO, source, models / "colours"]
            environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"}
            return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=environment)

        assert publish().stdout == "1\n"
        with serving(models, tmp_path / "log", *POLL) as server, load_on(server) as load:
            (disk / "ballast").write_bytes(b"x" * (shutil.disk_usage(disk).free - 4096))
            assert "No space left" in publish().stderr
            assert [path.name for path in (models / "colours").iterdir()] == ["1"]
            load.more()
            (disk / "ballast").unlink()
            assert publish().stdout == "2\n"
            until(lambda: server.metric("cifarserve_model_state", version="2", state="READY") == 1)
            load.more()
            assert not load.errors
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_a_pause_while_thousands_of_calls_come_leaves_none_of_them_without_a_status_of_ours(
    models: Path, tmp_path: Path
) -> None:
    request = pb.ClassifyRequest(images=[pb.Image(raw=pb.RawImage(rgb=bytes(3 * 8 * 8), width=8, height=8))])
    ended: Counter[str] = Counter()
    with serving(models, tmp_path / "log") as server, ExitStack() as stack:
        options = (("grpc.use_local_subchannel_pool", 1),)  # a connection for each
        channels = [stack.enter_context(grpc.insecure_channel(server.target, options)) for _ in range(4)]
        stubs = [pb_grpc.ClassifierStub(channel) for channel in channels]
        for stub in stubs:
            stub.Classify(request, timeout=20)
        server.process.send_signal(signal.SIGSTOP)
        calls = [stubs[number % 4].Classify.future(request, timeout=60) for number in range(3500)]
        time.sleep(1)
        server.process.send_signal(signal.SIGCONT)
        for call in calls:
            ended[call.code().name] += 1
        assert ended.keys() <= {"OK", "RESOURCE_EXHAUSTED"}, ended


def test_calls_beyond_thousands_that_were_given_up_during_a_pause_are_never_begun(models: Path, tmp_path: Path) -> None:
    """gRPC's protection against callers that open and drop streams faster than they are cleared away."""
    request = pb.ClassifyRequest(images=[pb.Image(raw=pb.RawImage(rgb=bytes(3 * 8 * 8), width=8, height=8))])
    with serving(models, tmp_path / "log") as server, grpc.insecure_channel(server.target) as channel:
        stub = pb_grpc.ClassifierStub(channel)
        stub.Classify(request, timeout=20)
        server.process.send_signal(signal.SIGSTOP)
        given_up = [stub.Classify.future(request, timeout=0.5) for _ in range(1000)]
        assert {call.code() for call in given_up} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        given_up = [stub.Classify.future(request, timeout=0.5) for _ in range(1000)]
        assert {call.code() for call in given_up} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        calls = [stub.Classify.future(request, timeout=60) for _ in range(900)]
        server.process.send_signal(signal.SIGCONT)
        ended = Counter(call.code().name for call in calls)
        assert ended.keys() <= {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}, ended
        refused = [call for call in calls if call.code() is grpc.StatusCode.UNAVAILABLE]
        assert refused
        # HTTP/2's REFUSED_STREAM: whoever gets it may send the same again without doing anything twice.
        assert {"error code 7" in str(call.details()) for call in refused} == {True}
        begun = server.metric("grpc_server_started_total", grpc_method="Classify")
        assert begun <= 1 + 2000 + len(calls) - len(refused)
        with Client(server.target, Options(attempts=5, timeout=60)) as client:
            assert client.classify(RED)[0].best.label == "red"


def test_no_time_that_matters_is_read_from_a_clock_that_can_be_set() -> None:
    """Deadlines, waits and ages are on the monotonic clock, so that a clock that jumps changes nothing."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "service").glob("*.py")
        for line in path.read_text().splitlines()
        if "= time.time(" in line or "datetime.now(" in line
    ]
    # Spans, and when a model was last asked, are dates for people.
    assert [
        one for one in found if not one.startswith(("tracing.py", "version_metrics.py: self.statistics.last"))
    ] == []
    assert len(found) == 1


def open_files(server: ServerProcess) -> int:
    return sum(1 for _ in Path(f"/proc/{server.process.pid}/fd").iterdir())


def _connect(server: ServerProcess) -> socket.socket:
    host, port = server.target.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=10)


def test_no_memory_for_large_pictures_is_said_and_the_small_ones_go_on(models: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (7900, 7900), (255, 0, 0)).save(file, "PNG")  # some 200 KB; 187 MB once it is decoded
    with serving(models, tmp_path / "log", "--decode-threads", 2) as server, load_on(server) as load:
        with Client(server.target, Options(attempts=1, timeout=60)) as client:
            assert client.classify([file.getvalue()])[0].best.label == "red"
            taken = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(server.process.pid, resource.RLIMIT_AS, (taken + 100_000_000, resource.RLIM_INFINITY))
            for _ in range(6):
                with pytest.raises(ClientError, match="memory") as caught:
                    client.classify([file.getvalue()])
                assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                load.more()
            resource.prlimit(server.process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            assert client.classify([file.getvalue()])[0].best.label == "red"
        assert not load.errors
