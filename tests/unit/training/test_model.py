"""The classifier module: normalisation inside, temperature at the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from training import architectures
from training.errors import TrainingError
from training.model import Classifier, channel_statistics


def test_statistics_are_those_of_each_channel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    mean, std = channel_statistics(images)
    assert mean.numpy() == pytest.approx(images.mean((0, 1, 2)), rel=1e-6)
    assert std.numpy() == pytest.approx(images.std((0, 1, 2)), rel=1e-6)


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    mean, std = channel_statistics(np.full((2, 8, 8, 1), 7, np.uint8))
    assert (mean.tolist(), std.tolist()) == ([7.0], [1.0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pixels_reach_the_network_normalised_and_channel_first(layout: torch.memory_format) -> None:
    classifier = Classifier(nn.Identity(), torch.tensor([10.0, 20.0]), torch.tensor([2.0, 4.0]), layout)
    image = torch.tensor([[[[12, 24], [14, 28], [16, 32]]]], dtype=torch.uint8)  # [1, 1, 3, 2]
    assert classifier(image).tolist() == [[[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]]]


def test_the_temperature_divides_the_logits() -> None:
    classifier = Classifier(nn.Flatten(), torch.zeros(1), torch.ones(1), torch.contiguous_format)
    classifier.temperature.fill_(2.0)
    assert classifier(torch.tensor([[[[6], [8]]]], dtype=torch.uint8)).tolist() == [[3.0, 4.0]]


def test_the_tutorial_network_has_its_stated_size() -> None:
    network = architectures.build("tutorial", (32, 32, 3), 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_852_170
    kinds = [type(layer).__name__ for layer in network.children()]
    assert (kinds.count("Conv2d"), kinds.count("BatchNorm2d"), kinds.count("Linear")) == (6, 3, 3)


@pytest.mark.parametrize("shape", [(28, 28, 1), (40, 33, 3)])
def test_the_tutorial_network_takes_other_shapes(shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    network = architectures.build("tutorial", shape, 7)
    assert network(torch.zeros(2, channels, height, width)).shape == (2, 7)


def test_an_unknown_network_is_named_beside_the_known() -> None:
    with pytest.raises(
        TrainingError,
        match="no architecture 'vgg'; known: mnist, numpy, record, record_gelu, scratch, simple, tutorial",
    ):
        architectures.build("vgg", (32, 32, 3), 10)
