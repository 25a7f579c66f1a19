"""A log or an output that nobody reads, or that cannot be written: the server serves, starts and ends all the same."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc

from service.client import Client, Options
from tests import certificates, colour_model
from tests.integration.server_process import ENVIRONMENT, ServerProcess, command, serving
from tests.integration.test_probes import probe
from tests.integration.test_workers import WORKERS, until

DROPPED = "cifarserve_log_lines_dropped_total"
ACCESS = ("--access-log-share", 1)
PAGE = 4096  # the smallest pipe there is


class Unread:
    """A pipe at `path` for the server's log, which is full soon, and which nobody reads before `read`."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._end, fcntl.F_SETPIPE_SZ, PAGE)
        self.path, self.text = path, ""

    def read(self) -> None:
        """Read from now on, into `text`."""
        os.set_blocking(self._end, True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while content := os.read(self._end, 1 << 16):
            self.text += content.decode()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def unread(tmp_path: Path) -> Unread:
    return Unread(tmp_path / "log")


def call_until(server: ServerProcess, condition: Callable[[], bool]) -> int:
    """How many calls were made, in rounds, until the condition came. Each must be answered."""
    image = pb.Image(raw=pb.RawImage(rgb=colour_model.plain((255, 0, 0)).tobytes(), width=8, height=8))
    request, calls = pb.ClassifyRequest(images=[image]), 0
    with grpc.insecure_channel(server.target) as channel:
        stub = pb_grpc.ClassifierStub(channel)
        while not condition():
            for call in [stub.Classify.future(request, timeout=60) for _ in range(500)]:
                call.result()
            calls += 500
            assert calls < 200_000
    return calls


def test_a_log_that_nobody_reads_stops_nothing_and_what_is_dropped_is_counted(models: Path, unread: Unread) -> None:
    colour_model.publish(models)
    with serving(models, unread.path, *ACCESS) as server:
        calls = call_until(server, lambda: server.metric(DROPPED) > 100)
        assert (probe(server, "/live"), probe(server, "/ready")) == (200, 200)
        dropped = server.metric(DROPPED)
        unread.read()
        until(lambda: "were dropped" in unread.text and unread.text.endswith("\n"))
        with Client(server.target, Options(timeout=30)) as client:
            client.classify([colour_model.plain((255, 0, 0))])
        until(lambda: sum(line["logger"] == "service.access" for line in unread.lines()) + dropped == calls + 1)
        assert sum(line["dropped"] for line in unread.lines() if "dropped" in line) == dropped
        assert server.metric(DROPPED) == dropped


@pytest.mark.parametrize("flags", [(), WORKERS])
def test_a_log_that_nobody_reads_does_not_hold_the_end(models: Path, unread: Unread, flags: tuple[object, ...]) -> None:
    colour_model.publish(models)
    with serving(models, unread.path, *ACCESS, *flags) as server:
        call_until(server, iter([False, False, True]).__next__)
        assert probe(server, "/ready") == 200
        server.terminate()
        assert server.wait() == 0


def test_what_grpc_itself_writes_does_not_stop_a_server_whose_log_is_not_read(
    models: Path, tmp_path: Path, unread: Unread
) -> None:
    colour_model.publish(models)
    pair = certificates.make("server")
    certificate, key = pair.write(tmp_path, "server")
    with serving(models, unread.path, "--tls-certificate", certificate, "--tls-key", key) as server:
        host, port = server.target.split(":")
        for _ in range(100):  # each of which gRPC writes a line about, to the log's descriptor
            with socket.create_connection((host, int(port)), timeout=30) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                stranger.settimeout(30)
                while stranger.recv(1024):
                    pass
        with Client(server.target, Options(tls=True, root_certificates=pair.pem, timeout=30)) as client:
            assert client.classify([colour_model.plain((255, 0, 0))])
        unread.read()
        until(lambda: "SSL" in unread.text)


def test_a_log_that_cannot_be_written_stops_nothing(models: Path) -> None:
    colour_model.publish(models)
    with serving(models, Path("/dev/full"), *ACCESS) as server:
        with Client(server.target, Options(timeout=30)) as client:
            client.classify([colour_model.plain((255, 0, 0))])
        until(lambda: server.metric(DROPPED) >= 2)
        server.terminate()
        assert server.wait() == 0


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that holds nothing more."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PAGE)
    os.write(writing, b"\n" * PAGE)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_a_start_that_fails_ends_although_nobody_reads_why(models: Path, full_pipe: tuple[int, int]) -> None:
    arguments = ("--model-repository", models / "none", "--port", 0, "--metrics-port", 0)
    process = subprocess.Popen(command("serve", *arguments), stderr=full_pipe[1], env=ENVIRONMENT)
    try:
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.wait()


def test_why_a_start_failed_is_the_last_line_of_the_log(models: Path) -> None:
    arguments = ("--model-repository", models / "none", "--port", 0, "--metrics-port", 0)
    result = subprocess.run(
        command("serve", *arguments), capture_output=True, env=ENVIRONMENT, text=True, timeout=60, check=False
    )
    assert result.stderr.splitlines()[-1].startswith("cifarserve: ")


def test_an_output_that_nobody_reads_does_not_hold_the_start(
    models: Path, tmp_path: Path, full_pipe: tuple[int, int]
) -> None:
    colour_model.publish(models)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ("--model-repository", models, "--port", 0, "--metrics-port", port)
    reading, writing = full_pipe
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command("serve", *arguments), stdout=writing, stderr=log, env=ENVIRONMENT) as process,
    ):
        server = ServerProcess(process, tmp_path / "log", [], "", f"http://127.0.0.1:{port}/metrics")  # type: ignore[arg-type]
        try:
            until(lambda: is_answered(server) and probe(server, "/ready") == 200)
            text = ""
            while "try " not in text:
                text += os.read(reading, 1 << 16).decode()
            assert text.lstrip().startswith("serving colours version 1")
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


def is_answered(server: ServerProcess) -> bool:
    try:
        return bool(probe(server, "/live"))
    except OSError:
        return False
