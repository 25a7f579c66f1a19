"""Stop requests: the first signal is a question, the second one acts as ever."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from training.signals import SIGNALS, stop_requests

earlier: list[int] = []


def note(number: int, _: object) -> None:
    earlier.append(number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers of the test's own, so that a SIGTERM that gets through does not end the test run."""
    before = {number: signal.signal(number, note) for number in SIGNALS}
    earlier.clear()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_without_a_signal_nothing_asks_to_stop() -> None:
    with stop_requests() as stop_signal:
        assert stop_signal() == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_only_noted(number: signal.Signals) -> None:
    with stop_requests() as stop_signal:
        signal.raise_signal(number)
        assert stop_signal() == number
        assert stop_signal() == number  # it stays asked
    assert earlier == []


@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 15), (15, 2), (15, 15)])
def test_the_second_acts_as_it_did_before(first: int, second: int) -> None:
    with stop_requests() as stop_signal:
        signal.raise_signal(first)
        signal.raise_signal(second)
        assert stop_signal() == first
    assert earlier == [second]


def test_a_second_ctrl_c_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stop_requests():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_afterwards_signals_act_as_before_even_when_the_work_failed() -> None:
    with pytest.raises(ValueError, match="the work failed"), stop_requests():
        raise ValueError("the work failed")
    for number in SIGNALS:
        assert signal.getsignal(number) is note
