"""The load test's arithmetic: percentiles, adding up, the knee, the ratio of two runs, and sharing a load."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.loadtest import measure, plan, report
from service.loadtest.histogram import Histogram

seconds = st.floats(0, 10_000)


@given(st.lists(seconds, min_size=1, max_size=300), st.sampled_from([50, 90, 99, 99.99]))
def test_a_percentile_is_known_to_a_64th_of_itself(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = float(np.percentile(values, share, method="inverted_cdf"))
    assert histogram.total == len(values)
    assert histogram.percentile(share) == pytest.approx(exact, rel=1 / 64, abs=1e-6)


@given(st.lists(st.lists(seconds, max_size=50), max_size=5))
def test_histograms_add_up_and_survive_json(parts: list[list[float]]) -> None:
    whole, pieces = Histogram(), []
    for part in parts:
        piece = Histogram()
        for value in part:
            whole.add(value)
            piece.add(value)
        pieces.append(Histogram.from_record(piece.to_record()))
    assert Histogram().merge(pieces).counts == whole.counts


def test_nothing_seen_is_not_a_number() -> None:
    assert math.isnan(Histogram().percentile(99))
    assert math.isnan(Histogram().mean())


def level(images_per_second: float, p99: float | None, **changes: object) -> dict[str, object]:
    return {
        "concurrency": 4, "rate": 0.0, "images_per_second": images_per_second,
        "latency_seconds": {"p50": p99, "p99": p99, "p99.9": p99, "p99.99": p99}, "windows": [100.0, 110.0],
        "requests_per_second": images_per_second, "errors": {}, "server": {}, "client_cores": 0.1,
        "client_was_the_limit": False, "broken": "", **changes,
    }  # fmt: skip


def test_the_knee_is_where_throughput_for_latency_is_best() -> None:
    levels = [level(500, 0.002), level(2000, 0.004), level(2100, 0.02), level(0, None)]
    assert report.knee(levels) is levels[1]
    assert report.knee([level(0, None)]) is None


def test_a_ratio_comes_with_an_interval_that_holds_it() -> None:
    found, low, high = report.ratio([110.0, 112.0, 108.0], [100.0, 101.0, 99.0])
    assert found == pytest.approx(1.1)
    assert 1.05 < low < found < high < 1.15
    assert math.isnan(report.ratio([1.0], [1.0, 2.0])[1])


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = Counter(
        low <= 1.2 <= high
        for _, low, high in (
            report.ratio(generator.normal(120, 10, 20).tolist(), generator.normal(100, 10, 20).tolist())
            for _ in range(500)
        )
    )
    assert 0.9 < covered[True] / 500 < 0.99


def test_a_page_escapes_what_it_is_given_and_draws_what_there_is() -> None:
    result = {
        "target": "<script>", "what": "w", "when": "t", "client": "c", "slo": None,
        "levels": [level(500, 0.002), level(2000, 0.004, broken="it <b>ended</b>")],
    }  # fmt: skip
    page = report.page(result, result)
    assert "<script>" not in page
    assert "<b>" not in page
    assert page.count("<polyline") == 2
    assert page.count("<td>1.000</td>") == 2, "a run compared with itself, in two levels"
    assert "nothing to draw" in report.page({**result, "levels": [level(0, None)]})


@pytest.mark.parametrize(("concurrency", "rate", "processes"), [(10, 0.0, 3), (2, 0.0, 8), (0, 100.0, 4)])
def test_processes_share_a_load_without_a_rest(concurrency: int, rate: float, processes: int) -> None:
    load = plan.Load(concurrency=concurrency, rate=rate)
    work = plan.Work(("a",), plan.CLASSIFY, False, "m", 1, load, 0, {})
    works = measure.share(work, processes)
    assert sum(one.load.concurrency for one in works) == concurrency
    assert sum(one.load.rate for one in works) == pytest.approx(rate)
    assert len(works) <= processes
    assert len({one.seed for one in works}) == len(works)
    assert all(plan.Work.from_record(one.to_record()) == one for one in works)
