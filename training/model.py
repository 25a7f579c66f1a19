"""The whole classifier as one module: uint8 pixels in, calibrated logits out, with its statistics as buffers.

Training, evaluation and export all run this module, so preprocessing exists once and travels with the weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from service.images import Pixels

PREDICTION_BATCH = 250


class Classifier(nn.Module):
    """`network` behind normalisation by `mean` and `std` (float32 [channels], in pixel values 0 to 255).

    `temperature` (float32 scalar) divides the logits; it is 1 until `training.calibrate` has fitted it.
    """

    mean: Tensor
    std: Tensor
    temperature: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.network = network.to(memory_format=memory_format)
        self.memory_format = memory_format
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [n, height, width, channels] to float logits [n, classes], divided by the temperature."""
        logits: Tensor = self.network(self.normalise(image))
        return logits / self.temperature

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 [n, height, width, channels] to what the network takes: float32 [n, channels, height, width]."""
        normalised = (image.to(torch.float32) - self.mean) / self.std
        return normalised.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)


def predict_logits(classifier: Classifier, images: Pixels) -> npt.NDArray[np.float32]:
    """Logits float32 [n, classes] of uint8 [n, h, w, c], in fp32 on the CPU: the answers all exports are held to."""
    with torch.inference_mode():
        parts = [classifier(batch).float().numpy() for batch in torch.split(torch.from_numpy(images), PREDICTION_BATCH)]
    return np.concatenate(parts)


def channel_statistics(images: Pixels) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over uint8 [n, h, w, c]: float32 [channels], in pixel values.

    From the 256-bin histogram: exact, and without a float copy of the images. A constant channel gets 1, not 0.
    """
    values = np.arange(256, dtype=np.float64)
    means, deviations = [], []
    for channel in range(images.shape[3]):
        weights = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., channel].size
        mean = float(weights @ values)
        means.append(mean)
        deviations.append(float(np.sqrt(weights @ (values - mean) ** 2)) or 1.0)
    return torch.tensor(means), torch.tensor(deviations)


def freeze_first_bias(model: nn.Module, frozen: bool) -> None:
    """Whether the first layer's bias, if there is one, learns: if not, behind frozen weights nothing needs a gradient
    that far down."""
    biases = (parameter for name, parameter in model.named_parameters() if name.endswith("bias"))
    if (first := next(biases, None)) is not None:
        first.requires_grad_(not frozen)
