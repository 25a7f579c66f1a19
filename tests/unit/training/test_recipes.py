"""Recipes: values that can be used, or an error that names the field."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from training.errors import TrainingError
from training.recipes import RECIPES, Recipe, named
from training.recipes.recipe import from_record, to_record

TUTORIAL = named("tutorial")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_shape", (7, 32, 3)),
        ("image_shape", (32, 7, 3)),
        ("image_shape", (32, 32, 2)),
        ("epochs", 0),
        ("batch_size", 1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("crop_padding", -1),
        ("crop_padding", 32),
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("validation_fraction", math.nan),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_naming_its_field(field: str, value: object) -> None:
    with pytest.raises(TrainingError, match=f"^recipe: {field} must be .*, is ") as caught:
        dataclasses.replace(TUTORIAL, **{field: value})
    assert str(caught.value).endswith(f"is {value}")


@pytest.mark.parametrize(
    "changes",
    [
        {"image_shape": (8, 8, 1), "crop_padding": 7},
        {"epochs": 1, "batch_size": 2},
        {"crop_padding": 0, "flip": False},
        {"seed": 2**63 - 1},
    ],
)
def test_values_at_the_limits_can_be_used(changes: dict[str, object]) -> None:
    recipe = dataclasses.replace(TUTORIAL, **changes)
    assert {key: getattr(recipe, key) for key in changes} == changes


def test_a_recipe_survives_json() -> None:
    recipe = dataclasses.replace(TUTORIAL, learning_rate=1 / 3, seed=2**63 - 1)
    assert from_record(json.loads(json.dumps(to_record(recipe)))) == recipe


def test_a_record_with_an_unknown_field_or_without_a_known_one_is_no_recipe() -> None:
    record = to_record(TUTORIAL)
    with pytest.raises(TypeError, match="colour"):
        from_record(record | {"colour": "red"})
    del record["epochs"]
    with pytest.raises(TypeError, match="epochs"):
        from_record(record)


def test_recipes_are_found_by_their_own_names() -> None:
    assert all(named(name).name == name for name in RECIPES)


def test_an_unknown_recipe_is_named_beside_the_known() -> None:
    with pytest.raises(TrainingError, match=r"no recipe 'vgg'; known: .*tutorial"):
        named("vgg")


def test_the_tutorials_recipe_is_the_published_one() -> None:
    expected = Recipe(
        name="tutorial",
        architecture="tutorial",
        image_shape=(32, 32, 3),
        epochs=20,
        batch_size=128,
        learning_rate=1e-4,
        crop_padding=4,
        flip=True,
        validation_fraction=0.05,
        seed=0,
    )
    assert expected == TUTORIAL
