"""The tutorial network, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training import architectures


def shapes(network: nn.Module, kind: type[nn.Module], image: Tensor) -> list[tuple[int, ...]]:
    """What each layer of a kind gives for one image, without the batch dimension, in the order they run."""
    found: list[tuple[int, ...]] = []
    for layer in network.modules():
        if isinstance(layer, kind):
            layer.register_forward_hook(lambda _layer, _inputs, output: found.append(tuple(output.shape[1:])))
    with torch.inference_mode():
        network.eval()(image)
    return found


@pytest.fixture
def network() -> nn.Module:
    return architectures.build("tutorial", (32, 32, 3), 10)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 32, 32)


def test_it_has_5852170_parameters(network: nn.Module) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_852_170
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_six_convolutions_double_the_channels_block_by_block(network: nn.Module, image: Tensor) -> None:
    assert shapes(network, nn.Conv2d, image) == [
        (32, 32, 32),
        (64, 32, 32),
        (128, 16, 16),
        (128, 16, 16),
        (256, 8, 8),
        (256, 8, 8),
    ]


def test_each_of_three_blocks_halves_the_sides(network: nn.Module, image: Tensor) -> None:
    assert shapes(network, nn.MaxPool2d, image) == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]


def test_the_first_convolution_of_each_block_is_normalised(network: nn.Module, image: Tensor) -> None:
    assert shapes(network, nn.BatchNorm2d, image) == [(32, 32, 32), (128, 16, 16), (256, 8, 8)]
    kinds = [type(layer) for layer in network.children()]
    after = [kinds[place + 1] for place, kind in enumerate(kinds) if kind is nn.Conv2d]
    assert after == [nn.BatchNorm2d, nn.ReLU] * 3


def test_three_fully_connected_layers_end_in_a_logit_for_each_class(network: nn.Module, image: Tensor) -> None:
    assert shapes(network, nn.Flatten, image) == [(4096,)]
    assert shapes(network, nn.Linear, image) == [(1024,), (512,), (10,)]


def test_the_smallest_picture_leaves_one_pixel_before_the_fully_connected_layers() -> None:
    network = architectures.build("tutorial", (8, 15, 1), 3)
    assert shapes(network, nn.MaxPool2d, torch.rand(1, 1, 8, 15))[-1] == (256, 1, 1)
    assert network(torch.rand(2, 1, 8, 15)).shape == (2, 3)


def test_dropout_works_in_training_only(network: nn.Module, image: Tensor) -> None:
    with torch.inference_mode():
        network.eval()
        assert torch.equal(network(image), network(image))
        pair = image.expand(2, -1, -1, -1)
        first, second = network.train()(pair)
    assert not torch.equal(first, second)


def test_equal_seeds_start_from_equal_weights() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        network = architectures.build("tutorial", (8, 8, 3), 2)
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
