"""The pace: what it says of the time to come follows from the batches it was told of."""

from __future__ import annotations

import pytest

from service.pace import Pace


def test_nothing_is_too_late_before_anything_was_measured() -> None:
    pace = Pace(1)
    assert not pace.too_late(1e-9, 1000)
    assert not pace.hardly_in_time(1e-9, 1000, 1000)
    assert pace.room_in(1) == 1.0


def test_a_batch_of_a_new_size_may_be_measured_while_another_thread_looks() -> None:
    """The engine's thread compares the sizes; here the event loop comes in between, each time."""
    pace, new = Pace(1), iter(range(1000, 2000))

    class Size(int):
        def __ge__(self, other: int) -> bool:
            pace.measured(1, next(new), 0.1)
            return int(self) >= other

    for size in range(20):
        pace.measured(1, Size(size), 0.1)
    assert pace.too_late(0.05, 10)
    assert not pace.too_late(0.15, 10)


def test_a_batch_that_took_no_time_by_the_clock_is_measured_all_the_same() -> None:
    pace = Pace(1)
    pace.measured(1, 1, 0.0)
    assert pace.room_in(1) > 0


def test_what_waits_counts_with_a_margin() -> None:
    pace = Pace(1)
    for _ in range(5):
        pace.measured(1, 1, 0.01)
        pace.measured(64, 64, 0.1)  # 640 images a second
    assert pace.too_late(0.009, 1)
    assert pace.hardly_in_time(0.009, 0, 1)
    assert not pace.too_late(0.011, 1)
    assert not pace.hardly_in_time(0.011, 0, 1)
    assert pace.too_late(0.09, 2), "they need the larger batch"
    assert pace.hardly_in_time(0.09, 1, 1), "both are in the next batch"
    assert not pace.hardly_in_time(0.11, 1, 1)
    assert pace.hardly_in_time(1.60, 640, 1), "1.4 times a second for 640, and one and a half batches"
    assert not pace.hardly_in_time(1.62, 640, 1)
    assert not pace.too_late(0.09, 65), "a request of more than the largest batch is given the benefit of the doubt"


def test_a_long_queue_is_expected_to_go_as_large_batches_did_lately() -> None:
    pace = Pace(1)
    for _ in range(10):
        pace.measured(63, 63, 0.063)  # once, when nothing else was to do
    for _ in range(30):
        pace.measured(64, 64, 0.128)  # 500 images a second
    for _ in range(30):
        pace.measured(1, 1, 0.01)  # and single ones: 100
    assert pace.hardly_in_time(1.66, 500, 1)
    assert not pace.hardly_in_time(1.68, 500, 1)


def test_a_single_slow_batch_makes_nothing_too_late() -> None:
    pace = Pace(1)
    for _ in range(9):
        pace.measured(1, 1, 10.0)
        assert not pace.too_late(1.0, 1)
        assert not pace.hardly_in_time(1.0, 1000, 1)
    pace.measured(1, 1, 10.0)
    assert pace.too_late(1.0, 1)
    assert pace.hardly_in_time(1.0, 1000, 1)


def test_two_engines_halve_the_wait() -> None:
    one, two = Pace(1), Pace(2)
    for pace in (one, two):
        pace.measured(10, 16, 0.1)
    assert one.room_in(100) == pytest.approx(1.0)
    assert two.room_in(100) == pytest.approx(0.5)


def test_room_for_one_image_comes_with_a_whole_batch() -> None:
    pace = Pace(1)
    for _ in range(10):
        pace.measured(10, 16, 0.1)
    assert pace.room_in(1) == pace.room_in(10) == pytest.approx(0.1)


def test_averages_follow_a_machine_that_slows_down() -> None:
    pace = Pace(1)
    for _ in range(10):
        pace.measured(8, 8, 0.01)
    assert not pace.too_late(0.05, 8)
    for _ in range(50):
        pace.measured(8, 8, 0.1)
    assert pace.too_late(0.05, 8)
