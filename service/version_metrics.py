"""What is counted of one version of one model, and the families of metrics that hold it for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from prometheus_client import Counter, Gauge, Histogram

from service.metric_families import SECONDS, Families
from service.tallies import Predictions, Statistics

BATCH_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
DISTANCES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# The codes that count against the objective, as in deploy/prometheus/rules.yml.
FAILURES = ("INTERNAL", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
VERSION = ("model", "version")


class VersionFamilies:
    """The families with a series, or several, for each version."""

    def __init__(self, families: Families) -> None:
        self._families = families
        self.requests = self._counter(
            "requests", "Requests answered, by gRPC status code; no model for what failed before it was known.", "code"
        )
        self.request_seconds = self._seconds("request", "From a request's arrival to its answer.")
        self.decode_seconds = self._seconds("decode", "All images of one request to pixels; about 0 for raw ones.")
        self.queue_seconds = self._seconds("queue", "From a request's last decoded image to its first batch.")
        self.compute_seconds = self._seconds("compute", "One batch in the engine.")
        self.images = self._counter("images", "Images computed.")
        self.padding = self._counter("padding_images", "Rows computed only to fill a batch up to its bucket.")
        self.dropped = self._counter(
            "dropped_images",
            "Images not computed: shed, late, expired or cancelled; but for those of requests that were not read.",
            "reason",
        )
        self.engine_failures = self._counter("engine_failures", "Batches that failed in the engine.")
        self.batch_images = self._histogram("batch_images", "Images in one batch, without padding.", BATCH_IMAGES)
        self.queue_images = self._gauge("queue_images", "Images admitted and not yet computing.")
        self.queue_limit = self._gauge("queue_limit_images", "Images that may wait; beyond, requests are shed.")
        self.queue_age = self._gauge("queue_oldest_seconds", "How long the oldest request in the queue has waited.")
        self.drift = self._gauge(
            "drift_index",
            "Population stability index of the last images against the test split; NaN for too few images.",
            "of",
        )
        self.cache_images = self._counter("cache_images", "Images looked up in the response cache.", "result")
        self.cache_bytes = self._gauge("cache_bytes", "Size of the response cache.")
        self.shadow_images = self._counter("shadow_images", "Images mirrored to this version, or shed.", "result")
        self.shadow_distance = self._histogram(
            "shadow_distance", "Total variation between this version's probabilities and the caller's.", DISTANCES
        )
        self.model_info = self._gauge(
            "model_info", "1 for each version that is served: what computes it, and the provider setting (asked).",
            "provider", "precision", "asked",
        )  # fmt: skip
        self.fallbacks = self._counter(
            "fallbacks",
            "Loads that fell back to a slower provider or precision, which these labels name; the log says why.",
            "provider", "precision",
        )  # fmt: skip

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return self._families.counter(f"cifarserve_{name}", documentation, *VERSION, *labels)

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return self._families.gauge(f"cifarserve_{name}", documentation, *VERSION, *labels)

    def _histogram(self, name: str, documentation: str, buckets: Iterable[float]) -> Histogram:
        return self._families.histogram(f"cifarserve_{name}", documentation, *VERSION, buckets=buckets)

    def _seconds(self, stage: str, documentation: str) -> Histogram:
        return self._histogram(f"{stage}_seconds", documentation, SECONDS)


class VersionMetrics:
    """The metrics of one version with its labels already looked up. A `batching.BatchObserver`.

    `statistics` and the look-up of codes belong to the event loop. What other threads call (`queue_changed`,
    `left_queue`, `dropped`) touches only Prometheus' own objects, which have locks.
    """

    def __init__(self, families: VersionFamilies, model: str, version: str, predictions: Predictions) -> None:
        labels = (model, version)
        self._labels = labels
        self._families = families
        self.statistics = Statistics()
        # By code, so that a request looks no labels up. What counts as a failure begins at 0: a series that begins with
        # its first failures has, to a rate, not increased.
        self._requests = {code: families.requests.labels(*labels, code) for code in ("OK", *FAILURES)}
        self.predicted = predictions.add
        self._decode_seconds = families.decode_seconds.labels(*labels)
        self._request_seconds = families.request_seconds.labels(*labels)
        self._queue_seconds = families.queue_seconds.labels(*labels)
        self._compute_seconds = families.compute_seconds.labels(*labels)
        self._images = families.images.labels(*labels)
        self._padding = families.padding.labels(*labels)
        self._engine_failures = families.engine_failures.labels(*labels)
        self._batch_images = families.batch_images.labels(*labels)
        self._queue_images = families.queue_images.labels(*labels)
        self._shadow_distance = families.shadow_distance.labels(*labels)

    def serving(self, provider: str, precision: str, asked: str) -> None:
        self._families.model_info.labels(*self._labels, provider, precision, asked).set(1)
        self._families.fallbacks.labels(*self._labels, provider, precision)  # begins at 0

    def fell_back(self, provider: str, precision: str) -> None:
        """A load of it ended on this provider and precision, where a better one was to be expected."""
        self._families.fallbacks.labels(*self._labels, provider, precision).inc()

    def retired(self, provider: str, precision: str, asked: str) -> None:
        self._families.model_info.remove(*self._labels, provider, precision, asked)
        for gauge in (self._families.queue_images, self._families.queue_limit, self._families.queue_age):
            gauge.remove(*self._labels)
        self.watch_cache(None)
        for of in ("class", "confidence"):
            with suppress(KeyError):  # a version without a baseline has none
                self._families.drift.remove(*self._labels, of)

    def watch_queue(self, limit: int, oldest_seconds: Callable[[], float]) -> None:
        """The queue's bound in images, and what to ask at every scrape for the age of its oldest request."""
        self._families.queue_limit.labels(*self._labels).set(limit)
        self._families.queue_age.labels(*self._labels).set_function(oldest_seconds)

    def watch_drift(self, of_classes: Callable[[], float], of_confidence: Callable[[], float]) -> None:
        """Ask these for the drift index at every scrape."""
        self._families.drift.labels(*self._labels, "class").set_function(of_classes)
        self._families.drift.labels(*self._labels, "confidence").set_function(of_confidence)

    def cached(self, hits: int, misses: int) -> None:
        self._families.cache_images.labels(*self._labels, "hit").inc(hits)
        self._families.cache_images.labels(*self._labels, "miss").inc(misses)

    def watch_cache(self, holds: Callable[[], float] | None) -> None:
        """Ask this for the cache's size at every scrape; None when there is no cache any more."""
        if holds is not None:
            self._families.cache_bytes.labels(*self._labels).set_function(holds)
            return
        with suppress(KeyError):  # there never was one
            self._families.cache_bytes.remove(*self._labels)

    def shadowed(self, agreeing: int, distances: Iterable[float]) -> None:
        """As the shadow: `agreeing` of the images had the caller's top class; their probabilities lay so far apart."""
        count = 0
        for distance in distances:
            self._shadow_distance.observe(distance)
            count += 1
        self._families.shadow_images.labels(*self._labels, "agreed").inc(agreeing)
        self._families.shadow_images.labels(*self._labels, "disagreed").inc(count - agreeing)

    def shadow_shed(self, images: int) -> None:
        self._families.shadow_images.labels(*self._labels, "shed").inc(images)

    def answered(self, code: str, seconds: float, trace_id: str = "") -> None:
        """`trace_id` is kept as an exemplar, which only scrapes in OpenMetrics' format show."""
        requests = self._requests.get(code)
        if requests is None:
            requests = self._requests[code] = self._families.requests.labels(*self._labels, code)
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
        self._families.dropped.labels(*self._labels, reason).inc(images)
