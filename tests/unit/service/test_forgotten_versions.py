"""Versions that are gone: their series go too, and no counter goes back on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from service import merged_metrics, metrics
from service.http import HttpServer
from service.merged_metrics import MergedMetrics
from service.metrics import Metrics

LABELS = ("cat", "dog")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time of both modules, in its only element."""
    now = [1000.0]
    for module in (metrics, merged_metrics):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    yield now


def serve_once(found: Metrics, version: int) -> None:
    """As a version does that is loaded, answers a request and is retired."""
    one = found.version("colours", version, LABELS)
    one.serving("cpu", "fp32", "auto")
    one.watch_queue(10, lambda: 0.0)
    one.watch_drift(lambda: 0.0, lambda: 0.0)
    one.answered("OK", 0.1)
    one.answered("INVALID_ARGUMENT", 0.1)
    one.computed(3, 4, 0.1)
    one.cached(1, 2)
    one.watch_cache(lambda: 100.0)
    one.dropped("expired", 1)
    one.shadowed(1, [0.5])
    one.retired("cpu", "fp32", "auto")


def of_version(found: Metrics | MergedMetrics, version: int) -> dict[str, float]:
    collector = found.registry if isinstance(found, Metrics) else found
    return {
        sample.name + str(sorted(sample.labels.items())): sample.value
        for family in collector.collect()
        for sample in family.samples
        if sample.labels.get("version") == str(version)
        and family.name != "cifarserve_model_state"
        and not sample.name.endswith("_created")
    }


def test_the_series_of_a_version_stay_for_a_while_after_it_has_gone(clock: list[float]) -> None:
    found = Metrics()
    serve_once(found, 1)
    serve_once(found, 2)
    before = of_version(found, 1)
    assert len(before) > 50
    found.forget_all_but([("colours", 1), ("colours", 2)])
    clock[0] += 10 * metrics.KEPT_SECONDS
    found.forget_all_but([("colours", 2)])
    clock[0] += metrics.KEPT_SECONDS - 1
    found.forget_all_but([("colours", 2)])
    assert of_version(found, 1) == before
    clock[0] += 1
    found.forget_all_but([("colours", 2)])
    assert not of_version(found, 1)
    assert of_version(found, 2)
    serve_once(found, 1)
    assert of_version(found, 1) == before


def test_a_version_that_comes_back_in_time_goes_on_counting(clock: list[float]) -> None:
    found = Metrics()
    serve_once(found, 1)
    found.forget_all_but([])
    clock[0] += metrics.KEPT_SECONDS - 1
    found.forget_all_but([("colours", 1)])
    serve_once(found, 1)
    clock[0] += 2
    found.forget_all_but([])
    name = "cifarserve_images_total[('model', 'colours'), ('version', '1')]"
    assert of_version(found, 1)[name] == 6


def test_versions_without_end_leave_nothing(clock: list[float]) -> None:
    found = Metrics()

    def series() -> int:
        return sum(len(family.samples) for family in found.registry.collect() if family.name.startswith("cifarserve"))

    sizes = []
    for version in range(1, 30):
        serve_once(found, version)
        found.forget_all_but([("colours", version)])
        clock[0] += metrics.KEPT_SECONDS
        sizes.append(series())
    assert sizes[2:] == sizes[1:-1]


def test_the_sum_over_workers_never_goes_back_while_they_forget_one_by_one(clock: list[float]) -> None:
    workers = [Metrics(), Metrics(), Metrics()]
    there = [[("colours", 1), ("colours", 2)] for _ in workers]
    merged = MergedMetrics()
    with ExitStack() as stack:
        for worker, states in zip(workers, there, strict=True):
            serve_once(worker, 1)
            serve_once(worker, 2)
            worker.watch_states(lambda states=states: [(*one, "READY") for one in states])
            page = stack.enter_context(
                closing(HttpServer("127.0.0.1", 0, worker.registry, ready=lambda: True, live=lambda: True))
            )
            merged.add(f"http://127.0.0.1:{page.port}/metrics")
            address = f"http://127.0.0.1:{page.port}/metrics"
        before = of_version(merged, 1)
        name = "cifarserve_images_total[('model', 'colours'), ('version', '1')]"
        assert before[name] == 9
        merged.remove(address)  # the last worker dies: what it had counted stays in the sum
        workers.pop()
        # The others lose the version at different times, and forget it at different times.
        seen = []
        for step in range(40):
            if step == 1:
                there[0].pop(0)
            if step == 4:
                there[1].pop(0)
            for worker, states in zip(workers, there, strict=False):
                worker.forget_all_but(states)
            seen.append(of_version(merged, 1).get(name))
            clock[0] += metrics.KEPT_SECONDS / 20
        shown = [value for value in seen if value is not None]
        assert shown == [9] * len(shown)
        assert seen[len(shown) :] == [None] * (40 - len(shown))
        assert 10 <= len(shown) < 20
        assert of_version(merged, 2)[name.replace("'1'", "'2'")] == 9
