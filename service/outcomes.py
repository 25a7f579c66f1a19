"""What a batch comes to: its rows for each request, or one fault that is logged once and told to all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.engine import EngineError, Outputs
from service.errors import hidden
from service.pending import Part
from service.runners import Floats

_MOST_NAMED = 64  # requests of one batch whose ids are logged
_LONGEST_NAME = 64  # characters of such an id
_SMALL = 8192  # numbers
_NOT_FINITE = "the engine gave probabilities that are not finite"


@dataclass(slots=True)
class Computed:
    """What the engine gave for a batch, from `began` (on time.monotonic()'s clock) on within `seconds`."""

    outputs: Outputs
    bad: Sequence[int]  # the rows with a probability that is not finite
    finite: Floats  # the probabilities without those rows
    began: float
    seconds: float


def checked(outputs: Outputs, batch: Sequence[Part], began: float, seconds: float) -> Computed:
    """`outputs` as those of the batch.

    Raises EngineError when no row is finite, or when they are not probabilities and logits of so many images.
    """
    images = sum(len(part.images) for part in batch)
    probabilities, logits = outputs.probabilities, outputs.logits
    if probabilities.ndim != 2 or probabilities.shape != logits.shape or len(probabilities) != images:
        raise EngineError(
            f"the engine gave probabilities {probabilities.shape} and logits {logits.shape} for {images} images"
        )
    if _all_finite(probabilities):
        return Computed(outputs, (), probabilities, began, seconds)
    bad = np.flatnonzero(~np.isfinite(probabilities).all(axis=1)).tolist()
    if len(bad) == images:
        raise EngineError(_NOT_FINITE)
    return Computed(outputs, bad, np.delete(probabilities, bad, axis=0), began, seconds)


def _all_finite(values: Floats) -> bool:
    """Cheaper than to look at each: the sum of the squares is finite only if all are, and BLAS is quick at it.

    BLAS would use several threads for large ones, beside those of the engine.
    """
    flat = values.ravel()
    return math.isfinite(flat.dot(flat) if flat.size <= _SMALL else flat.sum())


def deliver(batch: Sequence[Part], computed: Computed, title: str) -> None:
    """Give every request in the batch its rows; those with a bad row get a fault instead."""
    probabilities, logits = computed.outputs.probabilities, computed.outputs.logits
    failed: list[Part] = []
    first = 0
    for part in batch:
        rows = slice(first, first + len(part.images))
        first = rows.stop
        if computed.bad and any(rows.start <= row < rows.stop for row in computed.bad):
            failed.append(part)
        else:
            part.request.take(part.first, probabilities[rows], logits[rows], computed.seconds)
    if failed:
        fail(failed, EngineError(_NOT_FINITE), f"{title}: a part of a batch failed in the engine")


def fail(batch: Sequence[Part], error: BaseException, what: str) -> None:
    """Log `error` once, after `what` failed, and make its id the answer of every request in the batch without one."""
    images = sum(len(part.images) for part in batch)
    told = hidden(error, f"{what}; requests: {len(batch)}, images: {images}{_names(batch)}")
    for part in batch:
        part.request.fail(type(told)(told.error_id))  # each its own exception: raising one changes it


def _names(batch: Sequence[Part]) -> str:
    """The callers' ids of the requests, of those that have one, for the log."""
    names = [repr(part.request.name[:_LONGEST_NAME]) for part in batch if part.request.name]
    if len(names) > _MOST_NAMED:
        names[_MOST_NAMED:] = [f"and {len(names) - _MOST_NAMED} more"]
    return f", ids: {', '.join(names)}" if names else ""
