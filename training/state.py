"""What changes while training: its beginning, and its way into a checkpoint and out of it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from training import architectures, checkpoint, optimizers
from training.checkpoint import Checkpoint, Position, Tensors, part
from training.datasets import LabelledImages
from training.model import Classifier, channel_statistics, freeze_first_bias
from training.recipes import Recipe
from training.run import RunSpec, require_same_run
from training.seeds import derive

PREPARATION_IMAGES = 5000


@dataclass
class State:
    """All that changes while training.

    `totals` is float64 [2]: summed loss and hits of the current epoch. `average` is there once the recipe's averaging
    has begun: what is validated and kept then. `first` are the weights that a run of several paths goes back to.
    """

    model: Classifier
    optimizer: torch.optim.Optimizer
    totals: Tensor
    best: Tensors
    position: Position
    average: AveragedModel | None = None
    first: Tensors = field(default_factory=dict)

    def keep(self, model: Classifier) -> None:
        """Copies of the weights of `model` are now the best."""
        self.best = _copies(model)

    def set_out_again(self, recipe: Recipe) -> None:
        """Back to the first weights, with a fresh optimizer; the average goes on."""
        self.model.load_state_dict(self.first)
        freeze_first_bias(self.model, frozen=False)  # the optimizer takes what learns
        self.optimizer = optimizers.build(self.model, recipe)


def start(spec: RunSpec, train_images: LabelledImages, weights: Tensors | None) -> State:
    """The state before the first step: random weights, or those in `weights`."""
    torch.manual_seed(derive(spec.recipe.seed, "weights"))
    network = architectures.build(spec.recipe.architecture, spec.recipe.image_shape, len(spec.classes))
    model = Classifier(network, *channel_statistics(train_images.images), spec.compute.memory_format)
    sample = torch.from_numpy(train_images.images[:PREPARATION_IMAGES])
    architectures.prepare(spec.recipe.architecture, network, model.normalise(sample))
    if weights:
        model.load_state_dict(weights)
    model = model.to(spec.compute.device)
    totals = torch.zeros(2, dtype=torch.float64, device=spec.compute.device)
    first = _copies(model) if spec.recipe.paths > 1 else {}
    return State(model, optimizers.build(model, spec.recipe), totals, {}, Position(), first=first)


def _copies(model: Classifier) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save(run: Path, spec: RunSpec, state: State) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    tensors |= {f"first.{name}": tensor for name, tensor in state.first.items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in slots.items()}
    if state.average:
        tensors |= {f"average.{name}": tensor for name, tensor in state.average.state_dict().items()}
    checkpoint.save(run, Checkpoint(spec, state.position, {**tensors, "totals": state.totals}))


def restore(state: State, spec: RunSpec, saved: Checkpoint) -> None:
    """Put a checkpoint's tensors into a fresh state. Raises CheckpointError when it is of another run."""
    require_same_run(saved.spec, spec)
    state.position = saved.position
    state.model.load_state_dict(part(saved.tensors, "model."))
    state.best = part(saved.tensors, "best.")
    state.first = part(saved.tensors, "first.")
    if average := part(saved.tensors, "average."):
        state.average = AveragedModel(state.model)
        state.average.load_state_dict(average)
    state.totals.copy_(saved.tensors["totals"])
    optimizer_state = state.optimizer.state_dict()
    for index, parameter in enumerate(optimizers.parameters_of(state.optimizer)):
        slots = part(saved.tensors, f"optimizer.{index}.")
        # In the memory layout of the parameter, as the optimizer made them: mixed layouts would slow every step down.
        optimizer_state["state"][index] = {
            name: torch.empty_like(parameter).copy_(tensor) if tensor.ndim else tensor for name, tensor in slots.items()
        }
    state.optimizer.load_state_dict(optimizer_state)
