"""Multi-view evaluation: the mean answer to an image, its mirror image, and both shifted by a pixel.

For comparison with published figures that were measured so; what is served answers from one view. The views and
their weights are those of airbench94.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from service.images import Pixels
from training.model import Classifier, predict_logits

SIX = 6


def six_view_logits(classifier: Classifier, images: Pixels) -> npt.NDArray[np.float32]:
    """Weighted mean of the logits [n, classes] of six views of uint8 [n, h, w, c]."""
    total: npt.NDArray[np.float32] = np.sum(
        [weight * predict_logits(classifier, view) for weight, view in _views(images)], axis=0, dtype=np.float32
    )
    return total


def _views(images: Pixels) -> Iterator[tuple[float, Pixels]]:
    """A quarter each for the image and its mirror image, an eighth each for them one pixel up left and down right."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    shifted = (padded[:, offset : offset + height, offset : offset + width] for offset in (0, 2))
    for weight, plain in ((0.25, images), *((0.125, view) for view in shifted)):
        yield weight, np.ascontiguousarray(plain)
        yield weight, np.ascontiguousarray(plain[:, :, ::-1])
