"""Prometheus metrics of the service. Names and labels follow Prometheus' conventions: base units, `_total`.

Label values are bounded: a model that is not served counts under an empty name, never under what a client sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

# 100 microseconds to 10 seconds, three to a decade.
SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BATCH_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
DISTANCES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_VERSION = ("model", "version")


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._requests = self._counter("requests", "Requests answered, by gRPC status code.", "code")
        self._request_seconds = self._seconds("request", "From a request's arrival to its answer.")
        self._decode_seconds = self._seconds("decode", "All images of one request to pixels; about 0 for raw ones.")
        self._queue_seconds = self._seconds("queue", "From a request's last decoded image to its first batch.")
        self._compute_seconds = self._seconds("compute", "One batch in the engine.")
        self._images = self._counter("images", "Images computed.")
        self._padding = self._counter("padding_images", "Rows computed only to fill a batch up to its bucket.")
        self._dropped = self._counter("dropped_images", "Images not computed: shed, expired or cancelled.", "reason")
        self._batch_images = Histogram(
            "cifarserve_batch_images", "Images in one batch, without padding.", _VERSION,
            buckets=BATCH_IMAGES, registry=self.registry,
        )  # fmt: skip
        self._queue_images = Gauge(
            "cifarserve_queue_images", "Images admitted and not yet computing.", _VERSION, registry=self.registry
        )
        self._load_failures = Counter(
            "cifarserve_load_failures", "Versions that did not load, by reason.", ("model", "reason"),
            registry=self.registry,
        )  # fmt: skip
        self._drift = Gauge(
            "cifarserve_drift_index",
            "Population stability index of the last images against the test split; NaN for too few images.",
            (*_VERSION, "of"), registry=self.registry,
        )  # fmt: skip
        self._cache_images = self._counter("cache_images", "Images looked up in the response cache.", "result")
        self._cache_bytes = Gauge(
            "cifarserve_cache_bytes", "Size of the response cache.", _VERSION, registry=self.registry
        )
        self._shadow_images = self._counter("shadow_images", "Images mirrored to this version, or shed.", "result")
        self._shadow_distance = Histogram(
            "cifarserve_shadow_distance", "Total variation between this version's probabilities and the caller's.",
            _VERSION, buckets=DISTANCES, registry=self.registry,
        )  # fmt: skip
        self._model_info = Gauge(
            "cifarserve_model_info", "1 for each version that is served, with what computes it.",
            (*_VERSION, "provider", "precision"), registry=self.registry,
        )  # fmt: skip

    def version(self, model: str, version: int) -> VersionMetrics:
        """The metrics of one version of one model."""
        return VersionMetrics(self, model, str(version))

    def unknown(self, code: str) -> None:
        """Count a request for a model or version that is not served."""
        self._requests.labels("", "", code).inc()

    def load_failed(self, model: str, reason: str) -> None:
        self._load_failures.labels(model, reason).inc()

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"cifarserve_{name}", documentation, (*_VERSION, *labels), registry=self.registry)

    def _seconds(self, stage: str, documentation: str) -> Histogram:
        return Histogram(
            f"cifarserve_{stage}_seconds", documentation, _VERSION, buckets=SECONDS, registry=self.registry
        )


@dataclass
class Statistics:
    """The same as totals since the version was loaded, as the Open Inference Protocol reports them. In seconds."""

    succeeded: int = 0
    success_seconds: float = 0.0
    failed: int = 0
    failure_seconds: float = 0.0
    computed: int = 0  # requests that went through the engine
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    reply_seconds: float = 0.0
    images: int = 0
    last: float = 0.0  # time.time() of the last batch
    batches: dict[int, tuple[int, float]] = field(default_factory=dict)  # by size: how many, seconds


class VersionMetrics:
    """The metrics of one version with its labels already looked up. A `batching.BatchObserver`."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        labels = (model, version)
        self._labels = labels
        self._metrics = metrics
        self.statistics = Statistics()
        self._requests: dict[str, Counter] = {}  # by code, so that a request looks no labels up
        self._decode_seconds = metrics._decode_seconds.labels(*labels)
        self._request_seconds = metrics._request_seconds.labels(*labels)
        self._queue_seconds = metrics._queue_seconds.labels(*labels)
        self._compute_seconds = metrics._compute_seconds.labels(*labels)
        self._images = metrics._images.labels(*labels)
        self._padding = metrics._padding.labels(*labels)
        self._batch_images = metrics._batch_images.labels(*labels)
        self._queue_images = metrics._queue_images.labels(*labels)
        self._shadow_distance = metrics._shadow_distance.labels(*labels)

    def serving(self, provider: str, precision: str) -> None:
        self._metrics._model_info.labels(*self._labels, provider, precision).set(1)

    def retired(self, provider: str, precision: str) -> None:
        self._metrics._model_info.remove(*self._labels, provider, precision)
        self._metrics._queue_images.remove(*self._labels)
        for of in ("class", "confidence"):
            with suppress(KeyError):  # a version without a baseline has none
                self._metrics._drift.remove(*self._labels, of)

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

    def answered(self, code: str, seconds: float) -> None:
        requests = self._requests.get(code)
        if requests is None:
            requests = self._requests[code] = self._metrics._requests.labels(*self._labels, code)
        requests.inc()
        self._request_seconds.observe(seconds)
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

    def dropped(self, reason: str, images: int) -> None:
        self._metrics._dropped.labels(*self._labels, reason).inc(images)
