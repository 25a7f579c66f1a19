"""The training loop: the cross entropy of augmented whole batches, with a checkpoint after every epoch.

All randomness of a step comes from (seed, epoch, step), so that a run resumed anywhere ends, on a CPU with the same
number of threads, with the very weights of an unbroken one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, update_bn

from service.terminal import Console
from training import checkpoint, optimizers
from training.augment import crop_and_flip, cut_out, reduce
from training.checkpoint import EpochRecord, Position, Tensors
from training.datasets import Dataset, LabelledImages
from training.errors import Interrupted, TrainingError
from training.hardware import Compute
from training.model import Classifier, freeze_first_bias
from training.progress import TrainingDisplay
from training.recipes import Recipe
from training.run import RunSpec
from training.seeds import derive
from training.splits import stratified_holdout
from training.state import State, restore, save, start

SHOW_EVERY = 10  # steps: reading the loss waits for the device
EVALUATION_BATCH = 500
STATISTICS_IMAGES = 10_000

# The number of the signal that asks training to stop, or 0.
StopSignal = Callable[[], int]


@dataclass(frozen=True)
class DeviceImages:
    """`images` uint8 [n, h, w, c] and `labels` int64 [n], where training runs.

    `reduced` are the same images smaller, if the recipe begins on those.
    """

    images: Tensor
    labels: Tensor
    reduced: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


def hold_out_validation(dataset: Dataset, spec: RunSpec) -> tuple[LabelledImages, LabelledImages]:
    """The training split without, and only, its validation images: stratified, by the recipe's seed."""
    seed = derive(spec.recipe.seed, "validation")
    try:
        kept, held_out = stratified_holdout(dataset.train.labels, spec.recipe.validation_fraction, seed)
    except ValueError as error:
        raise TrainingError(f"{dataset.name}: cannot hold out validation images: {error}") from None
    return dataset.train.select(kept), dataset.train.select(held_out)


def train(
    spec: RunSpec,
    dataset: Dataset,
    run: Path,
    *,
    resume: bool,
    stop_signal: StopSignal,
    console: Console,
    weights: Tensors | None = None,
) -> Position:
    """Train to the recipe's last epoch, leaving the checkpoint in `run`; begin with `weights`, if given.

    Raises Interrupted, with the checkpoint saved, when `stop_signal` gives a signal; CheckpointError when the
    checkpoint to resume is damaged or of another run; TrainingError when the loss is no longer finite.
    """
    train_images, validation_images = hold_out_validation(dataset, spec)
    state = start(spec, train_images, weights)
    if resume:
        restore(state, spec, checkpoint.load(run))
    training = _to_device(train_images, spec.compute)
    if spec.recipe.small_side:
        training = replace(training, reduced=reduce(training.images, spec.recipe.small_side))
    validation = _to_device(validation_images, spec.compute)
    steps = math.ceil(len(training) / spec.recipe.batch_size)
    done = state.position.epoch * steps + state.position.step
    with TrainingDisplay(console, spec.recipe.epochs, steps, done) as display:
        while state.position.epoch < spec.recipe.epochs:
            _train_epoch(state, spec, training, run, stop_signal, display)
            record = _finish_epoch(state, spec, training, validation)
            display.show_epoch(record)
            save(run, spec, state)
    return state.position


def _to_device(split: LabelledImages, compute: Compute) -> DeviceImages:
    device = torch.device(compute.device)
    return DeviceImages(torch.from_numpy(split.images).to(device), torch.from_numpy(split.labels).to(device))


def _train_epoch(
    state: State, spec: RunSpec, data: DeviceImages, run: Path, stop_signal: StopSignal, display: TrainingDisplay
) -> None:
    """From the state's position to the end of its epoch."""
    epoch, first_step = state.position.epoch, state.position.step
    batches = _batches(spec, epoch, data)
    if epoch and first_step == 0 and epoch % spec.recipe.path_epochs == 0:
        state.set_out_again(spec.recipe)
    state.model.train()
    started, before = time.perf_counter(), state.position.seconds
    for step in range(first_step, len(batches)):
        _train_step(state, spec, data, batches[step], epoch, step, len(batches))
        seconds = time.perf_counter() - started
        state.position = replace(state.position, step=step + 1, seconds=before + seconds)
        if number := stop_signal():
            save(run, spec, state)
            place = f"epoch {epoch + 1}, step {step + 1} of {len(batches)}"
            raise Interrupted(f"stopped at {place}; go on with: cifarserve train --run {run} --resume", number)
        if (step + 1) % SHOW_EVERY == 0:
            seen = sum(len(batch) for batch in batches[: step + 1])
            here = sum(len(batch) for batch in batches[first_step : step + 1])
            loss, accuracy = (state.totals / seen).tolist()
            _require_finite(loss, epoch, step)
            display.show_step(epoch, step + 1, loss, accuracy, here / seconds)


def _batches(spec: RunSpec, epoch: int, data: DeviceImages) -> tuple[Tensor, ...]:
    """The indices of each batch of an epoch: a fresh order every time, the last batch as small as it falls out."""
    generator = torch.Generator().manual_seed(derive(spec.recipe.seed, "order", epoch))
    order = torch.randperm(len(data), generator=generator).to(data.labels.device)
    return torch.split(order, spec.recipe.batch_size)


def _train_step(
    state: State, spec: RunSpec, data: DeviceImages, batch: Tensor, epoch: int, step: int, steps: int
) -> None:
    recipe = spec.recipe
    generator = torch.Generator(spec.compute.device).manual_seed(derive(recipe.seed, "augment", epoch, step))
    torch.manual_seed(derive(recipe.seed, "dropout", epoch, step))  # dropout draws from torch's own generator
    path_steps = recipe.path_epochs * steps
    done = (epoch * steps + step) % path_steps / path_steps
    images = _augmented(recipe, data, batch, epoch, done, generator)
    labels = data.labels[batch]
    freeze_first_bias(state.model, frozen=done >= recipe.frozen_from)
    with spec.compute.autocast():
        logits = state.model(images)
        loss = cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    optimizers.set_rate(state.optimizer, recipe, done)
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    if done >= recipe.average_from:
        state.average = state.average or AveragedModel(state.model)
        state.average.update_parameters(state.model)
    with torch.no_grad():
        hits = (logits.argmax(1) == labels).sum()
        state.totals += torch.stack([loss.double() * len(batch), hits.double()])


def _augmented(
    recipe: Recipe, data: DeviceImages, batch: Tensor, epoch: int, done: float, generator: torch.Generator
) -> Tensor:
    """The images of a batch as the recipe shows them when the share `done` of a path is over."""
    source = data.reduced if data.reduced is not None and done < recipe.small_until else data.images
    mirrored = _mirrored(recipe, data, batch, epoch) if recipe.alternate_flip else None
    scale = source.shape[1] / recipe.image_shape[0]
    padding = round(recipe.crop_padding * scale)
    images = crop_and_flip(source[batch], padding, recipe.flip, generator, reflect=recipe.reflect, mirrored=mirrored)
    return cut_out(images, round(recipe.cutout * scale), generator) if recipe.cutout else images


def _mirrored(recipe: Recipe, data: DeviceImages, batch: Tensor, epoch: int) -> Tensor:
    """bool [n]: half of the images, drawn once for the run, in the even epochs, and the other half in the odd ones."""
    generator = torch.Generator().manual_seed(derive(recipe.seed, "flip"))
    first = torch.rand(len(data), generator=generator).to(batch.device) < 0.5
    return first[batch] ^ bool(epoch % 2)


def _finish_epoch(state: State, spec: RunSpec, training: DeviceImages, validation: DeviceImages) -> EpochRecord:
    """Validate, keep the weights if Position.best says so, and move to the start of the next epoch."""
    model, position = state.model, state.position
    seconds = position.seconds
    if state.average:
        started = time.perf_counter()
        model = _averaged(state.average, spec, training, position.epoch)
        seconds += time.perf_counter() - started  # without its statistics, an average is no model yet
    loss, accuracy = (state.totals / len(training)).tolist()
    _require_finite(loss, position.epoch, position.step - 1)  # the position is that of the step to come
    validation_loss, validation_accuracy = _validate(model, spec.compute, validation)
    record = EpochRecord(
        epoch=position.epoch + 1,
        loss=loss,
        accuracy=accuracy,
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        seconds=seconds,
        images_per_second=len(training) / position.seconds,
    )
    state.position = Position(position.epoch + 1, 0, 0.0, (*position.history, record))
    if state.position.best(spec.recipe) is record:
        state.keep(model)
    state.totals.zero_()
    return record


def _averaged(average: AveragedModel, spec: RunSpec, data: DeviceImages, epoch: int) -> Classifier:
    """The averaged weights, with the statistics of batch normalisation that go with them: measured anew, on images as
    they were trained with, since those of the weights averaged over are not the average's."""
    generator = torch.Generator(spec.compute.device).manual_seed(derive(spec.recipe.seed, "statistics", epoch))
    count = math.ceil(STATISTICS_IMAGES / spec.recipe.batch_size)
    batches = (
        _augmented(spec.recipe, data, batch, epoch, 1.0, generator) for batch in _batches(spec, epoch, data)[:count]
    )
    with spec.compute.autocast():
        update_bn(batches, average.module)
    assert isinstance(average.module, Classifier)
    return average.module


def _validate(model: Classifier, compute: Compute, data: DeviceImages) -> tuple[float, float]:
    """Mean loss and accuracy, in the arithmetic of training."""
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=data.labels.device)
    with torch.inference_mode(), compute.autocast():
        for images, labels in zip(
            torch.split(data.images, EVALUATION_BATCH), torch.split(data.labels, EVALUATION_BATCH), strict=True
        ):
            logits = model(images)
            loss = cross_entropy(logits, labels, reduction="sum")
            totals += torch.stack([loss.double(), (logits.argmax(1) == labels).sum().double()])
    loss_mean, accuracy = (totals / len(data)).tolist()
    return loss_mean, accuracy


def _require_finite(loss: float, epoch: int, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}: try a lower --learning-rate")
