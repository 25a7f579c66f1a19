"""A run: what defines it, and how two of them are told apart."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from training.datasets import Dataset
from training.errors import CheckpointError
from training.hardware import Compute
from training.recipes import Recipe
from training.recipes.recipe import from_record, to_record


@dataclass(frozen=True)
class Start:
    """The weights of another run that a run begins with, by their SHA-256, and how they were made.

    `recipe` is that run's as `to_record` gives it; `seconds` is the training time in them, with that of its own start.
    """

    sha256: str
    recipe: dict[str, Any]
    dataset: str
    fingerprint: str
    seconds: float


@dataclass(frozen=True)
class RunSpec:
    """What decides the weights: two runs with equal specs on one machine end with equal weights.

    `source` (a path, or "cifar10") is only where the data was found: it may move between resumptions. `start` is None
    for random weights.
    """

    recipe: Recipe
    compute: Compute
    dataset: str
    fingerprint: str
    classes: tuple[str, ...]
    source: str
    start: Start | None = None

    def to_record(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "recipe": to_record(self.recipe),
            "classes": list(self.classes),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> RunSpec:
        """Raises TypeError or KeyError when fields are missing or unknown."""
        return cls(
            recipe=from_record(record["recipe"]),
            compute=Compute(**record["compute"]),
            dataset=record["dataset"],
            fingerprint=record["fingerprint"],
            classes=tuple(record["classes"]),
            source=record["source"],
            start=Start(**record["start"])
            if record.get("start")
            else None,  # runs of earlier versions have no word of it
        )


def describe_run(recipe: Recipe, compute: Compute, dataset: Dataset, start: Start | None = None) -> RunSpec:
    return RunSpec(recipe, compute, dataset.name, dataset.fingerprint(), dataset.classes, dataset.source, start)


def require_same_run(found: RunSpec, wanted: RunSpec) -> None:
    """Raises CheckpointError naming every field in which a checkpoint differs from what is to be resumed."""
    before, now = _flat(found.to_record()), _flat(wanted.to_record())
    differing = [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in {**before, **now}
        if key != "source" and before.get(key) != now.get(key)
    ]
    if differing:
        raise CheckpointError(f"the checkpoint is of another run: {'; '.join(differing)}")


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """One level of nesting removed: {"recipe": {"seed": 1}} to {"recipe.seed": 1}."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat.update(
            {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
        )
    return flat
