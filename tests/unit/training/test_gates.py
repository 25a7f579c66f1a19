"""The gates before publication: each can refuse, says why with its numbers, and lets an equal model through."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from service.manifest import Manifest
from tests.unit.training.conftest import FinishedRun
from training import gates, predictions, publish
from training.errors import GateRefused, TrainingError
from training.gates import Limits, Verdict
from training.predictions import PREDICTIONS_FILE, Predictions

NAME = "colours"
LENIENT = Limits(
    min_accuracy=0.0, max_regression=0.0, max_class_regression=0.0, max_calibration_error=1.0, max_slowdown=1e6
)


@pytest.fixture
def run(finished_run: FinishedRun, tmp_path: Path) -> FinishedRun:
    shutil.copytree(finished_run.folder, tmp_path / "run")
    return dataclasses.replace(finished_run, folder=tmp_path / "run")


@pytest.fixture
def served(finished_run: FinishedRun, tmp_path: Path) -> tuple[Manifest, Path]:
    """The very same model, published."""
    manifest = publish.publish(finished_run.folder, finished_run.model, finished_run.export, tmp_path / "models", NAME)
    return manifest, tmp_path / "models" / NAME / "1"


def judge(run: FinishedRun, served: tuple[Manifest, Path] | None, **limits: float) -> dict[str, Verdict]:
    limited = dataclasses.replace(LENIENT, **limits)
    verdicts = gates.judge(run.model, run.export, run.folder, served, run.dataset.test, limited)
    return {verdict.gate: verdict for verdict in verdicts}


def refused(verdicts: dict[str, Verdict]) -> list[str]:
    return [gate for gate, verdict in verdicts.items() if not verdict.passed]


def get_wrong(run: FinishedRun, label: int, count: int) -> None:
    """Let the run's answers to `count` images of one class be wrong that were right."""
    answers = predictions.load(run.folder / PREDICTIONS_FILE)
    chosen = np.flatnonzero(answers.right & (answers.labels == label))[:count]
    assert len(chosen) == count
    predicted = answers.predicted.copy()
    predicted[chosen] = (label + 1) % 3
    changed = Predictions(answers.labels, predicted, answers.probability)
    (run.folder / PREDICTIONS_FILE).write_bytes(changed.to_npz())


def test_the_first_version_has_nothing_to_be_compared_with(run: FinishedRun) -> None:
    assert list(judge(run, None)) == ["accuracy", "calibration", "parity"]


def test_an_equal_model_passes_with_no_margin_at_all(run: FinishedRun, served: tuple[Manifest, Path]) -> None:
    verdicts = judge(run, served)
    assert list(verdicts) == ["accuracy", "calibration", "parity", "regression", "class regression", "latency"]
    assert refused(verdicts) == []
    assert "p 1)" in verdicts["regression"].message


def test_both_are_timed_as_a_server_with_these_settings_computes(
    run: FinishedRun, served: tuple[Manifest, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFARSERVE_PROVIDER", "cpu")
    (served[1].parent / "config.toml").write_text('provider = "tensorrt"\nprecision = "fp32"\n')
    message = judge(run, served)["latency"].message
    assert "in fp32 on CPUExecutionProvider" in message
    monkeypatch.delenv("CIFARSERVE_PROVIDER")
    with pytest.raises(TrainingError, match=r"cannot be compared: .*TensorrtExecutionProvider"):
        judge(run, served)


def test_accuracy_is_refused_below_its_limit_and_shown_with_its_interval(run: FinishedRun) -> None:
    accuracy = run.model.evaluation["accuracy"]
    assert refused(judge(run, None, min_accuracy=accuracy)) == []
    low = dataclasses.replace(run.model, evaluation={**run.model.evaluation, "accuracy": 0.5})
    verdicts = judge(dataclasses.replace(run, model=low), None, min_accuracy=0.6)
    assert refused(verdicts) == ["accuracy"]
    # Wilson's interval for 15 of 30.
    assert "50.00% (95% interval 33.15% to 66.85%, n 30) is below --min-accuracy 60.00%" in verdicts["accuracy"].message


def test_a_model_that_is_too_sure_of_itself_is_refused(run: FinishedRun) -> None:
    error = run.model.evaluation["ece"]
    assert refused(judge(run, None, max_calibration_error=error)) == []
    assert refused(judge(run, None, max_calibration_error=error / 2)) == ["calibration"]


def test_a_precision_that_failed_is_named(run: FinishedRun) -> None:
    export = dataclasses.replace(run.export, compute_precisions=("fp32", "fp16"))
    message = judge(dataclasses.replace(run, export=export), None)["parity"].message
    assert message == "PyTorch's answers in fp32, fp16; not in int8, bf16"


def test_more_wrong_answers_than_allowed_are_refused_with_the_counts(
    run: FinishedRun, served: tuple[Manifest, Path]
) -> None:
    for label in range(3):
        get_wrong(run, label, 1)
    allowed = judge(run, served, max_regression=0.1, max_class_regression=0.1)
    assert refused(allowed) == []
    verdicts = judge(run, served, max_regression=0.09, max_class_regression=0.1)
    assert refused(verdicts) == ["regression"]
    assert "10.00 points below" in verdicts["regression"].message
    assert f"{NAME} version 1, which is served (only the new one right 0, only the old one 3, p 0.25)" in (
        verdicts["regression"].message
    )


def test_one_class_that_pays_for_the_others_is_refused(run: FinishedRun, served: tuple[Manifest, Path]) -> None:
    get_wrong(run, 1, 2)
    verdicts = judge(run, served, max_regression=0.1, max_class_regression=0.19)
    assert refused(verdicts) == ["class regression"]
    assert verdicts["class regression"].message.startswith("recall of green is 20.00 points below")
    assert refused(judge(run, served, max_regression=0.1, max_class_regression=0.2)) == []


def test_a_slower_model_is_refused(run: FinishedRun, served: tuple[Manifest, Path]) -> None:
    verdicts = judge(run, served, max_slowdown=1e-6)
    assert refused(verdicts) == ["latency"]
    assert "--max-slowdown allows 0.00" in verdicts["latency"].message


def test_all_that_refuse_are_named_at_once() -> None:
    gates.require([Verdict("accuracy", True, "fine")])
    verdicts = [
        Verdict("accuracy", False, "too low"),
        Verdict("parity", True, "fine"),
        Verdict("latency", False, "slow"),
    ]
    with pytest.raises(GateRefused) as refusal:
        gates.require(verdicts)
    assert str(refusal.value) == "not published: too low; slow"


def test_a_model_with_other_labels_is_no_successor(run: FinishedRun, served: tuple[Manifest, Path]) -> None:
    manifest, folder = served
    with pytest.raises(GateRefused, match="other labels"):
        judge(run, (dataclasses.replace(manifest, labels=("a", "b", "c")), folder))


def test_a_model_of_another_image_size_is_no_successor(run: FinishedRun, served: tuple[Manifest, Path]) -> None:
    manifest, folder = served
    (tensor,) = manifest.inputs
    larger = dataclasses.replace(manifest, inputs=(dataclasses.replace(tensor, shape=(-1, 16, 16, 3)),))
    with pytest.raises(GateRefused, match=r"takes images of \(16, 16, 3\)"):
        judge(run, (larger, folder))
