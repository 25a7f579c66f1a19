"""The recipe of the MNIST network: Adam, a rate that rises and falls, digits moved by up to two pixels."""

from __future__ import annotations

from training.recipes.recipe import Recipe

RECIPE = Recipe(
    name="mnist",
    architecture="mnist",
    image_shape=(28, 28, 1),
    epochs=4,
    batch_size=128,
    learning_rate=0.002,
    crop_padding=2,
    flip=False,  # a mirrored digit is another digit, or none
    validation_fraction=0.05,
    warm_up=0.2,
)
