"""Seeds: one for each purpose, the same today and tomorrow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from training.seeds import derive


@given(st.integers(0, 2**63 - 1), st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_seed_fits_every_generator(seed: int, epoch: int, step: int) -> None:
    assert 0 <= derive(seed, "augment", epoch, step) < 2**63


def test_each_purpose_epoch_step_and_recipe_seed_has_a_seed_of_its_own() -> None:
    seeds = [
        derive(seed, purpose, epoch, step)
        for seed in range(3)
        for purpose in ("augment", "dropout")
        for epoch in range(12)
        for step in range(120)
    ]
    assert len(set(seeds)) == len(seeds)


def test_numbers_that_only_look_alike_when_joined_are_told_apart() -> None:
    assert derive(0, "augment", 1, 23) != derive(0, "augment", 12, 3)
    assert derive(1, "augment", 1) != derive(11, "augment")


def test_seeds_stay_what_they_were_in_earlier_versions() -> None:
    # Other values would change, without a word, which images a checkpoint of an earlier version was validated on.
    assert derive(0, "validation") == 9194132985843379211
    assert derive(3, "augment", 7, 300) == 204516130227840271
