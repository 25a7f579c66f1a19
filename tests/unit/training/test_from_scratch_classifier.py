"""The `numpy` network learns, gives the same answers again, and is served from ONNX with the answers it gives here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from service.engine import Engine
from training.from_scratch.activations import ELU, HardTanh, Identity, LeakyReLU, Maxout, ReLU, Sigmoid, Tanh
from training.from_scratch.classifier import GreyClassifier, build, grey, optimiser, predict, train_epoch
from training.from_scratch.convolution import Convolution
from training.from_scratch.dropout import Dropout
from training.from_scratch.layer import Floats, Layer, Parameter
from training.from_scratch.linear import Flatten, Linear
from training.from_scratch.loss import softmax
from training.from_scratch.network import Sequential
from training.from_scratch.normalisation import BatchNorm
from training.from_scratch.onnx_export import export
from training.from_scratch.pooling import AveragePool, LpPool, MaxPool

SHAPE = (10, 9, 3)


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def moved_batch_norm() -> BatchNorm:
    layer = BatchNorm(normal(4), normal(4, seed=1))
    layer.forward(normal(5, 4, 3, 3, seed=2) + 1)
    return layer


# Each takes [n, 4, 8, 7], as a 3x3 convolution makes it of SHAPE.
LAYERS: dict[str, Layer] = {
    "convolution": Convolution(normal(3, 4, 3, 2), normal(3), (2, 1), (1, 2)),
    "max pool": MaxPool((3, 2), (2, 1), (1, 0)),
    "average pool": AveragePool((2, 3), (1, 2), (1, 1)),
    "l1 pool": LpPool(1, (2, 2)),
    "l2 pool": LpPool(2, (3, 2), (1, 1)),
    "l3 pool": LpPool(3, (2, 3), (2, 1)),
    "batch norm": moved_batch_norm(),
    "dropout": Dropout(0.5, np.random.default_rng(0)),
    "identity": Identity(),
    "relu": ReLU(),
    "leaky relu": LeakyReLU(0.1),
    "tanh": Tanh(),
    "hard tanh": HardTanh(),
    "elu": ELU(0.8),
    "sigmoid": Sigmoid(),
    "maxout": Maxout(2),
    "network in a network": Sequential(ReLU(), MaxPool((2, 2))),
}


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of horizontal (0) and vertical (1) stripes anywhere: uint8 [count, *SHAPE], int64 [count]."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=count)
    rows, columns, _ = np.indices(SHAPE)
    along = np.where(labels[:, None, None, None] == 0, rows, columns) + generator.integers(4, size=(count, 1, 1, 1))
    pixels = 200 * (along % 4 < 2) + generator.integers(56, size=(count, *SHAPE))
    return pixels.astype(np.uint8), labels


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(256, size=(count, *SHAPE), dtype=np.uint8)


def test_it_learns() -> None:
    classifier = build(SHAPE, 2, seed=0)
    images, labels = stripes(400, seed=1)
    descent, generator = optimiser(classifier), np.random.default_rng(2)
    results = [train_epoch(classifier, descent, images, labels, generator) for _ in range(4)]
    assert results[-1].loss < results[0].loss / 2
    assert results[-1].accuracy > 0.95
    unseen, answers = stripes(200, seed=4)
    assert (predict(classifier, unseen).argmax(axis=1) == answers).mean() > 0.95


def test_the_seed_decides_the_result() -> None:
    images, labels = stripes(64, seed=1)

    def trained(seed: int) -> Floats:
        classifier = build(SHAPE, 2, seed)
        train_epoch(classifier, optimiser(classifier), images, labels, np.random.default_rng(seed))
        return predict(classifier, images)

    np.testing.assert_array_equal(trained(0), trained(0))
    assert not np.array_equal(trained(0), trained(1))


def test_an_epoch_takes_each_image_once_and_reports_what_it_saw() -> None:
    images, labels = stripes(50, seed=1)
    classifier = build(SHAPE, 2, seed=0)
    # A rate of 0 learns nothing, so that all images meet the same network.
    result = train_epoch(classifier, optimiser(classifier, rate=0), images, labels, np.random.default_rng(0))
    probabilities = predict(classifier, images)
    assert result.accuracy == pytest.approx((probabilities.argmax(axis=1) == labels).mean())
    assert result.loss == pytest.approx(-np.log(probabilities[np.arange(50), labels]).mean(), rel=1e-5)


def test_the_network_sees_the_mean_of_the_channels() -> None:
    images = np.array([[[[0, 0, 0], [30, 60, 90], [255, 255, 255]]]], np.uint8)
    pixels = grey(images)
    assert pixels.shape == (1, 1, 1, 3)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels.ravel(), [-0.5, 60 / 255 - 0.5, 0.5], rtol=1e-6)


def test_predictions_do_not_depend_on_the_batch() -> None:
    classifier, images = build(SHAPE, 5, seed=0), pictures(7)
    whole = predict(classifier, images)
    assert whole.shape == (7, 5)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(predict(classifier, images, batch_size=2), whole, rtol=1e-5)


def test_layers_are_in_training_mode_while_learning_only() -> None:
    dropout, features = Dropout(0.5, np.random.default_rng(0)), 10 * 9
    network = Sequential(Flatten(), dropout, Linear(normal(2, features), normal(2)))
    classifier, (images, labels) = GreyClassifier(SHAPE, 2, network), stripes(40, seed=1)
    np.testing.assert_array_equal(predict(classifier, images), predict(classifier, images))
    descent, generator = optimiser(classifier, rate=0), np.random.default_rng(0)
    losses = [train_epoch(classifier, descent, images, labels, generator).loss for _ in range(2)]
    assert losses[0] != pytest.approx(losses[1])


def test_images_smaller_than_four_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        build((3, 3, 1), 2, seed=0)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (9, 12, 3)])
def test_the_server_serves_it_with_the_same_answers(shape: tuple[int, int, int], tmp_path: Path) -> None:
    classifier = build(shape, 10, seed=0)
    images = np.random.default_rng(0).integers(256, size=(5, *shape), dtype=np.uint8)
    engine = open_engine(classifier, tmp_path)
    assert engine.image_shape == shape
    outputs = engine.run(images)
    np.testing.assert_allclose(outputs.probabilities, predict(classifier, images), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(softmax(outputs.logits), outputs.probabilities, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_exported(name: str, tmp_path: Path) -> None:
    convolution = Convolution(normal(4, 1, 3, 3), normal(4))
    body = Sequential(convolution, LAYERS[name], Flatten())
    body.training = False
    features = body.forward(grey(pictures(1))).shape[1]
    network = Sequential(body, Linear(normal(3, features) / np.float32(np.sqrt(features)), normal(3)))
    classifier, images = GreyClassifier(SHAPE, 3, network), pictures(4)
    outputs = open_engine(classifier, tmp_path).run(images)
    np.testing.assert_allclose(outputs.logits, network.forward(grey(images)), rtol=1e-4, atol=1e-5)


def test_a_layer_without_translation_is_refused() -> None:
    class Negation:
        def forward(self, x: Floats) -> Floats:
            return -x

        def backward(self, gradient: Floats) -> Floats:
            return -gradient

        def parameters(self) -> tuple[Parameter, ...]:
            return ()

    with pytest.raises(TypeError, match="Negation"):
        export(GreyClassifier(SHAPE, 2, Sequential(Negation())))


def open_engine(classifier: GreyClassifier, folder: Path) -> Engine:
    path = folder / "model.onnx"
    onnx.save(export(classifier), path)
    return Engine(path, provider="cpu", max_batch_size=8)
