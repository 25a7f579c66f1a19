"""What a person sees of a run: a live bar in a terminal, plain lines in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from service.terminal import Console
from training.checkpoint import EpochRecord

PLAIN_INTERVAL = 10.0  # seconds between the lines of a log


class TrainingDisplay:
    """Shows steps and epochs of one run of `epochs` x `steps` on `console`; a context manager."""

    def __init__(self, console: Console, epochs: int, steps: int, done: int) -> None:
        self.console = console
        self.epochs, self.steps = epochs, steps
        self.started_at, self.started = done, time.monotonic()
        self.last_line = self.started
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("epoch 1", total=epochs * steps, completed=done, figures="")

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def show_step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """After `step` batches of `epoch` (from 0): mean loss and accuracy in the epoch so far."""
        done = epoch * self.steps + step
        figures = f"loss {loss:.4f}  accuracy {accuracy:.2%}  {images_per_second:,.0f} images/s"
        if self.console.is_terminal:
            description = f"epoch {epoch + 1}/{self.epochs}"
            self.bar.update(self.task, completed=done, description=description, figures=figures)
        elif time.monotonic() - self.last_line >= PLAIN_INTERVAL:
            self.last_line = time.monotonic()
            left = (self.last_line - self.started) / (done - self.started_at) * (self.epochs * self.steps - done)
            self._line(f"epoch {epoch + 1}/{self.epochs}  step {step}/{self.steps}  {figures}  {left:,.0f} s left")

    def show_epoch(self, record: EpochRecord) -> None:
        # The last steps of an epoch are not all shown: without this the bar would never be full.
        self.bar.update(self.task, completed=record.epoch * self.steps)
        self._line(
            f"epoch {record.epoch}/{self.epochs} done  loss {record.loss:.4f}  accuracy {record.accuracy:.2%}"
            f"  validation loss {record.validation_loss:.4f}  accuracy {record.validation_accuracy:.2%}"
            f"  {record.images_per_second:,.0f} images/s  {record.seconds:.1f} s"
        )

    def _line(self, text: str) -> None:
        self.console.print(text)
