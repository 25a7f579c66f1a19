"""Beginning a run with the weights that another one kept, instead of with random ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch

from training import checkpoint
from training.checkpoint import Tensors
from training.datasets import Dataset
from training.errors import CheckpointError
from training.recipes import Recipe
from training.run import Start


def kept_weights(run: Path, recipe: Recipe, dataset: Dataset) -> tuple[Start, Tensors]:
    """What the run in `run` kept, as a start for `recipe` on `dataset`, and what a manifest says of it.

    Raises CheckpointError: nothing kept yet, another network, or other classes. And, on the very data of that run,
    another division into training and validation images: those to calibrate with would have been trained on. Fewer
    validation images are well, since they are some of the ones that were held out before (`splits`).
    """
    saved = checkpoint.load(run)
    before = saved.spec
    if saved.position.best(before.recipe) is None:
        raise CheckpointError(f"{run}: no epoch is complete yet, so there are no weights to start from")
    wanted: dict[str, tuple[object, object]] = {
        "architecture": (before.recipe.architecture, recipe.architecture),
        "image_shape": (before.recipe.image_shape, recipe.image_shape),
        "classes": (before.classes, dataset.classes),
    }
    if before.fingerprint == dataset.fingerprint():
        wanted["seed"] = (before.recipe.seed, recipe.seed)
    differing = [f"{name} was {was}, is {now}" for name, (was, now) in wanted.items() if was != now]
    was, now = before.recipe.validation_fraction, recipe.validation_fraction
    if before.fingerprint == dataset.fingerprint() and now > was:
        differing.append(f"validation_fraction was {was}, is {now}, which is more")
    if differing:
        raise CheckpointError(f"{run}: cannot start from it: {'; '.join(differing)}")
    weights = checkpoint.part(saved.tensors, "best.")
    seconds = sum(record.seconds for record in saved.position.history)
    return (
        Start(
            sha256=hashlib.sha256(safetensors.torch.save(weights)).hexdigest(),
            recipe=before.to_record()["recipe"],
            dataset=before.dataset,
            fingerprint=before.fingerprint,
            seconds=seconds + (before.start.seconds if before.start else 0.0),
        ),
        weights,
    )
