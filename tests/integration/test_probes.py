"""/live and /ready tell the truth: of an event loop that hangs, and of workers of which one does.

The server is the real one. Its event loop hangs in a signal handler, for as long as a file is there.
"""

from __future__ import annotations

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, ServerProcess, cli, serving
from tests.integration.test_workers import WORKERS, until, worker_processes

HANGING = """
import os, signal, time


def hang(*_):
    while os.path.exists({flag!r}):
        time.sleep(0.05)


signal.signal(signal.SIGUSR1, hang)
"""


class Hang:
    """Makes the event loops of processes hang, until `end`; their other threads go on."""

    def __init__(self, folder: Path) -> None:
        self._flag = folder / "hangs"
        code = folder / "code"
        code.mkdir()
        (code / "sitecustomize.py").write_text(HANGING.format(flag=str(self._flag)))
        self.environment = {"PYTHONPATH": f"{code}:{ENVIRONMENT['PYTHONPATH']}"}

    def begin(self, *processes: int) -> None:
        self._flag.touch()
        for process in processes:
            os.kill(process, signal.SIGUSR1)

    def end(self) -> None:
        self._flag.unlink(missing_ok=True)


@pytest.fixture
def hang(tmp_path: Path) -> Iterator[Hang]:
    hang = Hang(tmp_path)
    yield hang
    hang.end()


def probe(server: ServerProcess, path: str) -> int:
    try:
        with urllib.request.urlopen(server.metrics_url.removesuffix("/metrics") + path, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_probes_of_a_server_whose_loop_hangs_fail_until_it_goes_on(models: Path, tmp_path: Path, hang: Hang) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", environment=hang.environment) as server:
        assert (probe(server, "/live"), probe(server, "/ready")) == (200, 200)
        hang.begin(server.process.pid)
        until(lambda: probe(server, "/live") == 503)
        assert probe(server, "/ready") == 503
        hang.end()
        until(lambda: (probe(server, "/live"), probe(server, "/ready")) == (200, 200))


def test_a_process_that_was_paused_is_live_as_soon_as_it_goes_on(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log") as server:
        server.process.send_signal(signal.SIGSTOP)
        # Longer than a heartbeat may be old.
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(server.metrics_url.replace("/metrics", "/live"), timeout=11)
        server.process.send_signal(signal.SIGCONT)
        assert [probe(server, "/live") for _ in range(20)] == [200] * 20


def test_probes_of_a_supervisor_whose_loop_hangs_fail(models: Path, tmp_path: Path, hang: Hang) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", *WORKERS, environment=hang.environment) as server:
        hang.begin(server.process.pid)
        until(lambda: (probe(server, "/live"), probe(server, "/ready")) == (503, 503))
        hang.end()
        until(lambda: (probe(server, "/live"), probe(server, "/ready")) == (200, 200))


def test_a_worker_that_hangs_is_not_ready_and_is_replaced(models: Path, tmp_path: Path, hang: Hang) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", *WORKERS, environment=hang.environment) as server:
        before = worker_processes(server)
        hang.begin(before[0])
        until(lambda: server.metric("cifarserve_workers") == 1)
        assert (probe(server, "/live"), probe(server, "/ready")) == (200, 200)
        os.kill(before[1], signal.SIGSTOP)
        until(lambda: probe(server, "/ready") == 503)
        assert probe(server, "/live") == 200
        until(lambda: server.metric("cifarserve_workers") == 2, patience=120)
        assert not set(worker_processes(server)) & set(before)
        assert probe(server, "/ready") == 200
        assert cli("health", "--target", server.target).returncode == 0
