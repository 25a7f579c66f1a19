"""What is shown of a run: lines in a log, a bar in a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from training import progress
from training.checkpoint import EpochRecord
from training.progress import TrainingDisplay


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, 1.25, 0.5, 1.5, 0.375, 2.0, 12_345.0)


def log() -> Console:
    return Console(file=io.StringIO(), width=200)


def terminal() -> Console:
    return Console(file=io.StringIO(), width=160, force_terminal=True)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def last_bar(console: Console) -> str:
    """The bar as it stands when the display is closed."""
    return [line for line in re.split(r"[\r\n]", text(console)) if "━" in line][-1]


def test_an_epoch_is_one_line_with_all_its_figures() -> None:
    console = log()
    with TrainingDisplay(console, epochs=3, steps=15, done=0) as display:
        display.show_epoch(record(2))
    assert text(console) == (
        "epoch 2/3 done  loss 1.2500  accuracy 50.00%  validation loss 1.5000  accuracy 37.50%"
        "  12,345 images/s  2.0 s\n"
    )


def test_a_log_is_not_flooded_with_steps() -> None:
    console = log()
    with TrainingDisplay(console, epochs=1, steps=1000, done=0) as display:
        for step in range(1, 1000):
            display.show_step(0, step, 1.0, 0.5, 100.0)
    assert text(console) == ""


def test_a_log_shows_now_and_then_how_far_it_is_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    console = log()
    with TrainingDisplay(console, epochs=2, steps=40, done=50) as display:
        display.show_step(1, 20, 0.5, 0.25, 1234.5)
    line = r"epoch 2/2  step 20/40  loss 0\.5000  accuracy 25\.00%  1,23[45] images/s  \d+ s left\n"
    assert re.fullmatch(line, text(console))


def test_a_log_has_no_bar_and_no_control_characters() -> None:
    console = log()
    with TrainingDisplay(console, epochs=1, steps=10, done=0) as display:
        display.show_step(0, 10, 1.0, 0.5, 100.0)
        display.show_epoch(record(1))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().replace("\n", "").isprintable()
    assert "━" not in console.file.getvalue()


def test_a_terminal_shows_a_bar_with_the_figures_of_the_step() -> None:
    console = terminal()
    with TrainingDisplay(console, epochs=2, steps=20, done=0) as display:
        display.show_step(1, 10, 0.5, 0.25, 1000.0)
    bar = last_bar(console)
    assert "epoch 2/2" in bar
    assert "75%" in bar
    assert "loss 0.5000  accuracy 25.00%  1,000 images/s" in bar


def test_a_resumed_run_starts_with_the_part_of_the_bar_that_was_done() -> None:
    console = terminal()
    with TrainingDisplay(console, epochs=4, steps=10, done=20):
        pass
    assert "50%" in last_bar(console)


def test_the_bar_is_full_when_the_last_epoch_is_done() -> None:
    console = terminal()
    # Steps are shown every tenth: the last ones of an epoch of 15 never are.
    with TrainingDisplay(console, epochs=1, steps=15, done=0) as display:
        display.show_step(0, 10, 0.5, 0.25, 1000.0)
        display.show_epoch(record(1))
    assert "100%" in last_bar(console)


def test_the_bar_is_taken_down_when_training_fails() -> None:
    console = terminal()
    with pytest.raises(ValueError, match="failed"), TrainingDisplay(console, epochs=1, steps=10, done=0) as display:
        raise ValueError("failed")
    assert not display.bar.live.is_started
