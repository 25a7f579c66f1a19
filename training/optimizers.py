"""The optimizer of a recipe, its rate over the run, and weight averaging."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.recipes import Recipe

LOOKAHEAD_EVERY = 5  # steps


def build(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam or Nesterov SGD over the parameters that learn; biases in a group of their own, with their own rate."""
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights = [parameter for name, parameter in learning if not name.endswith("bias")]
    biases = [parameter for name, parameter in learning if name.endswith("bias")]
    rate = recipe.learning_rate
    groups = [
        {"params": weights, "lr": rate, "weight_decay": recipe.weight_decay},
        # Decay is multiplied by the rate: divided here, so that biases decay as fast as weights.
        {"params": biases, "lr": rate * recipe.bias_rate, "weight_decay": recipe.weight_decay / recipe.bias_rate},
    ]
    groups = [{**group, "highest": group["lr"]} for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=True)
    return torch.optim.Adam(groups, lr=rate)


def set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, progress: float) -> None:
    """Set the rate for a step at `progress` (0 at the first, 1 after the last) of the run."""
    factor = rate_factor(recipe.warm_up, progress)
    for group in optimizer.param_groups:
        group["lr"] = group["highest"] * factor


def rate_factor(warm_up: float, progress: float) -> float:
    """A triangle: from 0.2 to 1 at `warm_up`, then to 0.07 at the end; constant 1 when `warm_up` is negative.

    The ends are those of airbench94.
    """
    if warm_up < 0:
        return 1.0
    if progress < warm_up:
        return 0.2 + 0.8 * progress / warm_up
    return 1.0 + (0.07 - 1.0) * (progress - warm_up) / (1 - warm_up)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters in the order of the optimizer's own numbering."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@torch.no_grad()
def look_ahead(model: nn.Module, slow: dict[str, Tensor], keep: float) -> None:
    """Move the averaged weights `slow` towards the model's, keeping `keep` of them, and set the model to the result.

    From M. R. Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back" (2019).
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            slow[name].lerp_(tensor, 1 - keep)
            tensor.copy_(slow[name])
