"""`cifarserve retrain` in stages: what is done is not done again, and how it ended can be read by a machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.cli import main
from service.folders import model_versions
from service.manifest import MODEL_FILE, read_manifest
from tests.unit.training import pictures
from training import export, finished, loop, pipeline, publish
from training.errors import TrainingError

FLAGS = ("--name", "colours", "--image-shape", "8x8x3", "--batch-size", "16", "--learning-rate", "1e-3",
         "--validation-fraction", "0.2", "--epochs", "2", "--device", "cpu", "--precision", "fp32",
         "--max-calibration-error", "1", "--max-slowdown", "1000")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.write_folder(tmp_path_factory.mktemp("data"), train=40)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def retrain(data: Path, place: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    code = main(["retrain", "--data", str(data), "--run", str(place / "run"), "--models", str(place / "models"),
                 *FLAGS, *flags])  # fmt: skip
    return code, json.loads((place / "run" / pipeline.RESULT_FILE).read_text())


def test_a_published_version_is_told_with_its_stages_and_gates(data: Path, place: Path) -> None:
    code, result = retrain(data, place, "--result", str(place / "elsewhere.json"))
    assert (code, result["exit_code"], result["outcome"]) == (0, 0, "published")
    assert (result["model"], result["version"]) == ("colours", 1)
    manifest = read_manifest(place / "models" / "colours" / "1")
    assert result["accuracy"] == manifest.evaluation["accuracy"]
    assert list(result["stages"]) == ["train", "evaluate", "export", "gates", "publish"]
    assert all(seconds > 0 for seconds in result["stages"].values())
    assert [gate["gate"] for gate in result["gates"]] == ["accuracy", "calibration", "parity"]
    assert json.loads((place / "elsewhere.json").read_text()) == result


def test_a_refusal_is_told_with_the_gate_and_publishes_nothing(
    data: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = retrain(data, place, "--min-accuracy", "1", "--learning-rate", "1e-9")
    assert (code, result["exit_code"], result["outcome"], result["version"]) == (3, 3, "refused", None)
    assert [gate["gate"] for gate in result["gates"] if not gate["passed"]] == ["accuracy"]
    assert "below --min-accuracy 100.00%" in result["message"]
    assert result["message"] in capsys.readouterr().err
    assert model_versions(place / "models" / "colours") == []


@pytest.mark.parametrize(
    ("broken", "done"),
    [
        ((finished, "save"), set()),
        ((export, "golden"), {"evaluate"}),
        ((publish, "publish"), {"evaluate", "export"}),
    ],
)
def test_a_run_that_stopped_goes_on_with_the_stage_it_stopped_in(
    data: Path, place: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[Any, str], done: set[str]
) -> None:
    def stop(*_: object) -> None:
        raise TrainingError("the lights went out")

    with monkeypatch.context() as patch:
        patch.setattr(*broken, stop)
        code, result = retrain(data, place)
    assert (code, result["outcome"], result["message"]) == (2, "failed", "the lights went out")
    assert model_versions(place / "models" / "colours") == []

    def no_training(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(loop, "_train_epoch", no_training)
    code, result = retrain(data, place, "--resume")
    assert (code, result["version"]) == (0, 1)
    assert {stage for stage, seconds in result["stages"].items() if seconds is None} == done


def test_resuming_after_publication_publishes_nothing_twice(data: Path, place: Path) -> None:
    assert retrain(data, place)[0] == 0
    code, result = retrain(data, place, "--resume")
    assert (code, result["outcome"], result["version"]) == (0, "published", 1)
    assert list(result["stages"]) == ["train", "evaluate", "export"]
    assert model_versions(place / "models" / "colours") == [1]


def test_other_weights_or_precisions_are_not_what_was_done_before(data: Path, place: Path) -> None:
    assert retrain(data, place, "--min-accuracy", "1", "--precisions", "fp16")[0] in (0, 3)
    before = (place / "run" / MODEL_FILE).read_bytes()
    code, result = retrain(data, place, "--resume", "--weights", "fp32", "--precisions")
    assert code == 0
    assert result["stages"]["evaluate"] > 0
    assert result["stages"]["export"] > 0
    assert (place / "run" / MODEL_FILE).read_bytes() != before
    manifest = read_manifest(place / "models" / "colours" / str(result["version"]))
    assert manifest.compute_precisions == ("fp32",)


def test_a_wrong_flag_ends_before_there_is_a_run(data: Path, place: Path) -> None:
    code = main(["retrain", "--data", str(data), "--name", "a/b", "--result", str(place / "result.json")])
    assert code == 2
    result = json.loads((place / "result.json").read_text())
    assert (result["outcome"], result["run"]) == ("failed", "")
    assert "cannot name a model" in result["message"]
