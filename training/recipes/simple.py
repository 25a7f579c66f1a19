"""The recipe of the simple network: plain pictures, Adam. The network's docstring has the published figures."""

from __future__ import annotations

from training.recipes.recipe import Recipe

RECIPE = Recipe(
    name="simple",
    architecture="simple",
    image_shape=(32, 32, 3),  # for MNIST: --image-shape 28x28x1
    epochs=10,
    batch_size=64,
    learning_rate=0.001,
    crop_padding=0,
    flip=False,
    validation_fraction=0.05,
)
