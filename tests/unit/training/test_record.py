"""The record network and its recipe: whitening, Muon, small images first, and runs that resume exactly."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.unit.training import pictures
from training import architectures, checkpoint, export, finished, loop, optimizers
from training.augment import crop_and_flip
from training.checkpoint import Checkpoint
from training.datasets import Dataset
from training.errors import Interrupted, TrainingError
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
        RECIPES["record"],
        image_shape=(SIZE, SIZE, 3),
        epochs=3,
        batch_size=8,
        validation_fraction=0.2,
        small_side=16,
        cutout=4,
    )
    return describe_run(recipe, Compute("cpu", "fp32", "contiguous"), dataset)


CHANGES: dict[str, dict[str, Any]] = {
    "record": {},
    "averaging": {"lowest_rate": 0.25, "average_from": 0.5},  # from the middle of the second epoch
    "paths": {"lowest_rate": 0.25, "average_from": 0.5, "paths": 3},  # in the second half of every epoch
}


@pytest.fixture(scope="module", params=CHANGES)
def some_spec(request: pytest.FixtureRequest, spec: RunSpec) -> RunSpec:
    """The recipe as it is, with averaged weights, and with those of three paths."""
    return dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, **CHANGES[request.param]))


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


@pytest.mark.parametrize("steps", [8, 11, 13])  # in the second epoch before averaging begins and after, in the third
def test_it_learns_and_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    some_spec: RunSpec, dataset: Dataset, tmp_path: Path, steps: int
) -> None:
    spec = some_spec
    unbroken = train(spec, dataset, tmp_path / "unbroken")
    kept = unbroken.position.best(unbroken.spec.recipe)
    assert kept is unbroken.position.history[-1]
    assert kept.validation_accuracy > 0.6  # by chance a third
    left = iter([0] * steps)
    with pytest.raises(Interrupted):
        loop.train(
            spec, dataset, tmp_path / "broken", resume=False, stop_signal=lambda: next(left, 2),
            console=Console(quiet=True),
        )  # fmt: skip
    loop.train(spec, dataset, tmp_path / "broken", resume=True, stop_signal=lambda: 0, console=Console(quiet=True))
    resumed = checkpoint.load(tmp_path / "broken")
    assert resumed.tensors.keys() == unbroken.tensors.keys()
    assert any(name.endswith("momentum_buffer") for name in resumed.tensors)
    assert all(torch.equal(tensor, resumed.tensors[name]) for name, tensor in unbroken.tensors.items())


def test_what_is_kept_is_the_mean_of_the_weights_with_statistics_of_its_own(
    spec: RunSpec, dataset: Dataset, tmp_path: Path
) -> None:
    steps = math.ceil(len(loop.hold_out_validation(dataset, spec)[0]) / spec.recipe.batch_size)
    only_last = 1 - 1 / (2 * steps)
    recipe = dataclasses.replace(spec.recipe, average_from=only_last, epochs=2, small_side=0)
    one = train(dataclasses.replace(spec, recipe=recipe), dataset, tmp_path / "one").tensors
    weights = [name for name in one if name.startswith("model.network") and name.endswith(("weight", "bias"))]
    assert all(torch.equal(one[name], one[name.replace("model.", "best.", 1)]) for name in weights)
    statistics = [name for name in one if name.startswith("model.network") and name.endswith("running_mean")]
    assert not any(torch.equal(one[name], one[name.replace("model.", "best.", 1)]) for name in statistics)

    recipe = dataclasses.replace(recipe, average_from=0.5)  # from the first step of the second epoch on
    seen: list[dict[str, torch.Tensor]] = []
    original = optimizers.Muon.step

    def step(self: optimizers.Muon, closure: None = None) -> None:
        original(self, closure)
        seen.append({str(index): p.detach().clone() for index, p in enumerate(optimizers.parameters_of(self))})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers.Muon, "step", step)
        several = train(dataclasses.replace(spec, recipe=recipe), dataset, tmp_path / "several").tensors
    assert several["average.n_averaged"].item() == steps
    assert len(seen) == 2 * steps
    last = [name for name in weights if name.endswith("weight") and several[name].ndim == 2]
    head = next(key for key, value in seen[0].items() if value.ndim == 2)
    mean = torch.stack([each[head] for each in seen[steps:]]).mean(0)
    assert torch.allclose(several[last[0].replace("model.", "best.", 1)], mean, atol=1e-5)


def test_the_seconds_of_an_epoch_count_the_averages_statistics(
    spec: RunSpec, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, update = 0.2, loop.update_bn

    def measure_slowly(batches: Any, network: torch.nn.Module) -> None:
        update(batches, network)
        time.sleep(slow)

    monkeypatch.setattr(loop, "update_bn", measure_slowly)
    recipe = dataclasses.replace(spec.recipe, average_from=0.5, epochs=2, small_side=0)
    history = train(dataclasses.replace(spec, recipe=recipe), dataset, tmp_path / "run").position.history
    images = len(loop.hold_out_validation(dataset, spec)[0])
    apart = [record.seconds - images / record.images_per_second for record in history]
    assert apart[0] == pytest.approx(0, abs=slow / 4)
    assert apart[1] >= slow


def test_every_path_sets_out_from_the_first_weights(spec: RunSpec, dataset: Dataset, tmp_path: Path) -> None:
    steps = math.ceil(len(loop.hold_out_validation(dataset, spec)[0]) / spec.recipe.batch_size)
    recipe = dataclasses.replace(spec.recipe, paths=3, average_from=0.5, small_side=0)
    before: list[torch.Tensor] = []
    rates: list[float] = []
    original = optimizers.Muon.step

    def step(self: optimizers.Muon, closure: None = None) -> None:
        before.append(next(p for p in optimizers.parameters_of(self) if p.ndim == 2).detach().clone())
        rates.append(self.param_groups[0]["lr"])
        original(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers.Muon, "step", step)
        saved = train(dataclasses.replace(spec, recipe=recipe), dataset, tmp_path / "run")
    assert len(before) == 3 * steps
    for path in (1, 2):
        assert torch.equal(before[path * steps], before[0])
        assert not torch.equal(before[path * steps - 1], before[0])
        assert rates[path * steps :][:steps] == rates[:steps]
    averaged = [index for index in range(steps) if index / steps >= 0.5]
    assert saved.tensors["average.n_averaged"].item() == 3 * len(averaged)
    history = saved.position.history
    assert [record.epoch for record in history] == [1, 2, 3]


@pytest.mark.parametrize(("epochs", "paths", "average_from"), [(3, 2, 0.5), (3, 0, 0.5), (4, 2, 1.0)])
def test_paths_that_cannot_be_are_refused(spec: RunSpec, epochs: int, paths: int, average_from: float) -> None:
    with pytest.raises(TrainingError, match="paths"):
        dataclasses.replace(spec.recipe, epochs=epochs, paths=paths, average_from=average_from)


@pytest.mark.parametrize("architecture", ["record", "record_gelu"])
def test_it_is_exported_like_the_others(spec: RunSpec, dataset: Dataset, tmp_path: Path, architecture: str) -> None:
    run = tmp_path / "run"
    spec = dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, architecture=architecture))
    train(spec, dataset, run)
    model = finished.finish(checkpoint.load(run), dataset, "int8")
    finished.save(run, model)
    exported = export.export(run, model, dataset)
    assert exported.parity[0].agreement == 1.0


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 0.2), (0.1, 0.6), (0.2, 1.0), (0.6, 0.5), (1.0, 0.0)])
def test_the_rate_rises_to_its_highest_and_falls_to_nothing(progress: float, factor: float) -> None:
    recipe = dataclasses.replace(RECIPES["record"], warm_up=0.2)
    assert optimizers.rate_share(recipe, progress) == pytest.approx(factor)
    assert optimizers.rate_share(dataclasses.replace(recipe, lowest_rate=0.25), progress) == (
        pytest.approx(factor if progress < 0.7 else 0.25)
    )
    assert optimizers.rate_share(dataclasses.replace(recipe, warm_up=-1), progress) == 1.0


def test_biases_and_head_have_their_own_rates_and_the_same_decay() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
    recipe: Recipe = dataclasses.replace(
        RECIPES["record"], learning_rate=0.5, bias_rate=4.0, head_rate=3.0, weight_decay=0.01
    )
    body, head, biases = optimizers.build(network, recipe).param_groups
    assert body["params"][0] is network[0].weight
    assert head["params"][0] is network[2].weight
    assert biases["params"][0] is network[0].bias
    assert [group["lr"] for group in (body, head, biases)] == [0.5, 1.5, 2.0]
    decays = [group["lr"] * group["weight_decay"] for group in (body, head, biases)]
    assert decays == pytest.approx([0.005] * 3)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_orthogonalising_brings_every_singular_value_near_to_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    before, after = torch.linalg.svd(matrix), torch.linalg.svd(optimizers.orthogonalise(matrix))
    strong = (before.S / before.S[0]) > 0.2
    assert after.S[strong[: len(after.S)]].min() > 0.4
    assert after.S.max() < 1.35
    left = before.U[:, :1].T @ optimizers.orthogonalise(matrix) @ before.Vh[:1].T
    assert left.item() > 0.6  # in the same direction, not just of the same size


def test_muon_steps_everything_but_filters_as_torchs_nesterov_sgd_does() -> None:
    recipe = dataclasses.replace(RECIPES["record"], learning_rate=0.1, bias_rate=2.0, head_rate=0.5, weight_decay=0.1)
    networks = [torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)]
    networks[1].load_state_dict(networks[0].state_dict())
    chosen = [
        optimizers.build(networks[0], recipe),
        optimizers.build(networks[1], dataclasses.replace(recipe, optimizer="sgd")),
    ]
    inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        for network, optimizer in zip(networks, chosen, strict=True):
            optimizer.zero_grad()
            network(inputs).square().mean().backward()
            optimizer.step()
    for ours, theirs in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_muon_keeps_the_norm_of_filters_and_goes_down() -> None:
    network = torch.nn.Conv2d(2, 4, 3, bias=False)
    optimizer = optimizers.build(network, RECIPES["record"])
    optimizers.set_rate(optimizer, RECIPES["record"], 0.5)
    images = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (network(images) - 1).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[1]
    assert 1.0 < network.weight.norm().item() < 3.0  # 2 before each step


def test_training_and_evaluation_take_pooling_and_norm_in_another_order_to_the_same_end() -> None:
    group = architectures.build("record", (32, 32, 3), 10)[2]  # type: ignore[index]
    images = torch.randn(16, 24, 15, 15, generator=torch.Generator().manual_seed(4))
    norms = [module for module in group.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    group.train()(images)
    for norm in norms:  # as in evaluation, whatever the mode
        norm.eval()
    trained = group(images)
    assert torch.allclose(trained, group.eval()(images), atol=1e-5)


def test_the_first_bias_stops_learning_when_the_recipe_says(spec: RunSpec, dataset: Dataset, tmp_path: Path) -> None:
    frozen = dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, frozen_from=0.0))
    assert not train(frozen, dataset, tmp_path / "frozen").tensors["model.network.0.bias"].any()
    assert train(spec, dataset, tmp_path / "free").tensors["model.network.0.bias"].any()


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
