"""The smaller networks of the lineage, as they are described."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training import architectures
from training.recipes import named


def kinds(network: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in network.children() if not isinstance(layer, nn.ReLU)]


def test_scratch_is_3_32_32_pool_32_64_64_pool_1600_128_10() -> None:
    network = architectures.build("scratch", (32, 32, 3), 10)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert [(each.in_channels, each.out_channels) for each in convolutions] == [(3, 32), (32, 32), (32, 64), (64, 64)]
    assert {(each.kernel_size, each.padding) for each in convolutions} == {((3, 3), (0, 0))}
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert [(each.in_features, each.out_features) for each in linear] == [(1600, 128), (128, 10)]
    block = ["Conv2d", "Conv2d", "MaxPool2d"]
    assert kinds(network) == [*block, *block, "Flatten", "Linear", "Linear"]
    assert sum(each.numel() for each in network.parameters()) == 271_786


def test_the_recipe_of_scratch_is_the_published_one() -> None:
    recipe = named("scratch")
    assert (recipe.optimizer, recipe.learning_rate, recipe.momentum) == ("sgd", 0.001, 0.9)
    assert (recipe.weight_decay, recipe.batch_size, recipe.epochs, recipe.warm_up) == (0.005, 64, 20, -1.0)


def test_scratch_starts_with_logits_of_order_one_as_its_small_rate_needs() -> None:
    torch.manual_seed(0)
    logits = architectures.build("scratch", (32, 32, 3), 10)(torch.randn(64, 3, 32, 32))
    assert 0.5 < logits.std() < 8


def test_simple_is_two_convolutions_with_pools_and_one_dense_layer_trained_by_adam() -> None:
    network, recipe = architectures.build("simple", (28, 28, 1), 10), named("simple")
    assert kinds(network) == ["Conv2d", "MaxPool2d", "Conv2d", "MaxPool2d", "Flatten", "Dropout", "Linear"]
    assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size) == ("adam", 0.001, 64)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("scratch", (16, 17, 3)), ("simple", (10, 11, 1)), ("mnist", (8, 9, 1)), ("numpy", (8, 9, 3))],
)
def test_odd_and_small_pictures_give_a_logit_for_each_class(name: str, smallest: tuple[int, int, int]) -> None:
    height, width, channels = smallest
    network = architectures.build(name, smallest, 3)
    assert network(torch.randn(2, channels, height, width)).shape == (2, 3)
