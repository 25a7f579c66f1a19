"""The recipe of the `numpy` network: one pass in small steps. The network's docstring has the reference figures."""

from __future__ import annotations

from training.recipes.recipe import Recipe

RECIPE = Recipe(
    name="numpy",
    architecture="numpy",
    image_shape=(28, 28, 1),  # for CIFAR-10 as grey: --image-shape 32x32x1
    epochs=1,
    batch_size=32,
    learning_rate=0.002,
    crop_padding=0,
    flip=False,
    validation_fraction=0.05,
    optimizer="sgd",
    momentum=0.9,
)
