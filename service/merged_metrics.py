"""One metrics page for several workers: their pages read, and merged sample by sample.

Counters and histograms are summed, over workers that have died too, with the last values that were seen of them: what
Prometheus reads never goes back because a worker was restarted. Gauges are merged as GAUGES says, over the living.
"""

from __future__ import annotations

import http.client
import math
import threading
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_TIMEOUT = 2.0  # seconds, for a worker's page
_SUMMED = frozenset({"counter", "histogram", "summary"})
_Merge = Callable[[Iterable[float]], float]
# What is not listed describes one process or its model and is the same in all, or is worst where it is highest.
GAUGES: dict[str, _Merge] = {
    "cifarserve_queue_images": math.fsum,
    "cifarserve_queue_limit_images": math.fsum,
    "cifarserve_cache_bytes": math.fsum,
    "process_resident_memory_bytes": math.fsum,
    "process_virtual_memory_bytes": math.fsum,
    "process_open_fds": math.fsum,
    "process_start_time_seconds": min,
    "cifarserve_certificate_expiry_timestamp_seconds": min,
}
_Key = tuple[str, frozenset[tuple[str, str]]]


class MergedMetrics(Collector):
    """The metrics of all workers, by the addresses of their pages. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, list[Metric]] = {}  # last page of each living worker
        self._past: list[Metric] = []  # the sums of those that are gone
        self._readers = ThreadPoolExecutor(8, "metrics")

    def add(self, url: str) -> None:
        with self._lock:
            self._seen[url] = []

    def remove(self, url: str) -> None:
        """The worker is gone. What it had counted when it was last looked at stays in the sums."""
        with self._lock:
            last = self._seen.pop(url, [])
            self._past = merge([self._past, [family for family in last if family.type in _SUMMED]])

    def look(self) -> None:
        """Read the pages of all workers; of one that does not answer, the last page counts on."""
        with self._lock:
            urls = list(self._seen)
        for url, families in zip(urls, self._readers.map(_read, urls), strict=True):
            with self._lock:
                if families and url in self._seen:
                    self._seen[url] = families

    def collect(self) -> Iterable[Metric]:
        self.look()
        with self._lock:
            return merge([self._past, *self._seen.values()])

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: what there is, the workers say."""
        return ()


def merge(pages: Iterable[list[Metric]]) -> list[Metric]:
    """Families of several pages as one page. NaN, a gauge that says "not known", gives way to any number."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[_Key, list[float]]] = {}
    for page in pages:
        for family in page:
            families.setdefault(family.name, family)
            samples = values.setdefault(family.name, {})
            for sample in family.samples:
                samples.setdefault((sample.name, frozenset(sample.labels.items())), []).append(sample.value)
    merged = []
    for name, family in families.items():
        # The time at which a counter was made, which Python's client writes as a gauge.
        gauge: _Merge = min if name.endswith("_created") else GAUGES.get(name, max)
        combine = math.fsum if family.type in _SUMMED else gauge
        result = Metric(name, family.documentation, family.type)
        for (sample_name, labels), found in values[name].items():
            known = [value for value in found if not math.isnan(value)]
            result.add_sample(sample_name, dict(labels), combine(known) if known else math.nan)
        merged.append(result)
    return merged


def _read(url: str) -> list[Metric]:
    """The families of one worker's page; empty when it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as reply:  # noqa: S310  # our own http address
            return list(text_string_to_metric_families(reply.read().decode()))
    except (OSError, http.client.HTTPException, ValueError):
        return []
