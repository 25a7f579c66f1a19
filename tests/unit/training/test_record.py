"""The record network and its recipe: whitening, schedule, averaging, and runs that resume exactly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.unit.training import pictures
from training import architectures, checkpoint, export, finished, loop, optimizers
from training.augment import crop_and_flip
from training.checkpoint import Checkpoint
from training.datasets import Dataset
from training.errors import Interrupted
from training.hardware import Compute
from training.recipes import RECIPES, Recipe
from training.run import RunSpec, describe_run

SIZE = 17  # the smallest side that the network takes


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return pictures.dataset(size=SIZE)


@pytest.fixture(scope="module")
def spec(dataset: Dataset) -> RunSpec:
    recipe = dataclasses.replace(
        RECIPES["record"], image_shape=(SIZE, SIZE, 3), epochs=3, batch_size=8, validation_fraction=0.2
    )
    return describe_run(recipe, Compute("cpu", "fp32", "contiguous"), dataset)


def train(spec: RunSpec, dataset: Dataset, run: Path) -> Checkpoint:
    loop.train(spec, dataset, run, resume=False, stop_signal=lambda: 0, console=Console(quiet=True))
    return checkpoint.load(run)


def test_its_size_and_cost_are_what_its_docstring_says() -> None:
    network = architectures.build("record", (32, 32, 3), 10).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_972_792
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_first_layer_makes_patches_uncorrelated_and_of_one_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(300, 3, 24, 24, generator=generator), 3, 1)
    network = architectures.build("record", (22, 22, 3), 10)
    architectures.prepare("record", network, smooth)
    whitened = network[0](smooth)[:, :12].permute(0, 2, 3, 1).reshape(-1, 12)  # type: ignore[index]
    covariance = whitened.T @ whitened / len(whitened)
    assert torch.allclose(covariance, torch.eye(12), atol=0.1)
    assert torch.equal(network[0].weight[12:], -network[0].weight[:12])  # type: ignore[index]
    assert not network[0].weight.requires_grad  # type: ignore[index]


def test_it_learns_and_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    spec: RunSpec, dataset: Dataset, tmp_path: Path
) -> None:
    unbroken = train(spec, dataset, tmp_path / "unbroken")
    assert unbroken.position.best is not None
    assert unbroken.position.best.validation_accuracy > 0.6  # by chance a third
    left = iter([0] * 8)  # into the second epoch, past the first averaging
    with pytest.raises(Interrupted):
        loop.train(
            spec, dataset, tmp_path / "broken", resume=False, stop_signal=lambda: next(left, 2),
            console=Console(quiet=True),
        )  # fmt: skip
    loop.train(spec, dataset, tmp_path / "broken", resume=True, stop_signal=lambda: 0, console=Console(quiet=True))
    resumed = checkpoint.load(tmp_path / "broken")
    assert resumed.tensors.keys() == unbroken.tensors.keys()
    assert any(name.startswith("slow.") for name in resumed.tensors)
    assert all(torch.equal(tensor, resumed.tensors[name]) for name, tensor in unbroken.tensors.items())


def test_it_is_exported_like_the_others(spec: RunSpec, dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(spec, dataset, run)
    model = finished.finish(checkpoint.load(run), dataset, "int8")
    finished.save(run, model)
    exported = export.export(run, model, dataset.test)
    assert exported.parity[0].agreement == 1.0


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 0.2), (0.1, 0.6), (0.2, 1.0), (0.6, 0.535), (1.0, 0.07)])
def test_the_rate_rises_to_its_highest_and_falls_to_almost_nothing(progress: float, factor: float) -> None:
    assert optimizers.rate_factor(0.2, progress) == pytest.approx(factor)
    assert optimizers.rate_factor(-1, progress) == 1.0


def test_biases_have_their_own_rate_and_the_same_decay() -> None:
    network = torch.nn.Linear(3, 2)
    recipe: Recipe = dataclasses.replace(RECIPES["record"], learning_rate=0.5, bias_rate=4.0, weight_decay=0.01)
    optimizer = optimizers.build(network, recipe)
    weights, biases = optimizer.param_groups
    assert (weights["params"], biases["params"]) == ([network.weight], [network.bias])
    assert (weights["lr"], biases["lr"]) == (0.5, 2.0)
    assert weights["lr"] * weights["weight_decay"] == pytest.approx(biases["lr"] * biases["weight_decay"])


def test_looking_ahead_averages_and_ends_on_the_average() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 4.0)
    slow = {"weight": torch.zeros(1, 1)}
    optimizers.look_ahead(network, slow, 0.75)
    assert slow["weight"].item() == network.weight.item() == 1.0
    torch.nn.init.constant_(network.weight, 9.0)
    optimizers.look_ahead(network, slow, 1.0)
    assert network.weight.item() == 1.0


def test_reflection_turns_the_border_over_and_invents_nothing() -> None:
    image = torch.arange(25, dtype=torch.uint8).reshape(1, 5, 5, 1)
    padded = np.pad(image.numpy()[0, :, :, 0], 2, mode="reflect")
    windows = {padded[top : top + 5, left : left + 5].tobytes() for top in range(5) for left in range(5)}
    generator = torch.Generator().manual_seed(0)
    found = {crop_and_flip(image, 2, False, generator, reflect=True).numpy()[0, :, :, 0].tobytes() for _ in range(300)}
    assert found == windows


def test_alternate_flips_mirror_each_image_in_every_second_epoch(spec: RunSpec, dataset: Dataset) -> None:
    data = loop.DeviceImages(torch.from_numpy(dataset.train.images), torch.from_numpy(dataset.train.labels))
    everything = torch.arange(len(data))
    first, second, third = (loop._mirrored(spec.recipe, data, everything, epoch) for epoch in range(3))
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    assert 0.25 < first.float().mean().item() < 0.75
