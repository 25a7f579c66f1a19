"""Recipes by name: what is trained, on what, for how long. Imports no torch, so that the command line stays quick."""

from __future__ import annotations

from training.errors import TrainingError
from training.recipes import from_scratch, mnist, record, scratch, simple, tutorial
from training.recipes.recipe import Recipe

_RECORD = (record.RECIPE, record.SPRINT, record.LONG, record.AVERAGED)
_ALL = (from_scratch.RECIPE, mnist.RECIPE, *_RECORD, scratch.RECIPE, simple.RECIPE, tutorial.RECIPE)
RECIPES = {recipe.name: recipe for recipe in _ALL}


def named(name: str) -> Recipe:
    """The recipe called `name`. Raises TrainingError that lists the known ones."""
    if name not in RECIPES:
        raise TrainingError(f"no recipe {name!r}; known: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


__all__ = ["RECIPES", "Recipe", "named"]
