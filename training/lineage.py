"""The lineage: which network is trained on which pictures, and the figures published for it. Imports no torch.

The figures come from the projects that this one follows. On CIFAR-10 they are for the original, lossless images.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One line of the lineage table.

    `recipe` is trained on `data`, CIFAR or MNIST pictures, as `image_shape` (height, width, channels). `reference`
    says what was published. `accuracy` is its figure as a fraction, measured on the split `measured_on`.
    """

    recipe: str
    data: str
    image_shape: tuple[int, int, int]
    reference: str
    accuracy: float
    measured_on: str = "test"

    @property
    def name(self) -> str:
        """Of the line, and of its run's folder."""
        return f"{self.recipe}-{self.data}"


CIFAR, MNIST = "cifar", "mnist"

LINEAGE = (
    Entry("numpy", MNIST, (28, 28, 1), "~90% after one epoch, 90 s per 1,000 images", 0.90),
    Entry("numpy", CIFAR, (32, 32, 1), "~30% after one epoch, 15 min per 1,000 images (grey)", 0.30),
    Entry("mnist", MNIST, (28, 28, 1), "above 99%", 0.99),
    Entry("simple", MNIST, (28, 28, 1), "98.52% (98.94% on train)", 0.9852),
    Entry("simple", CIFAR, (32, 32, 3), "63.36%; precision 0.6336, recall 0.6439, F1 0.6308", 0.6336),
    Entry("scratch", CIFAR, (32, 32, 3), "83.356% on train", 0.83356, measured_on="train"),
    # 94.0% is with six views of each image.
    Entry("record", CIFAR, (32, 32, 3), "93.2% in one view; 94.0% in six, in 2.6 s on one A100", 0.932),
    Entry("tutorial", CIFAR, (32, 32, 3), "86.05% at best, 84.95% after the last of 20 epochs", 0.8495),
)
