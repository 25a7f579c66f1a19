"""Holding out a part of labelled examples, class by class, the same part every time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def stratified_holdout(labels: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Indices kept and indices held out, each sorted: `fraction` of every class, at least one of it, drawn by `seed`.

    What a smaller fraction holds out, a larger one with the same seed holds out too: warm_start.py relies on it.

    Raises ValueError when a class has a single example, which cannot be on both sides.
    """
    generator = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise ValueError(f"class {label} has one example only")
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out.append(generator.permutation(members)[:count])
    out = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), out), out
