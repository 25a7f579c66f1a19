"""One metrics page for several workers: their pages read, and merged sample by sample.

Counters and histograms are summed, over workers that have died too, with the last values that were seen of them: what
Prometheus reads never goes back because a worker was restarted. Gauges are merged as GAUGES says, over the living. Of
exemplars, which only OpenMetrics' format has, the newest is kept.

Each worker forgets a version that has left the repository, at a moment of its own. This page forgets it before all of
them: the sum over some of them only would be a counter that went back.
"""

from __future__ import annotations

import http.client
import math
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.metrics import KEPT_SECONDS, dropped_lines

_TIMEOUT = 2.0  # seconds, for a worker's page
_SUMMED = frozenset({"counter", "histogram", "summary"})
_Merge = Callable[[Iterable[float]], float]
# What is not listed describes one process or its model and is the same in all, or is worst where it is highest.
GAUGES: dict[str, _Merge] = {
    "cifarserve_queue_images": math.fsum,
    "cifarserve_queue_limit_images": math.fsum,
    "cifarserve_cache_bytes": math.fsum,
    "cifarserve_event_loop_tasks": math.fsum,
    "process_resident_memory_bytes": math.fsum,
    "process_virtual_memory_bytes": math.fsum,
    "process_open_fds": math.fsum,
    "process_start_time_seconds": min,
    "cifarserve_certificate_expiry_timestamp_seconds": min,
}
_STATES = "cifarserve_model_state"  # has a series for every version that a worker knows of
_FORGOTTEN_AFTER = KEPT_SECONDS / 2
_Key = tuple[str, frozenset[tuple[str, str]]]


class MergedMetrics(Collector):
    """The metrics of all workers, by the addresses of their pages. May be used from any thread."""

    def __init__(self, exemplars: bool = False) -> None:
        """With `exemplars`, pages are asked for in OpenMetrics' format, which takes about twice the time to read."""
        self._read = _read_with_exemplars if exemplars else _read
        self._lock = threading.Lock()
        self._seen: dict[str, list[Metric]] = {}  # last page of each living worker
        self._past: list[Metric] = []  # the sums of those that are gone
        self._gone: dict[tuple[str, str], float] = {}  # versions that no worker knows any more; time.monotonic()
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
        for url, families in zip(urls, self._readers.map(self._read, urls), strict=True):
            with self._lock:
                if families and url in self._seen:
                    self._seen[url] = families
        with self._lock:
            self._forget_versions()

    def collect(self) -> Iterable[Metric]:
        self.look()
        with self._lock:
            return merge([self._past, *self._seen.values(), [dropped_lines()]])

    def _forget_versions(self) -> None:
        pages = [self._past, *self._seen.values()]
        known = {
            _version(sample) for page in pages for family in page if family.name == _STATES for sample in family.samples
        }
        counted = {_version(sample) for page in pages for family in page for sample in family.samples}
        now = time.monotonic()
        self._gone = {version: self._gone.get(version, now) for version in counted - known if version}
        forgotten = {version for version, since in self._gone.items() if now - since >= _FORGOTTEN_AFTER}
        if forgotten:
            for page in pages:
                for family in page:
                    family.samples = [sample for sample in family.samples if _version(sample) not in forgotten]

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: what there is, the workers say."""
        return ()


def _version(sample: Sample) -> tuple[str, str] | None:
    """The model and version that a series is of."""
    labels = sample.labels
    return (labels["model"], labels["version"]) if "model" in labels and labels.get("version") else None


def merge(pages: Iterable[list[Metric]]) -> list[Metric]:
    """Families of several pages as one page. NaN, a gauge that says "not known", gives way to any number."""
    families: dict[str, Metric] = {}
    found: dict[str, dict[_Key, list[Sample]]] = {}
    for page in pages:
        for family in page:
            families.setdefault(family.name, family)
            of_family = found.setdefault(family.name, {})
            for sample in family.samples:
                of_family.setdefault((sample.name, frozenset(sample.labels.items())), []).append(sample)
    merged = []
    for name, family in families.items():
        result = Metric(name, family.documentation, family.type)
        for (sample_name, labels), samples in found[name].items():
            known = [sample.value for sample in samples if not math.isnan(sample.value)]
            value = _how(family, sample_name)(known) if known else math.nan
            exemplars = (sample.exemplar for sample in samples if sample.exemplar)
            newest = max(exemplars, key=lambda exemplar: float(exemplar.timestamp or 0), default=None)
            result.add_sample(sample_name, dict(labels), value, exemplar=newest)
        merged.append(result)
    return merged


def _how(family: Metric, sample_name: str) -> _Merge:
    # The time at which a counter was made: in Prometheus' own format a gauge, in OpenMetrics' a part of the counter.
    if sample_name.endswith("_created"):
        return min
    return math.fsum if family.type in _SUMMED else GAUGES.get(family.name, max)


def _read(url: str) -> list[Metric]:
    """The families of one worker's page; empty when it does not answer."""
    return _parsed(url, "text/plain", text_string_to_metric_families)


def _read_with_exemplars(url: str) -> list[Metric]:
    return _parsed(url, "application/openmetrics-text", openmetrics.text_string_to_metric_families)


def _parsed(url: str, accept: str, parse: Callable[[str], Iterable[Metric]]) -> list[Metric]:
    request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310  # our own http address
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:  # noqa: S310
            return list(parse(reply.read().decode()))
    except (OSError, http.client.HTTPException, ValueError):
        return []
