"""What a run is, and what makes two of them different runs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from training.datasets import Dataset, LabelledImages
from training.errors import CheckpointError
from training.hardware import Compute
from training.recipes import named
from training.run import RunSpec, describe_run, require_same_run

IMAGES = LabelledImages(np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3), np.array([0, 1]))
DATASET = Dataset("pets", "somewhere/pets", ("cat", "dog"), IMAGES, IMAGES)
SPEC = describe_run(named("tutorial"), Compute("cpu", "fp32", "contiguous"), DATASET)


def test_a_run_is_described_by_recipe_hardware_and_data() -> None:
    assert (SPEC.recipe, SPEC.compute.device) == (named("tutorial"), "cpu")
    assert (SPEC.dataset, SPEC.classes, SPEC.source) == ("pets", ("cat", "dog"), "somewhere/pets")
    assert SPEC.fingerprint == DATASET.fingerprint()


def test_a_run_survives_json() -> None:
    assert RunSpec.from_record(json.loads(json.dumps(SPEC.to_record()))) == SPEC


@pytest.mark.parametrize("key", ["recipe", "compute", "dataset", "fingerprint", "classes", "source"])
def test_a_record_without_one_of_its_fields_is_no_run(key: str) -> None:
    record = SPEC.to_record()
    del record[key]
    with pytest.raises(KeyError, match=key):
        RunSpec.from_record(record)


def test_a_run_is_the_same_run_wherever_its_data_lies() -> None:
    require_same_run(SPEC, dataclasses.replace(SPEC, source="elsewhere/pets.tar.xz"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": dataclasses.replace(SPEC.recipe, seed=7)}, r"recipe\.seed was 0, is 7"),
        ({"recipe": dataclasses.replace(SPEC.recipe, flip=False)}, r"recipe\.flip was True, is False"),
        ({"compute": Compute("cpu", "bf16", "contiguous")}, r"compute\.precision was fp32, is bf16"),
        ({"compute": Compute("cuda", "fp32", "contiguous")}, r"compute\.device was cpu, is cuda"),
        ({"dataset": "other pets"}, "dataset was pets, is other pets"),
        ({"fingerprint": "0" * 64}, "fingerprint was [0-9a-f]{64}, is 0{64}"),
        ({"classes": ("cat", "fox")}, r"classes was \['cat', 'dog'\], is \['cat', 'fox'\]"),
    ],
)
def test_another_run_is_refused_by_the_field_that_differs(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"the checkpoint is of another run: {message}$"):
        require_same_run(SPEC, dataclasses.replace(SPEC, **changes))


def test_all_differing_fields_are_named_at_once() -> None:
    recipe = dataclasses.replace(SPEC.recipe, epochs=3, batch_size=8)
    other = dataclasses.replace(SPEC, recipe=recipe, compute=Compute("cpu", "bf16", "channels_last"))
    with pytest.raises(CheckpointError) as caught:
        require_same_run(SPEC, other)
    for field in ("recipe.epochs", "recipe.batch_size", "compute.precision", "compute.layout"):
        assert f"{field} was" in str(caught.value)


def test_equal_data_has_equal_fingerprints_however_it_lies_in_memory() -> None:
    other_order = LabelledImages(np.asfortranarray(IMAGES.images), IMAGES.labels.astype(np.int32))
    assert other_order.images.strides != IMAGES.images.strides
    assert other_order.fingerprint() == IMAGES.fingerprint()


def test_the_fingerprint_of_a_split_knows_order_and_shape() -> None:
    reordered = IMAGES.select(np.array([1, 0]))
    reshaped = LabelledImages(IMAGES.images.reshape(2, 2, 8, 3), IMAGES.labels)
    relabelled = LabelledImages(IMAGES.images, np.array([1, 0]))
    parts = (IMAGES, reordered, reshaped, relabelled)
    assert len({part.fingerprint() for part in parts}) == len(parts)


def test_the_fingerprint_of_data_knows_class_names_and_which_split_is_which() -> None:
    other = IMAGES.select(np.array([1, 0]))
    there = dataclasses.replace(DATASET, test=other)
    back = dataclasses.replace(DATASET, train=other)
    renamed = dataclasses.replace(DATASET, classes=("ca", "tdog"))
    assert len({one.fingerprint() for one in (DATASET, there, back, renamed)}) == 4
    assert dataclasses.replace(DATASET, name="x", source="y").fingerprint() == DATASET.fingerprint()
