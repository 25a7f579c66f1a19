"""Three servers as three hosts, in network namespaces of their own, behind one name that a client balances over."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.client import Client, Options
from tests import colour_model
from tests.integration.server_process import ServerProcess, serving

# Addresses for documentation, RFC 5737: they exist nowhere else.
NETWORK = "198.51.100"
PORT = 8001


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


def _cannot() -> str:
    """Why network namespaces cannot be used here, or an empty text."""
    if shutil.which("ip") is None:
        return "needs ip, of Debian's package iproute2"
    name = f"cs-try-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        try:
            _ip("link", "add", f"{name[-12:]}", "type", "bridge")
            _ip("link", "del", f"{name[-12:]}")
        finally:
            _ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"needs network namespaces, not allowed here: {error.stderr.decode().strip()}"
    return ""


@dataclass
class Hosts:
    """A bridge with one namespace on it for each host."""

    prefix: str
    stack: ExitStack

    def add(self, number: int) -> str:
        """A host with the address NETWORK.number; returns the namespace's name."""
        name, outer, inner = (f"{self.prefix}{kind}{number}" for kind in ("n", "o", "i"))
        _ip("netns", "add", name)
        self.stack.callback(_ip, "netns", "del", name)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        _ip("link", "set", outer, "master", f"{self.prefix}b", "up")
        _ip("-n", name, "addr", "add", f"{NETWORK}.{number}/24", "dev", inner)
        address = f"02:00:00:00:00:{number:02x}"
        _ip("-n", name, "link", "set", inner, "address", address)
        for device in (inner, "lo"):
            _ip("-n", name, "link", "set", device, "up")
        # Told, not asked for: a question sent before the host was there would go on failing for a second after it.
        _ip("neigh", "replace", f"{NETWORK}.{number}", "lladdr", address, "dev", f"{self.prefix}b")
        return name


def _remove_left_overs() -> None:
    """What a test run that was killed left: its bridge would draw the packets for the same network to it."""
    listed = subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True).stdout
    for bridge, process in re.findall(r"^\d+: (cs(\d+)b):", listed, re.MULTILINE):
        if not Path(f"/proc/{process}").exists():
            for number in range(1, 5):
                subprocess.run(["ip", "netns", "del", f"cs{process}n{number}"], capture_output=True)
            _ip("link", "del", bridge)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if reason := _cannot():
        pytest.skip(reason)
    _remove_left_overs()
    prefix = f"cs{os.getpid()}"
    with ExitStack() as stack:
        _ip("link", "add", f"{prefix}b", "type", "bridge")
        stack.callback(_ip, "link", "del", f"{prefix}b")
        _ip("addr", "add", f"{NETWORK}.254/24", "dev", f"{prefix}b")
        _ip("link", "set", f"{prefix}b", "up")
        yield Hosts(prefix, stack)


@contextmanager
def replica(hosts: Hosts, number: int, models: Path, folder: Path) -> Iterator[ServerProcess]:
    flags = ("--host", "0.0.0.0", "--insecure", "--lame-duck-seconds", 1, "--max-connection-age-seconds", 1)
    prefix = ("ip", "netns", "exec", hosts.add(number))
    with serving(models, folder / f"log{number}", *flags, port=PORT, prefix=prefix) as server:
        server.metrics_url = server.metrics_url.replace("127.0.0.1", f"{NETWORK}.{number}")
        yield server


class Load:
    """Callers that classify one picture after the other, until told to stop. Any error fails the test."""

    def __init__(self, client: Client, callers: int = 6) -> None:
        self._client = client
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(callers)
        self.answered = 0
        self._lock = threading.Lock()
        self._jobs = [self._pool.submit(self._call_on) for _ in range(callers)]

    def _call_on(self) -> None:
        picture = [colour_model.plain((255, 0, 0))]
        while not self._ended.is_set():
            (prediction,) = self._client.classify(picture)
            assert prediction.best.label == "red"
            with self._lock:
                self.answered += 1

    def until(self, condition: object, patience: float = 120) -> None:
        """Go on until the condition holds."""
        deadline = time.monotonic() + patience
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline, "it did not come about"
            for job in self._jobs:
                assert not job.done(), job.exception()
            time.sleep(0.05)

    def end(self) -> None:
        """Raises what a caller met."""
        self._ended.set()
        for job in self._jobs:
            job.result(timeout=60)


def requests(server: ServerProcess) -> float:
    return server.metric("cifarserve_requests_total", code="OK")


def test_replicas_come_drain_and_die_under_load_and_no_request_fails(
    hosts: Hosts, models: Path, tmp_path: Path
) -> None:
    colour_model.publish(models)
    # A static list of addresses, as a resolver gives it for a headless service's name.
    target = "ipv4:" + ",".join(f"{NETWORK}.{number}:{PORT}" for number in (1, 2, 3, 4))
    options = Options(timeout=60, attempts=10, round_robin=True)
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(replica(hosts, number, models, tmp_path)) for number in (1, 2, 3))
        client = stack.enter_context(Client(target, options))
        load = Load(client)
        try:
            load.until(lambda: min(map(requests, (first, second, third))) > 50)
            shares = Counter({number: requests(one) for number, one in enumerate((first, second, third))})
            assert max(shares.values()) < 3 * min(shares.values()), f"not spread: {shares}"

            first.process.kill()
            first.wait()
            seen = load.answered
            load.until(lambda: load.answered > seen + 100)

            second.terminate()
            assert second.wait() == 0
            seen = load.answered
            load.until(lambda: load.answered > seen + 100)

            fourth = stack.enter_context(replica(hosts, 4, models, tmp_path))
            load.until(lambda: requests(fourth) > 50)
        finally:
            load.end()
        handled = sum(requests(one) for one in (third, fourth))
        assert handled > 150
