"""Prometheus metrics of the service. Names and labels follow Prometheus' conventions: base units, `_total`.

Label values are bounded: a model that is not served counts under an empty name, never under what a client sent, and
the series of a version that is gone go too, once Prometheus has had the time to read their last values.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from service.gpu import Gpus
from service.metric_families import Families
from service.tallies import CONFIDENCES, Predictions, Statistics

# 100 microseconds to 10 seconds, three to a decade.
SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BATCH_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
DISTANCES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# The codes that count against the objective, as in deploy/prometheus/rules.yml.
FAILURES = ("INTERNAL", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
# How long the series of a version stay after it has left the repository: many times what lies between two scrapes.
KEPT_SECONDS = 600.0
_VERSION = ("model", "version")
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
        self._requests = self._counter("requests", "Requests answered, by gRPC status code.", "code")
        self._request_seconds = self._seconds("request", "From a request's arrival to its answer.")
        self._decode_seconds = self._seconds("decode", "All images of one request to pixels; about 0 for raw ones.")
        self._queue_seconds = self._seconds("queue", "From a request's last decoded image to its first batch.")
        self._compute_seconds = self._seconds("compute", "One batch in the engine.")
        self._images = self._counter("images", "Images computed.")
        self._padding = self._counter("padding_images", "Rows computed only to fill a batch up to its bucket.")
        self._dropped = self._counter(
            "dropped_images", "Images not computed: shed, late, expired or cancelled.", "reason"
        )
        self._engine_failures = self._counter("engine_failures", "Batches that failed in the engine.")
        self._batch_images = self._histogram("batch_images", "Images in one batch, without padding.", BATCH_IMAGES)
        self._queue_images = self._gauge("queue_images", "Images admitted and not yet computing.")
        self._queue_limit = self._gauge("queue_limit_images", "Images that may wait; beyond, requests are shed.")
        self._queue_age = self._gauge("queue_oldest_seconds", "How long the oldest request in the queue has waited.")
        self._load_failures = self.families.counter(
            "cifarserve_load_failures", "Versions that did not load, by reason.", "model", "reason"
        )
        self._drift = self._gauge(
            "drift_index",
            "Population stability index of the last images against the test split; NaN for too few images.",
            "of",
        )
        self._cache_images = self._counter("cache_images", "Images looked up in the response cache.", "result")
        self._cache_bytes = self._gauge("cache_bytes", "Size of the response cache.")
        self._shadow_images = self._counter("shadow_images", "Images mirrored to this version, or shed.", "result")
        self._shadow_distance = self._histogram(
            "shadow_distance", "Total variation between this version's probabilities and the caller's.", DISTANCES
        )
        self._model_info = self._gauge(
            "model_info", "1 for each version that is served: what computes it, and the provider setting (asked).",
            "provider", "precision", "asked",
        )  # fmt: skip
        self._certificate_expires: Callable[[], float] | None = None
        self.families.at_scrape(
            GaugeMetricFamily, "cifarserve_certificate_expiry_timestamp_seconds",
            "When the server's certificate ends, in Unix time; absent without TLS.", fill=self._fill_certificate,
        )  # fmt: skip
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
            *_VERSION, "class", fill=self._fill_predicted,
        )  # fmt: skip
        self.families.at_scrape(
            HistogramMetricFamily, "cifarserve_confidence", "Probability of the predicted class, of images computed.",
            *_VERSION, fill=self._fill_confidence,
        )  # fmt: skip

    def version(self, model: str, version: int, labels: tuple[str, ...]) -> VersionMetrics:
        """The metrics of one version of one model; a version that comes back goes on counting where it was."""
        key = model, str(version)
        if key not in self._predictions or self._predictions[key].labels != labels:
            self._predictions[key] = Predictions(labels)
        return VersionMetrics(self, *key, self._predictions[key])

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
            *_VERSION, "state", fill=fill,
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
        """Count a request for a model or version that is not served."""
        self._requests.labels("", "", code).inc()

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
            for label, images in zip(predictions.labels, predictions.classes.tolist(), strict=True):
                family.add_metric((*key, label), images)

    def _fill_confidence(self, family: HistogramMetricFamily) -> None:
        bounds = [*map(str, CONFIDENCES), "+Inf"]
        for key, predictions in list(self._predictions.items()):
            counts = predictions.confidences.cumsum().tolist()
            family.add_metric(key, list(zip(bounds, counts, strict=True)), predictions.confidence_sum)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return self.families.counter(f"cifarserve_{name}", documentation, *_VERSION, *labels)

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return self.families.gauge(f"cifarserve_{name}", documentation, *_VERSION, *labels)

    def _histogram(self, name: str, documentation: str, buckets: Iterable[float]) -> Histogram:
        return self.families.histogram(f"cifarserve_{name}", documentation, *_VERSION, buckets=buckets)

    def _seconds(self, stage: str, documentation: str) -> Histogram:
        return self._histogram(f"{stage}_seconds", documentation, SECONDS)


class VersionMetrics:
    """The metrics of one version with its labels already looked up. A `batching.BatchObserver`."""

    def __init__(self, metrics: Metrics, model: str, version: str, predictions: Predictions) -> None:
        labels = (model, version)
        self._labels = labels
        self._metrics = metrics
        self.statistics = Statistics()
        # By code, so that a request looks no labels up. What counts as a failure begins at 0: a series that begins with
        # its first failures has, to a rate, not increased.
        self._requests = {code: metrics._requests.labels(*labels, code) for code in ("OK", *FAILURES)}
        self.predicted = predictions.add
        self._decode_seconds = metrics._decode_seconds.labels(*labels)
        self._request_seconds = metrics._request_seconds.labels(*labels)
        self._queue_seconds = metrics._queue_seconds.labels(*labels)
        self._compute_seconds = metrics._compute_seconds.labels(*labels)
        self._images = metrics._images.labels(*labels)
        self._padding = metrics._padding.labels(*labels)
        self._engine_failures = metrics._engine_failures.labels(*labels)
        self._batch_images = metrics._batch_images.labels(*labels)
        self._queue_images = metrics._queue_images.labels(*labels)
        self._shadow_distance = metrics._shadow_distance.labels(*labels)

    def serving(self, provider: str, precision: str, asked: str) -> None:
        self._metrics._model_info.labels(*self._labels, provider, precision, asked).set(1)

    def retired(self, provider: str, precision: str, asked: str) -> None:
        self._metrics._model_info.remove(*self._labels, provider, precision, asked)
        for gauge in (self._metrics._queue_images, self._metrics._queue_limit, self._metrics._queue_age):
            gauge.remove(*self._labels)
        for of in ("class", "confidence"):
            with suppress(KeyError):  # a version without a baseline has none
                self._metrics._drift.remove(*self._labels, of)

    def watch_queue(self, limit: int, oldest_seconds: Callable[[], float]) -> None:
        """The queue's bound in images, and what to ask at every scrape for the age of its oldest request."""
        self._metrics._queue_limit.labels(*self._labels).set(limit)
        self._metrics._queue_age.labels(*self._labels).set_function(oldest_seconds)

    def watch_drift(self, of_classes: Callable[[], float], of_confidence: Callable[[], float]) -> None:
        """Ask these for the drift index at every scrape."""
        self._metrics._drift.labels(*self._labels, "class").set_function(of_classes)
        self._metrics._drift.labels(*self._labels, "confidence").set_function(of_confidence)

    def cached(self, hits: int, misses: int) -> None:
        self._metrics._cache_images.labels(*self._labels, "hit").inc(hits)
        self._metrics._cache_images.labels(*self._labels, "miss").inc(misses)

    def cache_holds(self, size: int) -> None:
        self._metrics._cache_bytes.labels(*self._labels).set(size)

    def shadowed(self, agreeing: int, distances: Iterable[float]) -> None:
        """As the shadow: `agreeing` of the images had the caller's top class; their probabilities lay so far apart."""
        count = 0
        for distance in distances:
            self._shadow_distance.observe(distance)
            count += 1
        self._metrics._shadow_images.labels(*self._labels, "agreed").inc(agreeing)
        self._metrics._shadow_images.labels(*self._labels, "disagreed").inc(count - agreeing)

    def shadow_shed(self, images: int) -> None:
        self._metrics._shadow_images.labels(*self._labels, "shed").inc(images)

    def answered(self, code: str, seconds: float, trace_id: str = "") -> None:
        """`trace_id` is kept as an exemplar, which only scrapes in OpenMetrics' format show."""
        requests = self._requests.get(code)
        if requests is None:
            requests = self._requests[code] = self._metrics._requests.labels(*self._labels, code)
        requests.inc()
        self._request_seconds.observe(seconds, {"trace_id": trace_id} if trace_id else None)
        if code == "OK":
            self.statistics.succeeded += 1
            self.statistics.success_seconds += seconds
        else:
            self.statistics.failed += 1
            self.statistics.failure_seconds += seconds

    def went_through(
        self, decode_seconds: float, queue_seconds: float, compute_seconds: float, reply_seconds: float
    ) -> None:
        """One request's images were decoded, queued and computed, and its reply made; this is where its time went."""
        self._decode_seconds.observe(decode_seconds)
        self.statistics.computed += 1
        self.statistics.decode_seconds += decode_seconds
        self.statistics.queue_seconds += queue_seconds
        self.statistics.compute_seconds += compute_seconds
        self.statistics.reply_seconds += reply_seconds

    def queue_changed(self, images: int) -> None:
        self._queue_images.set(images)

    def left_queue(self, seconds: float) -> None:
        self._queue_seconds.observe(seconds)

    def computed(self, images: int, bucket: int, seconds: float) -> None:
        self._images.inc(images)
        self._padding.inc(bucket - images)
        self._batch_images.observe(images)
        self._compute_seconds.observe(seconds)
        batches, total = self.statistics.batches.get(images, (0, 0.0))
        self.statistics.batches[images] = (batches + 1, total + seconds)
        self.statistics.images += images
        self.statistics.last = time.time()

    def failed(self) -> None:
        self._engine_failures.inc()

    def dropped(self, reason: str, images: int) -> None:
        self._metrics._dropped.labels(*self._labels, reason).inc(images)
