"""A number that is not finite is refused, with its field, in every file of a run that is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.training.conftest import FinishedRun
from training import checkpoint, export, finished, predictions
from training.errors import CheckpointError
from training.predictions import PREDICTIONS_FILE, Predictions, PredictionsError


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The place, the container and the key of each number in a document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        where = f"{place}[{key}]" if isinstance(value, list) else f"{place}.{key}" if place else key
        if isinstance(inner, dict | list):
            yield from numbers(inner, where)
        elif type(inner) in (int, float):
            yield where, value, key


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
@pytest.mark.parametrize(
    ("name", "load"),
    [("checkpoint.json", checkpoint.load), ("model.json", finished.load), ("export.json", export.load)],
)
def test_a_file_of_a_run_names_the_field(
    finished_run: FinishedRun, tmp_path: Path, name: str, load: Callable[[Path], object], number: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run.folder, run)
    document = json.loads((run / name).read_text())
    found = list(numbers(document))
    assert len(found) > 5
    for place, container, key in found[:: max(1, len(found) // 20)]:
        before, container[key] = container[key], "here"
        (run / name).write_text(json.dumps(document).replace('"here"', number))
        with pytest.raises(CheckpointError) as caught:
            load(run)
        assert f"{place}: must be a finite number, is " in str(caught.value)
        container[key] = before
    (run / name).write_text(json.dumps(document))
    load(run)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_predictions_name_the_image(tmp_path: Path, number: float) -> None:
    path, classes = tmp_path / PREDICTIONS_FILE, np.array([0, 1, 2])
    path.write_bytes(Predictions(classes, classes, np.array([0.5, 0.6, number], np.float32)).to_npz())
    with pytest.raises(PredictionsError, match=r"probability\[2\] must be a finite number"):
        predictions.load(path)
