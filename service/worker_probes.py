"""What a supervisor knows of its workers' health: it asks each for /live and /ready, as a kubelet asks a pod."""

from __future__ import annotations

import http.client
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from service import local

_TIMEOUT = 3.0  # seconds for an answer
# A worker without a good answer to /live so many times in a row hangs. With the age that a heartbeat may have, that is
# half a minute: a busy machine does not take so long.
_MOST_FAILURES = 6


@dataclass
class _Worker:
    url: str
    ready: bool = True
    failures: int = 0  # in a row, of /live


class WorkerProbes:
    """The workers that have once been ready. May be used from any thread; a lock holds what it knows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: dict[int, _Worker] = {}
        self._askers = ThreadPoolExecutor(8, "probe")

    def add(self, number: int, port: int) -> None:
        """Worker `number` has become ready; its HTTP port is `port`."""
        with self._lock:
            self._workers[number] = _Worker(f"http://127.0.0.1:{port}")

    def remove(self, number: int) -> None:
        """The worker is gone."""
        with self._lock:
            self._workers.pop(number, None)

    def ready(self) -> int:
        """How many were ready when they were last asked."""
        with self._lock:
            return sum(worker.ready for worker in self._workers.values())

    def ask(self) -> list[int]:
        """Ask all workers, and return the numbers of those that hang. Blocks for as long as they take to answer."""
        with self._lock:
            workers = dict(self._workers)
        answers = list(self._askers.map(_ask, [worker.url for worker in workers.values()]))
        with self._lock:
            for worker, (live, ready) in zip(workers.values(), answers, strict=True):
                worker.ready = ready
                worker.failures = 0 if live else worker.failures + 1
            return [
                number
                for number, worker in workers.items()
                if worker.failures >= _MOST_FAILURES and self._workers.get(number) is worker
            ]


def _ask(url: str) -> tuple[bool, bool]:
    """Whether the worker there is live, and whether it is ready."""
    live = _is_good(f"{url}/live")
    return live, live and _is_good(f"{url}/ready")


def _is_good(url: str) -> bool:
    try:
        local.get(url, _TIMEOUT)
    except (OSError, http.client.HTTPException):  # an answer such as 503 is an OSError, too
        return False
    return True
