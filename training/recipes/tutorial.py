"""The recipe of the tutorial network: plain Adam, no schedule. The network's docstring has the published figures."""

from __future__ import annotations

from training.recipes.recipe import Recipe

RECIPE = Recipe(
    name="tutorial",
    architecture="tutorial",
    image_shape=(32, 32, 3),
    epochs=20,
    batch_size=128,
    learning_rate=1e-4,
    crop_padding=4,
    flip=True,
    # 2,500 of CIFAR-10's 50,000: enough to place a temperature, and little taken from training.
    validation_fraction=0.05,
)
