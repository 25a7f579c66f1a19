"""The recipes of the record network: Muon, linear decay, small images first; few passes.

Optimizer and augmentation are those of K. Jordan's `airbench94_muon` (8 passes; 94.0% on the original test set with
six views, 93.2% with one). It states rates for a loss summed over batches of 2,000; here the loss is a mean, so that
0.053 for biases becomes 106 and 0.67 for the head 1,340, and the decay of 2e-6 an example becomes 0.004 a step.

SPRINT is the shortest way to 90% in one view on CIFAR-10 (JPEG q75): GELU as published, nearly all of the images to
train on, and the weights of the last fifth of the steps averaged, at a rate that stops falling (docs/benchmarks.md).

LONG and AVERAGED are those of the model that is shipped, the second started from the first: ten times as many passes,
with squares blanked out of the images, against overfitting; then, at a quarter of the rate, three paths from there
over which the weights are averaged (P. Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
Generalization", 2018; of several runs from one start: M. Wortsman et al., "Model soups", 2022).
"""

from __future__ import annotations

import dataclasses

from training.recipes.recipe import Recipe

_FILTER_RATE = 0.24

RECIPE = Recipe(
    name="record",
    architecture="record",
    image_shape=(32, 32, 3),
    epochs=8,
    batch_size=2000,
    learning_rate=_FILTER_RATE,
    crop_padding=2,
    flip=True,
    validation_fraction=0.05,
    optimizer="muon",
    momentum=0.85,
    filter_momentum=0.6,
    weight_decay=0.004 / _FILTER_RATE,
    bias_rate=0.053 * 2000 / _FILTER_RATE,
    head_rate=0.67 * 2000 / _FILTER_RATE,
    warm_up=0.0,
    label_smoothing=0.2,
    reflect=True,
    alternate_flip=True,
    small_side=24,
    small_until=0.4,
    frozen_from=0.375,
)

SPRINT = dataclasses.replace(
    RECIPE,
    name="sprint",
    architecture="record_gelu",
    epochs=10,
    validation_fraction=0.01,
    lowest_rate=0.15,
    average_from=0.8,
)

LONG = dataclasses.replace(RECIPE, name="long", epochs=80, crop_padding=4, cutout=12)

AVERAGED = dataclasses.replace(
    LONG,
    name="averaged",
    epochs=42,
    paths=3,
    validation_fraction=0.01,
    learning_rate=_FILTER_RATE / 4,
    lowest_rate=0.5,
    average_from=0.4,
    small_side=0,
    small_until=0.0,
    frozen_from=0.0,
)
