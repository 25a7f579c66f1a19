"""The optimizers of the recipes, and their rate over a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from training.recipes import Recipe

NEWTON_SCHULZ_STEPS = 3
# Of the quintic that K. Jordan chose for a steep slope at 0: singular values end between 0.7 and 1.2, near enough to 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def build(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam, Nesterov SGD or Muon over the parameters that learn, in groups: weights, head, biases.

    The head is the last matrix; its and the biases' rates are multiples of the recipe's.
    """
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    biases = [parameter for name, parameter in learning if name.endswith("bias")]
    weights = [parameter for name, parameter in learning if not name.endswith("bias")]
    head = [parameter for parameter in weights if parameter.ndim == 2][-1:]
    body = [parameter for parameter in weights if not any(parameter is last for last in head)]
    multiples = ((body, 1.0), (head, recipe.head_rate), (biases, recipe.bias_rate))
    rate = recipe.learning_rate
    groups = [
        # Decay is multiplied by the rate: divided here, so that all decay equally fast.
        {"params": parameters, "lr": rate * multiple, "weight_decay": recipe.weight_decay / multiple}
        for parameters, multiple in multiples
        if parameters
    ]
    groups = [{**group, "highest": group["lr"]} for group in groups]
    if recipe.optimizer == "muon":
        return Muon(groups, recipe.momentum, recipe.filter_momentum)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=True)
    return torch.optim.Adam(groups, lr=rate)


class Muon(torch.optim.Optimizer):
    """Filters of convolutions step by the orthogonalised momentum and keep their norm; the rest is Nesterov SGD.

    K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), with the normalisation of his
    CIFAR-10 recipe: each layer's filters are scaled to a mean norm of 1 before every step, which takes the place of
    weight decay. torch.optim.Muon takes matrices only, and does not normalise.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, filter_momentum: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.momentum = momentum
        self.filter_momentum = filter_momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.ndim == 4:
                    gradient = self._nesterov(parameter, parameter.grad, self.filter_momentum)
                    parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                    parameter.sub_(orthogonalise(gradient.flatten(1)).view_as(parameter), alpha=group["lr"])
                else:
                    gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
                    parameter.sub_(self._nesterov(parameter, gradient, self.momentum), alpha=group["lr"])

    def _nesterov(self, parameter: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        """The gradient, with that of the steps before added as momentum."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        buffer.mul_(momentum).add_(gradient)
        return gradient.add(buffer, alpha=momentum)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Nearly U V^T of `matrix` = U S V^T, float32 [m, n], by Newton-Schulz iterations, which need products only."""
    a, b, c = _QUINTIC
    wide = matrix.T if len(matrix) > matrix.shape[1] else matrix
    result: Tensor = wide / (wide.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = result @ result.T
        result = a * result + (b * square + c * square @ square) @ result
    return result.T if wide is not matrix else result


def set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, progress: float) -> None:
    """Set the rate for a step at `progress` (0 at the first, 1 after the last) of a path."""
    for group in optimizer.param_groups:
        group["lr"] = group["highest"] * rate_share(recipe, progress)


def rate_share(recipe: Recipe, progress: float) -> float:
    """A triangle: from 0.2 to 1 at `warm_up`, then towards 0 at the end, not below `lowest_rate`; constant 1 when
    `warm_up` is negative."""
    if recipe.warm_up < 0:
        return 1.0
    if progress < recipe.warm_up:
        return 0.2 + 0.8 * progress / recipe.warm_up
    return max(recipe.lowest_rate, (1.0 - progress) / (1 - recipe.warm_up))


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters in the order of the optimizer's own numbering."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
