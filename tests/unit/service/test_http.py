"""The HTTP port: who makes the replies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.request import urlopen

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.http import HttpServer


class WhoAsks(Collector):
    """Notes the threads that collect."""

    def __init__(self) -> None:
        self.threads: list[str] = []

    def collect(self) -> Iterator[Metric]:
        self.threads.append(threading.current_thread().name)
        yield GaugeMetricFamily("asked", "How often this was collected.", value=len(self.threads))


def test_one_thread_makes_the_replies_of_all_scrapes() -> None:
    asks, registry = WhoAsks(), CollectorRegistry()
    registry.register(asks)
    asks.threads.clear()
    with closing(HttpServer("127.0.0.1", 0, registry, lambda: True, lambda: True)) as server:

        def scrape(_number: int) -> str:
            with urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60) as reply:
                return str(reply.read().decode().splitlines()[-1])

        with ThreadPoolExecutor(8) as scrapers:
            replies = list(scrapers.map(scrape, range(40)))
    assert sorted(replies) == sorted(f"asked {number}.0" for number in range(1, 41))
    assert len(asks.threads) == 40
    assert len(set(asks.threads)) == 1
