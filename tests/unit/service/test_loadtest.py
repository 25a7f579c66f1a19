"""The load test's arithmetic: percentiles, adding up, the knee, the ratio of two runs, and sharing a load."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.loadtest import measure, messages, page, plan, report, server
from service.loadtest.histogram import Histogram
from tests.integration.server_process import ENVIRONMENT

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
        "latency_seconds": {"p50": p99, "p90": p99, "p99": p99, "p99.9": p99, "p99.99": p99},
        "windows": [100.0, 110.0], "requests_per_second": images_per_second, "images_per_request": 1, "errors": {},
        "error_details": {}, "server": {}, "client_cores": 0.1, "client_was_the_limit": False, "broken": "",
        "histogram": {"100": 50, "200": 2} if p99 else {}, **changes,
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
    text = page.page(result, result)
    assert "<script>" not in text
    assert "<b>" not in text
    assert text.count("stroke-dasharray=''") == 2, "a curve of each run"
    assert text.count("<td>1.000</td>") == 2, "a run compared with itself, in two levels"
    assert "nothing to draw" in page.page({**result, "levels": [level(0, None)]})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"client_was_the_limit": True}, "more --processes"),
        ({"errors": {"RESOURCE_EXHAUSTED": 3}}, "--max-queue-images"),
        ({"server": {"queue_seconds": 0.02, "compute_seconds": 0.01, "cores": 1.9}}, "on 1.9 cores: the engine is the"),
        ({"server": {"queue_seconds": 0.001, "compute_seconds": 0.01}}, "the way in is the limit"),
        ({}, "--metrics"),
    ],
)  # fmt: skip
def test_what_to_change_follows_from_what_was_seen(changes: dict[str, object], said: str) -> None:
    levels = [level(500, 0.002), level(2000, 0.004, concurrency=8, **changes)]
    assert any(said in line for line in report.advice({"levels": levels}))
    assert report.advice({"levels": [level(0, None)]}) == []


def test_the_best_within_a_limit_has_no_errors() -> None:
    levels = [level(500, 0.002), level(900, 0.009, errors={"UNAVAILABLE": 1}), level(2000, 0.02)]
    assert report.within(levels, 0.01) is levels[0]
    assert "With p99 below 10 ms: 500 images/s" in report.sentence({"levels": levels})


def look(at: float, **sums: float) -> server.Look:
    return server.Look(at, sums)


def test_tritons_metrics_are_read_too() -> None:
    before = look(10, nv_inference_count=100, nv_inference_exec_count=50, nv_inference_request_success=100)
    after = look(
        20, nv_inference_count=900, nv_inference_exec_count=250, nv_inference_request_success=500,
        nv_inference_queue_duration_us=8e5, nv_inference_compute_infer_duration_us=4e6,
        process_cpu_seconds_total=15, process_resident_memory_bytes=1000,
    )  # fmt: skip
    assert server.between(before, after) == {
        "images_in_a_batch": 4, "queue_seconds": 0.002, "compute_seconds": 0.01, "cores": 1.5, "resident_bytes": 1000,
    }  # fmt: skip


def test_a_process_is_watched_with_its_children() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(10**7)); print(1); input()'])"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        both, own = server.usage(process.pid), server.usage(os.getpid())
        process.communicate(b"\n")
    assert both.cpu_seconds > 0.05, "the child's sum"
    assert 5 << 20 < both.resident_bytes < own.resident_bytes
    with pytest.raises(plan.LoadTestError, match="--server-pid"):
        server.usage(process.pid)


def shape(*tensors: tuple[str, str, tuple[int, ...]]) -> plan.Shape:
    return plan.Shape("m", tuple(plan.Tensor(*one) for one in tensors))


NOISE = """
from service.loadtest import messages, plan
tensors = (plan.Tensor("a", "FP32", (-1, 3, 4)), plan.Tensor("b", "INT64", (2,)))
made = messages.make_messages("infer", plan.Shape("m", tensors), 2)
request = plan.open_inference().ModelInferRequest.FromString(made[0])
found = [(one.name, one.datatype, list(one.shape)) for one in request.inputs]
assert found == [("a", "FP32", [2, 3, 4]), ("b", "INT64", [2])], found
assert [len(one) for one in request.raw_input_contents] == [4 * 24, 8 * 2]
assert made[0] != made[1]
"""


def test_noise_fits_any_input_of_the_open_inference_protocol() -> None:
    """In a process of its own: its stubs and tritonclient's cannot be in one."""
    done = subprocess.run([sys.executable, "-c", NOISE], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (("text", "BYTES", (-1, 1)), "takes text BYTES"),
        (("image", "UINT8", (-1, -1, -1, 3)), "more than its first size is left open"),
        (("image", "UINT8", (8, 32, 32, 3)), "give --images 8"),
    ],
)
def test_an_input_that_cannot_be_made_up_is_said(inputs: tuple[str, str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(plan.LoadTestError, match=said):
        messages.make_messages("infer", shape(inputs), 2)


def test_pictures_need_a_model_that_takes_images(tmp_path: Path) -> None:
    with pytest.raises(plan.LoadTestError, match="pictures can be sent as"):
        messages.make_messages("infer", shape(("x", "FP32", (-1, 4))), 1, [tmp_path / "a.jpg"])


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
