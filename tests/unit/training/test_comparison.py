"""`cifarserve models compare`: the answers of two published versions to the same images."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.cli import main
from service.manifest import MANIFEST_FILE, file_entry, read_manifest
from tests.integration.server_process import ENVIRONMENT
from tests.unit.training import pictures
from tests.unit.training.conftest import FinishedRun
from training import publish
from training.comparison import Comparison, compare, find
from training.errors import TrainingError
from training.predictions import PREDICTIONS_FILE, Predictions, load

NAME = "colours"


@pytest.fixture
def repository(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """Two versions of one model: the same file, published twice."""
    for _ in range(2):
        publish.publish(finished_run.folder, finished_run.model, finished_run.export, tmp_path / "models", NAME)
    return tmp_path / "models"


def change(folder: Path, **changes: object) -> None:
    manifest = read_manifest(folder)
    (folder / MANIFEST_FILE).write_text(dataclasses.replace(manifest, **changes).to_json())  # type: ignore[arg-type]


def answer(folder: Path, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    """Let a version have said something else: its predictions, and what its manifest says of them."""
    before = load(folder / PREDICTIONS_FILE)
    after = Predictions(before.labels, edit(before.labels.copy()), before.probability)
    (folder / PREDICTIONS_FILE).write_bytes(after.to_npz())
    manifest = read_manifest(folder)
    files = manifest.files | {PREDICTIONS_FILE: file_entry(folder / PREDICTIONS_FILE)}
    change(folder, files=files, evaluation=manifest.evaluation | {"accuracy": float(after.right.mean())})


def wrong(images: slice) -> Callable[[np.ndarray], np.ndarray]:
    def edit(labels: np.ndarray) -> np.ndarray:
        labels[images] = (labels[images] + 1) % len(pictures.CLASSES)
        return labels

    return edit


def found(repository: Path, source: Path | None = None) -> Comparison:
    first, second = (find(repository, NAME, text) for text in ("1", "2"))
    return compare(first, second, str(source) if source else None, repository)


def test_the_test_counts_the_images_that_only_one_has_right(repository: Path) -> None:
    answer(repository / NAME / "1", wrong(slice(0, 12)))
    answer(repository / NAME / "2", wrong(slice(11, 13)))
    comparison = found(repository)
    assert (comparison.test.only_first, comparison.test.only_second) == (1, 11)
    assert comparison.test.p_value == pytest.approx(2 * 13 / 2**12)
    assert comparison.verdict == (
        "colours:2 is better than colours:1 by 33.33 points; by chance alone so much would be seen in 0.6% of such "
        "comparisons"
    )
    assert comparison.images == "the 30 test images of colours, as evaluated when published"


def test_a_difference_that_chance_explains_is_called_none(repository: Path) -> None:
    answer(repository / NAME / "1", wrong(slice(0, 2)))
    answer(repository / NAME / "2", wrong(slice(2, 5)))
    assert found(repository).verdict == (
        "no difference is shown: colours:1 is ahead by 3.33 points, but by chance alone so much would be seen in "
        "100.0% of such comparisons"
    )


def test_a_version_is_as_good_as_itself(repository: Path) -> None:
    comparison = found(repository)
    assert (comparison.test.only_first, comparison.test.only_second, comparison.test.p_value) == (0, 0, 1.0)
    assert comparison.verdict == "colours:1 and colours:2 have as many images right"


def test_with_data_both_are_run_on_its_test_split(repository: Path, finished_run: FinishedRun, tmp_path: Path) -> None:
    for version in ("1", "2"):
        (repository / NAME / version / PREDICTIONS_FILE).unlink()
    comparison = found(repository, pictures.write_folder(tmp_path / "pictures"))
    accuracy = finished_run.model.evaluation["accuracy"]
    assert comparison.first.evaluation["accuracy"] == pytest.approx(accuracy)
    assert comparison.second.evaluation["nll"] == pytest.approx(finished_run.model.evaluation["nll"], abs=1e-5)
    assert comparison.images == "the 30 test images of colours, run now in ONNX Runtime on the CPU"


def test_without_predictions_the_message_asks_for_data(repository: Path) -> None:
    folder = repository / NAME / "2"
    files = dict(read_manifest(folder).files)
    del files[PREDICTIONS_FILE]
    change(folder, files=files)
    with pytest.raises(TrainingError, match=r"colours:2 was published without predictions\.npz; give --data"):
        found(repository)


def test_versions_of_other_test_images_are_not_compared_by_their_predictions(repository: Path) -> None:
    folder = repository / NAME / "2"
    change(folder, dataset=read_manifest(folder).dataset | {"test_fingerprint": "another"})
    with pytest.raises(TrainingError, match="evaluated on other test images; give --data"):
        found(repository)


def test_versions_of_other_labels_are_not_compared(repository: Path) -> None:
    change(repository / NAME / "2", labels=("a", "b", "c"))
    with pytest.raises(TrainingError, match="colours:1 and colours:2 have other labels"):
        found(repository)


def test_predictions_that_are_not_the_published_ones_are_refused(repository: Path) -> None:
    path = repository / NAME / "1" / PREDICTIONS_FILE
    before = load(path)
    path.write_bytes(Predictions(before.labels, before.labels[::-1], before.probability).to_npz())
    with pytest.raises(TrainingError, match=r"predictions\.npz: damaged"):
        found(repository)


@pytest.mark.parametrize(
    ("text", "message"), [("x", "'x' is no version"), ("3", "no such version"), ("birds:1", "no such version")]
)
def test_a_version_that_is_none_is_named(repository: Path, text: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        find(repository, NAME, text)


def test_the_command_prints_a_table_and_the_verdict(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(repository / NAME / "1", wrong(slice(0, 12)))
    answer(repository / NAME / "2", wrong(slice(11, 13)))
    assert main(["models", "compare", "1", f"{NAME}:2", "--name", NAME, "--models", str(repository)]) == 0
    output = capsys.readouterr().out
    for text in ("60.00%", "93.33%", "+33.33", "42.32% to 75.41%", "recall blue", "calibration error", "precisions"):
        assert text in output
    assert "only colours:1 right: 1 images; only colours:2 right: 11; McNemar's exact test: p = 0.00635" in output
    assert output.splitlines()[-1].startswith("colours:2 is better than colours:1 by 33.33 points")


def test_the_command_prints_json_for_programs(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "compare", "1", "2", "--name", NAME, "--models", str(repository), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["n"], record["mcnemar"]["p_value"], record["mcnemar"]["significant"]) == (30, 1.0, False)
    assert record["first"]["title"] == "colours:1"
    assert set(record["second"]["recall"]) == set(pictures.CLASSES)
    assert record["second"]["training_seconds"] > 0


def test_what_cannot_be_compared_is_one_line_and_exit_code_2(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "compare", "1", "7", "--name", NAME, "--models", str(repository)]) == 2
    assert capsys.readouterr().err == f"cifarserve: {repository / NAME / '7'}: no such version\n"


def test_comparing_needs_no_torch(repository: Path, tmp_path: Path) -> None:
    data = pictures.write_folder(tmp_path / "pictures")
    program = (
        "import sys; from service.cli import main; status = main(sys.argv[1:]); "
        "print(sorted({'torch', 'onnx', 'matplotlib', 'jinja2'} & set(sys.modules))); sys.exit(status)"
    )
    arguments = ["models", "compare", "1", "2", "--name", NAME, "--models", repository, "--data", data]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
