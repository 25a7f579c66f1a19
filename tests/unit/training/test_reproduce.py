"""The reproduce command: the lineage trained on small pictures, its table, and what a second call leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.cli import main
from service.engine import Engine
from tests.unit.training import pictures
from training import architectures, checkpoint
from training.errors import TrainingError
from training.lineage import LINEAGE
from training.recipes import RECIPES, named

NETWORKS = ("numpy", "simple")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two grey "digits", a bar across and one down, 28x28."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 10)):
        for name in ("0", "1"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(60, size=(28, 28)).astype(np.uint8)
                place = slice(*(generator.integers(4, 20) + np.array([0, 5])))
                pixels[(place, slice(None)) if name == "0" else (slice(None), place)] = 230
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After one call for two of the networks; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("lineage") / "runs"
    assert main(reproduce(folder, digits, *NETWORKS)) == 0
    return folder


def reproduce(runs: Path, digits: Path, *only: str) -> list[str]:
    return ["reproduce", "--mnist", str(digits), "--runs", str(runs), "--only", *only]


def results(runs: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((runs / "reproduce.json").read_text())
    return found


def test_each_network_is_beside_its_reference_with_its_time(runs: Path) -> None:
    found = results(runs)
    assert [(each["network"], each["data"]) for each in found] == [("numpy", "MNIST"), ("simple", "MNIST")]
    for each in found:
        recipe = checkpoint.load_spec(Path(str(each["run"]))).recipe
        assert (recipe.name, recipe.image_shape, recipe.epochs) == (each["network"], (28, 28, 1), each["epochs"])
        assert float(str(each["seconds"])) > 0
        trained_on = 120 * (1 - recipe.validation_fraction) * recipe.epochs
        speed = float(str(each["images_per_second"])) * float(str(each["seconds"]))
        assert speed == pytest.approx(trained_on)
        assert each["reached"] is (float(str(each["accuracy"])) >= {"numpy": 0.90, "simple": 0.9852}[recipe.name])
    for score in ("accuracy", "train_accuracy", "precision", "recall", "f1"):
        assert 0.7 < float(str(found[1][score])) <= 1  # by chance a half


def test_the_table_is_markdown_too(runs: Path) -> None:
    lines = (runs / "reproduce.md").read_text().splitlines()
    assert lines[0] == "| network | data | reference | ours | training | images/s |"
    assert lines[2].startswith("| numpy | MNIST | ~90% after one epoch")
    simple = results(runs)[1]
    scores = (
        "{accuracy:.2%} ({train_accuracy:.2%} on train); precision {precision:.4f}, recall {recall:.4f}, F1 {f1:.4f}"
    )
    assert scores.format(**simple) in lines[3]
    assert len({line.count("|") for line in lines}) == 1


def test_what_is_done_is_not_trained_again(runs: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/*")}
    expected = results(runs)
    assert main(reproduce(runs, digits, *NETWORKS)) == 0
    output = capsys.readouterr().out
    assert all(f"{name}-mnist: done before" in output for name in NETWORKS)
    assert "training, in" not in output
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/*")} == before
    assert results(runs) == expected


def test_a_network_that_was_trained_by_hand_is_evaluated_only(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "numpy-mnist"
    assert main(["train", "--recipe", "numpy", "--data", str(digits), "--data-name", "MNIST", "--run", str(run)]) == 0
    trained = (run / checkpoint.FILE).read_bytes()
    capsys.readouterr()
    assert main(reproduce(tmp_path, digits, "numpy")) == 0
    assert "epoch 1/1 done" not in capsys.readouterr().out
    assert (run / checkpoint.FILE).read_bytes() == trained


def test_the_numpy_network_goes_on_to_a_file_that_the_server_takes(runs: Path) -> None:
    run = runs / "numpy-mnist"
    assert main(["export", "--run", str(run)]) == 0
    engine = Engine(run / "model.onnx", provider="cpu", max_batch_size=4)
    assert engine.image_shape == (28, 28, 1)
    parity = json.loads((run / "export.json").read_text())["parity"][0]
    assert parity["agreement"] == 1.0


def test_other_pictures_in_a_used_folder_are_an_error(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = pictures.write_folder(tmp_path / "colours", train=4, test=2)
    assert main(reproduce(runs, other, "numpy")) == 2
    assert "the checkpoint is of another run" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--mnist", "digits", "--only", "tutorial"], ["--data", "x", "--only", "mnist"]])
def test_nothing_to_train_is_an_error(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *flags]) == 2
    assert "nothing to train: give --data, --mnist or both" in capsys.readouterr().err


def test_every_recipe_is_in_the_lineage_and_its_network_takes_the_pictures() -> None:
    others = {"sprint", "long", "averaged"}  # of the record network, which is there once
    assert {entry.recipe for entry in LINEAGE} == set(RECIPES) - others
    for entry in LINEAGE:
        assert architectures.build(named(entry.recipe).architecture, entry.image_shape, 10) is not None


def test_an_unknown_architecture_is_named_beside_the_known() -> None:
    with pytest.raises(TrainingError, match=r"no architecture 'vgg'; known: .*numpy"):
        architectures.build("vgg", (32, 32, 3), 10)
