"""Makes metric families in one registry, and remembers their names, labels and meaning for the documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# 100 microseconds to 10 seconds, three to a decade.
SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

_Kind = TypeVar("_Kind", bound=Metric)
_Made = TypeVar("_Made", bound=MetricWrapperBase)


@dataclass(frozen=True)
class Family:
    name: str  # as a query names it: a counter's ends in _total, a histogram's lacks _bucket
    kind: str  # counter, gauge or histogram
    labels: tuple[str, ...]
    documentation: str


class Families:
    """A registry and what was made in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.described: list[Family] = []
        self._made: list[tuple[MetricWrapperBase, tuple[str, ...]]] = []

    def counter(self, name: str, documentation: str, *labels: str) -> Counter:
        """`name` is without `_total`, which Prometheus' client adds."""
        self._describe(f"{name}_total", "counter", labels, documentation)
        return self._keep(Counter(name, documentation, labels, registry=self.registry), labels)

    def gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        self._describe(name, "gauge", labels, documentation)
        return self._keep(Gauge(name, documentation, labels, registry=self.registry), labels)

    def histogram(self, name: str, documentation: str, *labels: str, buckets: Iterable[float]) -> Histogram:
        self._describe(name, "histogram", labels, documentation)
        return self._keep(
            Histogram(name, documentation, labels, buckets=tuple(buckets), registry=self.registry), labels
        )

    def at_scrape(
        self, kind: Callable[..., _Kind], name: str, documentation: str, *labels: str, fill: Callable[[_Kind], None]
    ) -> None:
        """A family, such as GaugeMetricFamily, whose samples `fill` adds at every scrape, on the scraper's thread."""
        collector = _AtScrape(lambda: kind(name, documentation, labels=labels), fill)
        family = kind(name, documentation, labels=labels)
        self._describe(name + "_total" * (family.type == "counter"), family.type, labels, documentation)
        self.registry.register(collector)

    def remove(self, **labels: str) -> None:
        """Remove every series with these labels, from the families that have them all and are no `at_scrape`."""
        for metric, names in self._made:
            if labels.keys() <= set(names):
                metric.remove_by_labels(labels)

    def _keep(self, metric: _Made, labels: tuple[str, ...]) -> _Made:
        self._made.append((metric, labels))
        return metric

    def _describe(self, name: str, kind: str, labels: tuple[str, ...], documentation: str) -> None:
        self.described.append(Family(name, kind, labels, documentation))


class _AtScrape(Collector, Generic[_Kind]):
    def __init__(self, empty: Callable[[], _Kind], fill: Callable[[_Kind], None]) -> None:
        self._empty = empty
        self._fill = fill

    def collect(self) -> Iterable[Metric]:
        family = self._empty()
        self._fill(family)
        return [family]

    def describe(self) -> Iterable[Metric]:
        """So that a scrape may ask for it by its name."""
        return [self._empty()]
