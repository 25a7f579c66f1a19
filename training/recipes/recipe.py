"""The fields of a recipe. Each becomes a flag of `cifarserve train`, with its metadata as the help text."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from training.errors import TrainingError


def _setting(help_text: str, default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one run; the defaults are the plain ones."""

    name: str
    architecture: str = _setting("network to train, a name from training/architectures")
    image_shape: tuple[int, int, int] = _setting("height x width x channels of the model's input, as 32x32x3")
    epochs: int = _setting("passes over the training images")
    batch_size: int = _setting("images in a step")
    learning_rate: float = _setting("step size at its highest")
    crop_padding: int = _setting("black pixels added on each side before a random crop back to size; 0 for no crop")
    flip: bool = _setting("mirror half of the images at random")
    validation_fraction: float = _setting("share of the training images held out to pick the epoch and calibrate")
    seed: int = _setting("source of all randomness: the same seed gives the same run", 0)
    optimizer: str = _setting("adam, sgd with Nesterov momentum, or muon (which is sgd but for filters)", "adam")
    momentum: float = _setting("of sgd", 0.0)
    filter_momentum: float = _setting("of muon's filters", 0.0)
    weight_decay: float = _setting("pull of the weights towards 0, times the learning rate", 0.0)
    bias_rate: float = _setting("learning rate of the biases, as a multiple; they decay as fast as the rest", 1.0)
    head_rate: float = _setting("learning rate of the last layer, likewise", 1.0)
    warm_up: float = _setting("share of a path in which the rate rises; then it falls to 0. Negative: constant", -1.0)
    lowest_rate: float = _setting("where the rate stops falling, as a share of its highest", 0.0)
    paths: int = _setting("how often the run sets out from its first weights; the epochs are shared equally", 1)
    average_from: float = _setting("share of a path after which the weights of all steps are averaged; 1: never", 1.0)
    label_smoothing: float = _setting("share of the target spread over all classes", 0.0)
    reflect: bool = _setting("pad with the image's own border instead of black", False)
    alternate_flip: bool = _setting("mirror each image in every second epoch instead of at random", False)
    cutout: int = _setting("side of a square blanked at random in each image, in pixels; 0: none", 0)
    small_side: int = _setting("side that images are reduced to in the first part of a path; 0: never", 0)
    small_until: float = _setting("share of a path on reduced images", 0.0)
    frozen_from: float = _setting("share of a path after which the first layer's bias stops learning", 1.0)

    @property
    def path_epochs(self) -> int:
        """Epochs of one path."""
        return self.epochs // self.paths

    def __post_init__(self) -> None:
        """Raises TrainingError naming the first field whose value cannot be used."""
        height, width, channels = self.image_shape
        checks = (
            (height >= 8 and width >= 8 and channels in (1, 3), "image_shape", "at least 8x8, with 1 or 3 channels"),
            (self.epochs >= 1, "epochs", "at least 1"),
            (self.batch_size >= 2, "batch_size", "at least 2, for batch normalisation"),
            (self.learning_rate > 0, "learning_rate", "above 0"),
            (0 <= self.crop_padding < min(height, width), "crop_padding", "from 0 to less than the image's side"),
            (0 < self.validation_fraction < 1, "validation_fraction", "between 0 and 1"),
            (0 <= self.seed < 2**63, "seed", "from 0 to 2^63 - 1"),
            (self.optimizer in ("adam", "sgd", "muon"), "optimizer", "adam, sgd or muon"),
            (0 <= self.momentum < 1, "momentum", "from 0 to less than 1"),
            (self.optimizer == "adam" or self.momentum > 0, "momentum", "above 0 with sgd and muon"),
            (0 <= self.filter_momentum < 1, "filter_momentum", "from 0 to less than 1"),
            (self.weight_decay >= 0, "weight_decay", "at least 0"),
            (self.bias_rate > 0, "bias_rate", "above 0"),
            (self.head_rate > 0, "head_rate", "above 0"),
            (self.warm_up < 1, "warm_up", "below 1"),
            (0 <= self.lowest_rate <= 1, "lowest_rate", "from 0 to 1"),
            (self.paths >= 1 and self.epochs % self.paths == 0, "paths", f"at least 1 and divide {self.epochs} epochs"),
            (self.paths == 1 or self.average_from < 1, "paths", "1 where nothing is averaged"),
            (0 < self.average_from <= 1, "average_from", "above 0, to 1"),
            (0 <= self.label_smoothing < 1, "label_smoothing", "from 0 to less than 1"),
            (0 <= self.cutout < min(height, width), "cutout", "from 0 to less than the image's side"),
            (self.small_side == 0 or 16 <= self.small_side <= min(height, width), "small_side", "0, or 16 to the side"),
            (0 <= self.small_until <= 1, "small_until", "from 0 to 1"),
            (0 <= self.frozen_from <= 1, "frozen_from", "from 0 to 1"),
        )
        for holds, field, wanted in checks:
            if not holds:
                raise TrainingError(f"recipe: {field} must be {wanted}, is {getattr(self, field)}")
        for field, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise TrainingError(f"recipe: {field} must be a finite number, is {value}")


def to_record(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it stands in checkpoints and manifests: JSON types only."""
    return {**dataclasses.asdict(recipe), "image_shape": list(recipe.image_shape)}


def from_record(record: dict[str, Any]) -> Recipe:
    """The inverse of `to_record`. Raises TypeError or KeyError when fields are missing or unknown."""
    return Recipe(**{**record, "image_shape": tuple(record["image_shape"])})
