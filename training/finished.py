"""A finished model: rounded, calibrated and evaluated. What `evaluate` leaves in the run folder and `export` reads.

`model.safetensors` holds the classifier, `model.json` everything that is known about it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from service.documents import parse_json
from training import architectures
from training.calibrate import fit_temperature, softmax
from training.checkpoint import Checkpoint, part
from training.datasets import Dataset
from training.errors import CheckpointError
from training.evaluate import baseline, evaluate
from training.files import write_atomically, write_json
from training.loop import hold_out_validation
from training.model import Classifier, predict_logits
from training.run import RunSpec
from training.views import six_view_logits
from training.weights import round_weights

TENSORS_FILE = "model.safetensors"
RECORD_FILE = "model.json"


@dataclass(frozen=True)
class FinishedModel:
    """`classifier` on the CPU in fp32 and evaluation mode; the other records are those of the manifest."""

    spec: RunSpec
    classifier: Classifier
    recipe: dict[str, Any]
    dataset: dict[str, Any]
    evaluation: dict[str, Any]
    baseline: dict[str, Any]


def finish(checkpoint: Checkpoint, dataset: Dataset, weights: str, *, six_views: bool = False) -> FinishedModel:
    """Round the weights that the run kept to the format `weights`, calibrate on validation, evaluate on test.

    Raises CheckpointError when no epoch is complete yet, or `dataset` is not the one of the run.
    """
    spec, best = checkpoint.spec, checkpoint.position.best(checkpoint.spec.recipe)
    if best is None:
        raise CheckpointError("no epoch of this run is complete yet, so there is no model to evaluate")
    if dataset.fingerprint() != spec.fingerprint:
        raise CheckpointError(f"{dataset.source} is not the data that this run was trained on ({spec.dataset})")
    kept, validation = hold_out_validation(dataset, spec)
    classifier = _build(spec)
    classifier.load_state_dict(part(checkpoint.tensors, "best."))
    exact = predict_logits(classifier, dataset.test.images)
    round_weights(classifier.network, weights)
    temperature = fit_temperature(predict_logits(classifier, validation.images), validation.labels)
    uncalibrated = softmax(predict_logits(classifier, dataset.test.images))
    classifier.temperature.fill_(temperature)
    probabilities = softmax(predict_logits(classifier, dataset.test.images))
    labels = dataset.test.labels
    return FinishedModel(
        spec=spec,
        classifier=classifier,
        recipe={
            **spec.to_record()["recipe"],
            "compute": dataclasses.asdict(spec.compute),
            "best_epoch": best.epoch,
            "temperature": temperature,
            "weights": weights,
            **({"start": dataclasses.asdict(spec.start)} if spec.start else {}),
            "history": [dataclasses.asdict(record) for record in checkpoint.position.history],
        },
        dataset={
            "name": dataset.name,
            "read_from": Path(dataset.source).name,
            "splits": {"train": len(kept), "validation": len(validation), "test": len(labels)},
            "skipped": [{"path": str(each.path), "reason": each.reason} for each in dataset.skipped],
            "fingerprint": spec.fingerprint,
            "test_fingerprint": dataset.test.fingerprint(),
        },
        evaluation={
            **dataclasses.asdict(evaluate(probabilities, labels, dataset.classes)),
            "split": "test",
            "accuracy_before_rounding": float((exact.argmax(1) == labels).mean()),
            "ece_before_calibration": evaluate(uncalibrated, labels, dataset.classes).ece,
            **(_in_six_views(classifier, dataset) if six_views else {}),
        },
        baseline=dataclasses.asdict(baseline(probabilities, dataset.classes)),
    )


def _in_six_views(classifier: Classifier, dataset: Dataset) -> dict[str, float]:
    predicted = six_view_logits(classifier, dataset.test.images).argmax(1)
    return {"accuracy_in_six_views": float((predicted == dataset.test.labels).mean())}


def save(run: Path, model: FinishedModel) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in model.classifier.state_dict().items()}
    data = safetensors.torch.save(tensors)
    write_atomically(run / TENSORS_FILE, data)
    record = {
        "run": model.spec.to_record(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "recipe": model.recipe,
        "dataset": model.dataset,
        "evaluation": model.evaluation,
        "baseline": model.baseline,
    }
    write_json(run / RECORD_FILE, record)


def load(run: Path) -> FinishedModel:
    """What `save` left. Raises CheckpointError: not there yet, or damaged."""
    try:
        record = parse_json((run / RECORD_FILE).read_bytes())
        data = (run / TENSORS_FILE).read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{run}: not evaluated yet; first: cifarserve evaluate --run {run}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run / RECORD_FILE}: damaged: {error}") from None
    try:
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise CheckpointError(f"{run / TENSORS_FILE}: damaged: its SHA-256 is not the one in {RECORD_FILE}")
        spec = RunSpec.from_record(record["run"])
        classifier = _build(spec)
        classifier.load_state_dict(safetensors.torch.load(data))
        parts = {key: record[key] for key in ("recipe", "dataset", "evaluation", "baseline")}
    except (KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{run / RECORD_FILE}: damaged: {error!r}") from None
    return FinishedModel(spec, classifier, **parts)


def _build(spec: RunSpec) -> Classifier:
    """The run's classifier with weights still to be loaded, as it is evaluated: fp32, contiguous, no dropout."""
    recipe = spec.recipe
    network = architectures.build(recipe.architecture, recipe.image_shape, len(spec.classes))
    channels = recipe.image_shape[2]
    return Classifier(network, torch.zeros(channels), torch.ones(channels), torch.contiguous_format).eval()
