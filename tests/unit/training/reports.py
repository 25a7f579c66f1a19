"""Reports of models that have learnt nothing, and so make mistakes."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from tests.unit.training import pictures
from training import report
from training.calibrate import softmax
from training.datasets import LabelledImages
from training.evaluate import evaluate
from training.finished import FinishedModel
from training.model import Classifier, predict_logits
from training.predictions import Predictions


def render(model: FinishedModel, test: LabelledImages, **changes: Any) -> str:
    """The page; `changes` are what the export found."""
    found = Predictions.of(softmax(predict_logits(model.classifier, test.images)), test.labels)
    exported = {"files": {}, "parity": [], "compute_precisions": ["fp32"]} | changes
    return report.render(model, test, found, exported)


def untrained(
    model: FinishedModel, test: LabelledImages, network: nn.Module, labels: tuple[str, ...] = pictures.CLASSES
) -> FinishedModel:
    """`model` with a fresh `network` in the place of its own, evaluated on `test`."""
    channels = test.images.shape[3]
    classifier = Classifier(network, torch.zeros(channels), torch.ones(channels), torch.contiguous_format).eval()
    evaluation = dataclasses.asdict(evaluate(softmax(predict_logits(classifier, test.images)), test.labels, labels))
    spec = dataclasses.replace(model.spec, classes=labels)
    return dataclasses.replace(model, classifier=classifier, spec=spec, evaluation=evaluation)
