"""From a folder of pictures to an answer over gRPC, through the command line only."""

from __future__ import annotations

from pathlib import Path

from service.client import Client
from service.folders import model_versions
from service.manifest import read_manifest
from tests.integration.server_process import cli, serving
from tests.unit.training import pictures


def test_pictures_become_a_served_model_and_a_worse_one_is_refused(tmp_path: Path) -> None:
    data = pictures.write_folder(tmp_path / "pictures", train=40)
    models = tmp_path / "models"
    flags = ["--data", data, "--models", models, "--name", "colours", "--image-shape", "8x8x3", "--batch-size", 16]
    flags += ["--learning-rate", "1e-3", "--device", "cpu", "--precision", "fp32", "--validation-fraction", "0.2"]
    flags += ["--max-calibration-error", 1, "--max-slowdown", 1000]

    first = cli("retrain", *flags, "--run", tmp_path / "first", "--epochs", 4, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert model_versions(models / "colours") == [1]
    accuracy = read_manifest(models / "colours" / "1").evaluation["accuracy"]
    assert accuracy > 0.6  # by chance a third

    refused = cli("retrain", *flags, "--run", tmp_path / "second", "--epochs", 1, "--learning-rate", "1e-9",
                  "--no-flip", "--min-accuracy", 1.0, "--max-regression", 0.01, cwd=tmp_path)  # fmt: skip
    assert refused.returncode == 3
    assert "not published" in refused.stderr
    assert "--min-accuracy 100.00%" in refused.stderr
    assert "points below" in refused.stderr
    assert "colours version 1" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert model_versions(models / "colours") == [1]

    second = cli("retrain", *flags, "--run", tmp_path / "fourth", "--epochs", 1, "--max-regression", 1.0,
                 "--max-class-regression", 1.0, cwd=tmp_path)  # fmt: skip
    assert second.returncode == 0, second.stderr
    assert model_versions(models / "colours") == [1, 2]

    test_pictures = sorted((data / "test").rglob("*.png"))
    with serving(models, tmp_path / "log") as server, Client(server.target) as client:
        assert client.model().version == 2
        assert {one.version for one in client.classify(test_pictures)} == {2}
        assert cli("models", "rollback", "colours", "--models", models).returncode == 0
    with serving(models, tmp_path / "log") as server, Client(server.target) as client:
        answers = client.classify(test_pictures)
    assert {one.version for one in answers} == {1}
    right = sum(one.best.label == path.parent.name for one, path in zip(answers, test_pictures, strict=True))
    assert right / len(answers) == accuracy
