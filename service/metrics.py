"""Prometheus metrics of the service. Names and labels follow Prometheus' conventions: base units, `_total`.

Label values are bounded: a model that is not served counts under an empty name, never under what a client sent, and
the series of a version that is gone go too, once Prometheus has had the time to read their last values.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from service import logs
from service.gpu import Gpus
from service.metric_families import Families
from service.tallies import CONFIDENCES, Predictions
from service.version_metrics import FAILURES, VERSION, VersionFamilies, VersionMetrics

# How long the series of a version stay after it has left the repository: many times what lies between two scrapes.
KEPT_SECONDS = 600.0
_DROPPED_LINES = (
    "cifarserve_log_lines_dropped",
    "Lines of the log that came faster than they were read, or could not be written.",
)
_OF_GPUS = (
    ("utilization_ratio", "Share of the time in which a GPU ran anything", Gpus.utilization),
    ("memory_used_bytes", "Memory of a GPU that is taken, by whomever", Gpus.memory_used),
    ("memory_total_bytes", "Memory of a GPU", Gpus.memory_total),
)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.families = Families()
        self.registry = self.families.registry
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._of_versions = VersionFamilies(self.families)
        for code in FAILURES:  # from 0 on: see VersionMetrics
            self._of_versions.requests.labels("", "", code)
        self._load_failures = self.families.counter(
            "cifarserve_load_failures", "Versions that did not load, by reason.", "model", "reason"
        )
        self._certificate_expires: Callable[[], float] | None = None
        self.families.at_scrape(
            GaugeMetricFamily, "cifarserve_certificate_expiry_timestamp_seconds",
            "When the server's certificate ends, in Unix time; absent without TLS.", fill=self._fill_certificate,
        )  # fmt: skip
        self.families.at_scrape(CounterMetricFamily, *_DROPPED_LINES, fill=_fill_dropped)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.families.at_scrape(
            GaugeMetricFamily, "cifarserve_event_loop_tasks",
            "Tasks on the event loop: the calls in progress, and the server's own.", fill=self._fill_tasks,
        )  # fmt: skip
        self._gpus: Gpus | None = None
        for name, documentation, ask in _OF_GPUS:
            self.families.at_scrape(
                GaugeMetricFamily, f"cifarserve_gpu_{name}", f"{documentation}; absent without a GPU.", "uuid",
                fill=partial(self._fill_gpus, ask),
            )  # fmt: skip
        self._predictions: dict[tuple[str, str], Predictions] = {}
        self._gone: dict[tuple[str, str], float] = {}  # since when, by time.monotonic()
        self.families.at_scrape(
            CounterMetricFamily, "cifarserve_predicted_images", "Images computed, by predicted class.",
            *VERSION, "class", fill=self._fill_predicted,
        )  # fmt: skip
        self.families.at_scrape(
            HistogramMetricFamily, "cifarserve_confidence", "Probability of the predicted class, of images computed.",
            *VERSION, fill=self._fill_confidence,
        )  # fmt: skip

    def version(self, model: str, version: int, labels: tuple[str, ...]) -> VersionMetrics:
        """The metrics of one version of one model; a version that comes back goes on counting where it was."""
        key = model, str(version)
        if key not in self._predictions or self._predictions[key].labels != labels:
            self._predictions[key] = Predictions(labels)
        return VersionMetrics(self._of_versions, *key, self._predictions[key])

    def forget_all_but(self, there: Iterable[tuple[str, int]]) -> None:
        """Drop the series of every (model, version) that has not been among `there` for KEPT_SECONDS."""
        now = time.monotonic()
        gone = self._predictions.keys() - {(model, str(version)) for model, version in there}
        self._gone = {key: self._gone.get(key, now) for key in gone}
        for model, version in [key for key, since in self._gone.items() if now - since >= KEPT_SECONDS]:
            del self._gone[model, version], self._predictions[model, version]
            self.families.remove(model=model, version=version)

    def watch_states(self, states: Callable[[], Iterable[tuple[str, int, str]]]) -> None:
        """Ask this for (model, version, state) of every version in the repository, at every scrape."""

        def fill(family: GaugeMetricFamily) -> None:
            for model, version, state in states():
                family.add_metric((model, str(version), state), 1)

        self.families.at_scrape(
            GaugeMetricFamily, "cifarserve_model_state", "1 for the state that each version in the repository is in.",
            *VERSION, "state", fill=fill,
        )  # fmt: skip

    def watch_certificate(self, expires: Callable[[], float]) -> None:
        """Ask this at every scrape for the Unix time at which the certificate ends."""
        self._certificate_expires = expires

    def watch_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count this loop's tasks at every scrape."""
        self._loop = loop

    def watch_gpus(self, gpus: Gpus | None) -> None:
        """Ask these GPUs at every scrape."""
        self._gpus = gpus

    def unknown(self, code: str) -> None:
        """Count a call that no version's metrics count: it failed before its version was known."""
        self._of_versions.requests.labels("", "", code).inc()

    def load_failed(self, model: str, reason: str) -> None:
        self._load_failures.labels(model, reason).inc()

    def _fill_certificate(self, family: GaugeMetricFamily) -> None:
        if self._certificate_expires is not None:
            family.add_metric((), self._certificate_expires())

    def _fill_tasks(self, family: GaugeMetricFamily) -> None:
        if self._loop is not None:
            family.add_metric((), len(asyncio.all_tasks(self._loop)))

    def _fill_gpus(self, ask: Callable[[Gpus], Iterable[tuple[str, float]]], family: GaugeMetricFamily) -> None:
        if self._gpus is not None:
            for uuid, value in ask(self._gpus):
                family.add_metric((uuid,), value)

    def _fill_predicted(self, family: CounterMetricFamily) -> None:
        for key, predictions in list(self._predictions.items()):
            for label, images in zip(predictions.labels, predictions.by_class(), strict=True):
                family.add_metric((*key, label), images)

    def _fill_confidence(self, family: HistogramMetricFamily) -> None:
        bounds = [*map(str, CONFIDENCES), "+Inf"]
        for key, predictions in list(self._predictions.items()):
            counts, total = predictions.by_confidence()
            family.add_metric(key, list(zip(bounds, counts, strict=True)), total)


def dropped_lines() -> CounterMetricFamily:
    """What this process did not log, for a page that has no Metrics."""
    family = CounterMetricFamily(*_DROPPED_LINES, labels=())
    _fill_dropped(family)
    return family


def _fill_dropped(family: CounterMetricFamily) -> None:
    family.add_metric((), logs.dropped())
