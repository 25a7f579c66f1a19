"""The `numpy` network: torch's weights and steps around NumPy's layers, and the graph that these draw themselves."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from service.engine import Engine
from training import architectures
from training.architectures.from_scratch import NumpyNetwork
from training.export import to_onnx
from training.from_scratch.dropout import Dropout
from training.from_scratch.linear import Flatten, Linear
from training.from_scratch.network import Sequential
from training.model import Classifier, predict_logits
from training.weights import round_weights

SHAPE = (10, 9, 3)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return architectures.build("numpy", SHAPE, 4)


def in_torch(network: nn.Module, images: Tensor) -> Tensor:
    """The same layers in torch, with the very parameters of `network`."""
    kernel, bias, weight, last = network.parameters()
    features = nn.functional.max_pool2d(nn.functional.conv2d(images, kernel, bias), 2)
    return nn.functional.linear(features.flatten(1), weight, last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_logits_and_all_gradients_are_those_of_torch(network: nn.Module, layout: torch.memory_format) -> None:
    network = network.to(memory_format=layout)
    images = torch.randn(5, 3, 10, 9).contiguous(memory_format=layout).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0])
    found, expected = network(images), in_torch(network, images)
    torch.testing.assert_close(found, expected)
    seen = [images, *network.parameters()]
    ours = torch.autograd.grad(nn.functional.cross_entropy(found, labels), seen)
    theirs = torch.autograd.grad(nn.functional.cross_entropy(expected, labels), seen)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_of_torchs_optimizer_changes_what_numpy_computes(network: nn.Module) -> None:
    images = torch.randn(5, 3, 10, 9)
    before = network(images)
    before.sum().backward()
    torch.optim.SGD(network.parameters(), 0.1).step()
    after = network(images)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, in_torch(network, images))


def test_equal_seeds_start_from_equal_weights(network: nn.Module) -> None:
    torch.manual_seed(0)
    again = architectures.build("numpy", SHAPE, 4)
    other = architectures.build("numpy", SHAPE, 4)
    assert all(map(torch.equal, network.parameters(), again.parameters()))
    assert not torch.equal(next(network.parameters()), next(other.parameters()))


def test_a_state_loaded_into_a_fresh_network_gives_the_same_answers(network: nn.Module) -> None:
    fresh = architectures.build("numpy", SHAPE, 4)
    fresh.load_state_dict(copy.deepcopy(network.state_dict()))
    images = torch.randn(2, 3, 10, 9)
    torch.testing.assert_close(fresh(images), network(images), rtol=0, atol=0)


def test_layers_are_in_training_mode_while_learning_only() -> None:
    weight = np.random.default_rng(0).normal(size=(2, 90)).astype(np.float32)
    dropout = Dropout(0.5, np.random.default_rng(0))
    network = NumpyNetwork(Sequential(Flatten(), dropout, Linear(weight, np.zeros(2, np.float32))), 2)
    images = torch.randn(3, 1, 10, 9)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_the_arrays_of_an_export_are_the_weights_that_were_trained(network: nn.Module) -> None:
    """Also before anything was computed with them."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert isinstance(network, NumpyNetwork)
    ones = np.ones(3, np.float32)
    drawn = network.to_onnx(SHAPE, ones, ones, 1.0)
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in drawn.graph.initializer]
    assert all(any(np.array_equal(p.detach().numpy(), array) for array in stored) for p in network.parameters())


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_the_exported_graph_answers_as_the_classifier_does(network: nn.Module, weights: str, tmp_path: Path) -> None:
    mean, std = torch.tensor([100.0, 110.0, 120.0]), torch.tensor([50.0, 60.0, 70.0])
    classifier = Classifier(network, mean, std, torch.contiguous_format).eval()
    round_weights(classifier.network, weights)
    classifier.temperature.fill_(1.7)
    path = tmp_path / "model.onnx"
    onnx.save(to_onnx(classifier, SHAPE, weights), path)
    images = np.random.default_rng(0).integers(256, size=(5, *SHAPE), dtype=np.uint8)
    outputs = Engine(path, provider="cpu", max_batch_size=8).run(images)
    expected = predict_logits(classifier, images)
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs.probabilities, torch.tensor(expected).softmax(1), rtol=1e-4, atol=1e-6)


def test_images_smaller_than_four_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        architectures.build("numpy", (3, 3, 1), 2)
