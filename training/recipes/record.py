"""The recipe of the record network: high rate, Nesterov momentum, rise and fall, weight averaging; few passes.

The settings are those of airbench94 (see training/architectures/record.py), which states them for a summed loss: with
its 11.5 per 1,024 examples, momentum 0.85 and batches of 512, the rate for a mean loss is
512 * 11.5 / (1024 * (1 + 1 / (1 - 0.85))) = 0.75, and its decay of 0.0153 becomes 0.0153 / 11.5 = 0.00133.
"""

from __future__ import annotations

from training.recipes.recipe import Recipe

RECIPE = Recipe(
    name="record",
    architecture="record",
    image_shape=(32, 32, 3),
    epochs=16,
    batch_size=512,
    learning_rate=0.75,
    crop_padding=2,
    flip=True,
    validation_fraction=0.05,
    optimizer="sgd",
    momentum=0.85,
    weight_decay=0.00133,
    bias_rate=64.0,
    warm_up=0.23,
    label_smoothing=0.2,
    reflect=True,
    alternate_flip=True,
    lookahead=0.77,
)
