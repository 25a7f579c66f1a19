"""The network that NumPy computes, through the same commands as all others to an answer of the server."""

from __future__ import annotations

from pathlib import Path

from service.client import Client
from service.manifest import read_manifest
from tests.integration.server_process import cli, serving
from tests.unit.training import pictures


def test_the_numpy_network_is_retrained_published_and_served(tmp_path: Path) -> None:
    data, models, run = pictures.write_folder(tmp_path / "pictures", train=40), tmp_path / "models", tmp_path / "run"
    flags = ("--data", data, "--run", run, "--recipe", "numpy", "--image-shape", "8x8x3", "--epochs", 3)
    flags += ("--batch-size", 8, "--learning-rate", 0.005, "--models", models, "--name", "colours", "--device", "cpu")
    result = cli("retrain", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    manifest = read_manifest(models / "colours" / "1")
    assert manifest.recipe["architecture"] == "numpy"
    assert manifest.parity[0]["agreement"] >= 0.999
    assert manifest.evaluation["accuracy"] > 0.6  # by chance a third

    files = sorted((data / "test").rglob("*.png"))
    with serving(models, tmp_path / "log") as server, Client(server.target) as client:
        answers = client.classify(files)
    right = sum(one.best.label == path.parent.name for one, path in zip(answers, files, strict=True))
    assert right / len(files) == manifest.evaluation["accuracy"]
