"""Holding out a stratified part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.splits import stratified_holdout


@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=6),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_example_is_on_one_side_and_every_class_on_both(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    kept, out = stratified_holdout(labels, fraction, seed)
    assert sorted([*kept, *out]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        held = int((labels[out] == label).sum())
        assert 1 <= held <= count - 1
        assert abs(held - fraction * count) <= 1


@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=6),
    fractions=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)),
    seed=st.integers(0, 2**63 - 1),
)
def test_what_a_smaller_part_holds_out_a_larger_one_does_too(
    counts: list[int], fractions: tuple[float, float], seed: int
) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    smaller, larger = (set(stratified_holdout(labels, fraction, seed)[1]) for fraction in sorted(fractions))
    assert smaller <= larger


def test_the_seed_decides() -> None:
    labels = np.repeat(np.arange(2), 50)
    first, again, other = (stratified_holdout(labels, 0.2, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_a_class_of_one_cannot_be_on_both_sides() -> None:
    with pytest.raises(ValueError, match="class 1 has one example only"):
        stratified_holdout(np.array([0, 0, 1]), 0.5, 0)
