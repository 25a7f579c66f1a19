"""`report.html`: what is known about a version, drawn. One file that asks for nothing outside itself, and runs no code.

Beside it goes `predictions.npz`. What makes no sense for a network (the filters of one whose first layer is no
convolution over the image) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from service.manifest import FileEntry, file_entry
from training import charts, optimizers, thumbnails
from training.datasets import LabelledImages
from training.files import write_atomically
from training.finished import FinishedModel
from training.inference import Probabilities
from training.layers import Layer, first_convolution, trace
from training.predictions import PREDICTIONS_FILE, Predictions
from training.provenance import provenance
from training.significance import wilson_interval

REPORT_FILE = "report.html"
TEMPLATE = "report.html.jinja"

MISTAKES = 18
CONFUSIONS = 10
FILTERS = 64
MAPS_OF = 4  # layers
MAPS = 12  # of each
# Beyond, a matrix of numbers is no longer read; the most frequent confusions still are.
MATRIX_CLASSES = 24
POINTS = 200  # of the learning rate

# Keys of a parity entry: title, format. What else an entry holds is shown as it is.
PARITY = {
    "provider": ("provider", "{}"),
    "precision": ("precision", "{}"),
    "n": ("images", "{:,}"),
    "agreement": ("same top class", "{:.2%}"),
    "max_abs_difference": ("largest difference of a probability", "{:.2g}"),
    "accuracy": ("accuracy", "{:.2%}"),
    "accuracy_drop": ("accuracy lost", "{:.2%}"),
    "class_drop": ("most recall lost in a class", "{:.2%}"),
}


def write(
    run: Path, model: FinishedModel, test: LabelledImages, expected: Probabilities, exported: Mapping[str, Any]
) -> dict[str, FileEntry]:
    """Write predictions.npz and report.html into `run`; gives their entries for the manifest.

    `expected` are the model's probabilities [n, classes] of `test`. `exported` is the record of the export so far:
    `files`, `parity` and `compute_precisions`, as in export.json.
    """
    predictions = Predictions.of(expected, test.labels)
    write_atomically(run / PREDICTIONS_FILE, predictions.to_npz())
    write_atomically(run / REPORT_FILE, render(model, test, predictions, exported).encode())
    return {name: file_entry(run / name) for name in (PREDICTIONS_FILE, REPORT_FILE)}


def render(model: FinishedModel, test: LabelledImages, predictions: Predictions, exported: Mapping[str, Any]) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # class names are whatever folders were called
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sample = int(np.argmax(predictions.right))  # the first that is right, or the first of all
    layers = trace(model.classifier, test.images[sample])
    evaluation = model.evaluation
    hits = round(evaluation["accuracy"] * evaluation["n"])
    return environment.get_template(TEMPLATE).render(
        title=f"{model.recipe['architecture']} on {model.dataset['name']}",
        exported=datetime.now(UTC).date().isoformat(),
        labels=model.spec.classes,
        evaluation=evaluation,
        interval=wilson_interval(hits, evaluation["n"]),
        recipe=model.recipe,
        settings={key: value for key, value in model.recipe.items() if not isinstance(value, list | dict)},
        dataset=model.dataset,
        provenance=provenance(),
        seconds=sum(record["seconds"] for record in model.recipe.get("history", ())),
        files=exported["files"],
        parameters=sum(parameter.numel() for parameter in model.classifier.network.parameters()),
        multiply_adds=_total_multiply_adds(layers),
        curves=_curves(model),
        matrix=_matrix(evaluation["confusion_matrix"]) if len(model.spec.classes) <= MATRIX_CLASSES else None,
        confusions=_confusions(evaluation["confusion_matrix"], model.spec.classes),
        calibration=(charts.reliability(predictions), charts.confidence(predictions)),
        mistakes=_mistakes(test, predictions, model.spec.classes),
        sample={"picture": thumbnails.picture(test.images[sample]), "label": model.spec.classes[test.labels[sample]]},
        filters=_filters(layers, test.images.shape[3]),
        feature_maps=_feature_maps(layers),
        layers=layers if len(layers) > 1 else [],  # one is the network itself, seen from outside
        parity=_parity(exported["parity"], exported["compute_precisions"]),
    )


def _curves(model: FinishedModel) -> list[Markup]:
    """Loss, accuracy and learning rate; nothing for a model that was not trained in epochs."""
    history = model.recipe.get("history")
    if not history:
        return []
    recipe = model.spec.recipe
    epochs = np.linspace(0, len(history), POINTS, endpoint=False)  # a path begins where the one before it ends
    path = recipe.path_epochs
    rates = [recipe.learning_rate * optimizers.rate_share(recipe, epoch % path / path) for epoch in epochs]
    return [
        charts.loss(history),
        charts.accuracy(history, model.recipe["best_epoch"]),
        charts.learning_rate(epochs, np.array(rates)),
    ]


def _matrix(counts: Sequence[Sequence[int]]) -> list[list[dict[str, Any]]]:
    """Cells with their count, whether they are right, and a shade from 0 to 1.

    Right ones are shaded by their share of the true class, mistakes by their share of the largest mistake: else
    they would all look alike.
    """
    matrix = np.array(counts)
    right = np.eye(len(matrix), dtype=bool)
    worst = max(1, matrix[~right].max())
    shades = np.where(right, matrix / np.maximum(matrix.sum(1, keepdims=True), 1), matrix / worst)
    return [
        [
            {"count": int(matrix[row, column]), "right": row == column, "shade": float(shades[row, column])}
            for column in range(len(matrix))
        ]
        for row in range(len(matrix))
    ]


def _confusions(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: true class, predicted class, images."""
    matrix = np.array(counts)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:CONFUSIONS]
    pairs = zip(*np.unravel_index(order, matrix.shape), strict=True)
    return [(labels[true], labels[found], int(matrix[true, found])) for true, found in pairs if matrix[true, found]]


def _mistakes(test: LabelledImages, predictions: Predictions, labels: Sequence[str]) -> list[dict[str, Any]]:
    wrong = np.flatnonzero(~predictions.right)
    surest = wrong[np.argsort(-predictions.probability[wrong], kind="stable")][:MISTAKES]
    return [
        {
            "picture": thumbnails.picture(test.images[index]),
            "true": labels[predictions.labels[index]],
            "predicted": labels[predictions.predicted[index]],
            "probability": float(predictions.probability[index]),
        }
        for index in surest
    ]


def _total_multiply_adds(layers: Sequence[Layer]) -> int | None:
    """None when a layer's are not known, or none were seen."""
    counts = [layer.multiply_adds for layer in layers]
    return (
        sum(count for count in counts if count) if all(count is not None for count in counts) and any(counts) else None
    )


def _filters(layers: list[Layer], channels: int) -> list[str]:
    weights = first_convolution(layers, channels)
    # A single weight an image channel is a colour, not a filter to look at.
    return thumbnails.filters(weights.numpy()[:FILTERS]) if weights is not None and weights[0, 0].numel() > 1 else []


def _feature_maps(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Of the last activation (or else convolution) before the maps get smaller, for the first few such sizes."""
    maps = [layer for layer in layers if layer.output.ndim == 3 and min(layer.size[1:]) > 1]
    activations = [layer for layer in maps if type(layer.module).__module__ == "torch.nn.modules.activation"]
    by_size = {layer.size[1:]: layer for layer in activations or [one for one in maps if one.kind == "Conv2d"]}
    return [
        {"layer": layer, "pictures": thumbnails.feature_maps(layer.output.numpy(), MAPS)}
        for layer in list(by_size.values())[:MAPS_OF]
    ]


def _parity(entries: Sequence[Mapping[str, Any]], compute_precisions: Sequence[str]) -> dict[str, Any]:
    """Titles of the columns, and rows of text. The last column says whether the precision may be used."""
    keys = list(dict.fromkeys((*PARITY, *(key for entry in entries for key in entry))))
    keys = [key for key in keys if any(entry.get(key) is not None for entry in entries)]
    rows = [
        [*(_shown(key, entry.get(key)) for key in keys), "yes" if entry["precision"] in compute_precisions else "no"]
        for entry in entries
    ]
    return {"titles": [*(_title(key) for key in keys), "may be used"], "rows": rows}


def _title(key: str) -> str:
    return PARITY[key][0] if key in PARITY else key.replace("_", " ")


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if key in PARITY:
        return PARITY[key][1].format(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
