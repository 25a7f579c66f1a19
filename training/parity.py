"""Whether an exported model gives PyTorch's answers, by provider and precision: measured on real images, and gated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from service import cpu
from service.engine import Engine, EngineError
from training.calibrate import softmax
from training.datasets import LabelledImages
from training.errors import ParityError
from training.evaluate import confusion_matrix
from training.inference import BATCH, Probabilities, timed_predictions
from training.model import Classifier, predict_logits

# The same arithmetic in another order: 1e-6 is usual for probabilities, 1e-4 already means something else is computed.
FP32_LARGEST_DIFFERENCE = 1e-4
FP32_LEAST_AGREEMENT = 0.999
# A lower precision may cost this much against PyTorch's fp32, and no more.
LOWER_LEAST_AGREEMENT = 0.99
LOWER_ACCURACY_DROP = 0.003
LOWER_CLASS_DROP = 0.015


@dataclass(frozen=True)
class Parity:
    """Of one provider and precision against PyTorch in fp32, over `n` images.

    `agreement` is the share with the same top class, `max_abs_difference` the largest of any probability,
    `accuracy_drop` and `class_drop` what accuracy, and the recall of the worst hit class, lose (negative: gain).
    """

    provider: str
    precision: str
    n: int
    agreement: float
    max_abs_difference: float
    accuracy: float
    accuracy_drop: float
    class_drop: float
    images_per_second: float | None = None  # of the engine, in batches of BATCH; None: not of a provider


def measure(model: Path, provider: str, precision: str, test: LabelledImages, expected: Probabilities) -> Parity:
    """Run `test` through the server's own engine and compare with PyTorch's `expected` [n, classes].

    Raises EngineError when the provider is not here or does not run the model.
    """
    engine = Engine(model, provider=provider, precision=precision, threads=cpu.usable_cores(), max_batch_size=BATCH)
    found, seconds = timed_predictions(engine, test)
    parity = compare(provider, precision, found, expected, test.labels)
    return dataclasses.replace(parity, images_per_second=BATCH / seconds)


def compare(
    provider: str, precision: str, found: Probabilities, expected: Probabilities, labels: npt.NDArray[np.int64]
) -> Parity:
    classes = expected.shape[1]
    before, after = (confusion_matrix(each.argmax(1), labels, classes) for each in (expected, found))
    support = np.maximum(before.sum(1), 1)
    return Parity(
        provider=provider,
        precision=precision,
        n=len(labels),
        agreement=float((found.argmax(1) == expected.argmax(1)).mean()),
        max_abs_difference=float(np.abs(found - expected).max()),
        accuracy=float(np.trace(after) / len(labels)),
        accuracy_drop=float((np.trace(before) - np.trace(after)) / len(labels)),
        class_drop=float(((np.diag(before) - np.diag(after)) / support).max()),
    )


def require_equal(parity: Parity) -> None:
    """The fp32 gate. Raises ParityError with the numbers when these are not PyTorch's answers (NaN never is)."""
    if not (parity.max_abs_difference <= FP32_LARGEST_DIFFERENCE and parity.agreement >= FP32_LEAST_AGREEMENT):
        raise ParityError(
            f"the exported model differs from PyTorch on {parity.provider}: largest difference of a probability "
            f"{parity.max_abs_difference:.2g} (at most {FP32_LARGEST_DIFFERENCE:.0e}), same top class for "
            f"{parity.agreement:.2%} of {parity.n} images (at least {FP32_LEAST_AGREEMENT:.1%})"
        )


def close_enough(parity: Parity) -> bool:
    """The gate of a lower precision: agreement at least 99%, accuracy down at most 0.3 points, 1.5 in any class."""
    return (
        parity.agreement >= LOWER_LEAST_AGREEMENT
        and parity.accuracy_drop <= LOWER_ACCURACY_DROP
        and parity.class_drop <= LOWER_CLASS_DROP
    )


def measure_bf16(model: Path, classifier: Classifier, test: LabelledImages, expected: Probabilities) -> Parity:
    """bf16 on OpenVINO, which takes the fp32 graph to it; where OpenVINO does not run, by PyTorch's autocast.

    That rounds the inputs of every convolution and product to bf16 too and sums in fp32. The server replays the
    golden inputs on its own provider in any case.
    """
    try:
        return measure(model, "openvino", "bf16", test, expected)
    except EngineError:
        with torch.autocast("cpu", torch.bfloat16):
            logits = predict_logits(classifier, test.images)
        return compare("pytorch", "bf16", softmax(logits), expected, test.labels)
