"""The recipe of the scratch network, as published: plain pictures, a small constant rate, strong weight decay.

The momentum is Nesterov's, as of every `sgd` here. The network's docstring has the published figure.
"""

from __future__ import annotations

from training.recipes.recipe import Recipe

RECIPE = Recipe(
    name="scratch",
    architecture="scratch",
    image_shape=(32, 32, 3),
    epochs=20,
    batch_size=64,
    learning_rate=0.001,
    crop_padding=0,
    flip=False,
    validation_fraction=0.02,
    optimizer="sgd",
    momentum=0.9,
    weight_decay=0.005,
)
