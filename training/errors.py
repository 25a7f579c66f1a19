"""Every training error that a person can cause or must decide on, in one tree, with the exit code each one gives.

`training.cli` prints the message as one line and returns the code. Anything else is a fault of ours: it shows its
traceback and exits with 1.
"""

from __future__ import annotations


class TrainingError(Exception):
    """Base of all of them. The message says what is wrong and, where it can, what to do. Exit code 2."""

    exit_code = 2


class DatasetError(TrainingError):
    """The pictures cannot be used: no such place, no classes, broken files."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged, or belongs to a run with another recipe or other data."""


class GateRefused(TrainingError):
    """The model works, but is not good enough to publish. The message names the numbers."""

    exit_code = 3


class ParityError(TrainingError):
    """The exported model does not give PyTorch's answers, or is not a valid ONNX file."""

    exit_code = 4


class Interrupted(TrainingError):
    """Training was asked to stop by a signal and left a checkpoint. Exit code 128 + signal, as shells have it."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
