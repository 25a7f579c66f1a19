"""A person's own folder, with other classes and counts and a broken file, becomes a served model that knows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from service.client import Client
from service.manifest import read_manifest
from tests.integration.server_process import cli, serving

# Classes by their colour, with very different numbers of pictures.
COUNTS = {"brick": 70, "grass": 40, "night": 24, "sea": 50, "snow": 16}
COLOURS = {
    "brick": (170, 60, 40),
    "grass": (60, 160, 50),
    "night": (20, 20, 40),
    "sea": (30, 90, 190),
    "snow": (235, 240, 245),
}


def picture(generator: np.random.Generator, name: str) -> Image.Image:
    """One of any size and, for every third, of another mode than RGB."""
    height, width = generator.integers(14, 50, size=2)
    pixels = COLOURS[name] + generator.normal(0, 25, (height, width, 3))
    found = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return found.convert(("RGB", "RGB", "RGB", "RGB", "P", "RGBA")[generator.integers(6)])


def write_pictures(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture(generator, name).save(folder / name / f"{index}.png")
    # Grey as it was saved: no colour to tell, but snow is light enough.
    for path in list((folder / "snow").iterdir())[:3]:
        Image.open(path).convert("L").save(path)
    (folder / "sea" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")


def test_an_own_folder_is_trained_on_evaluated_exported_published_and_served(tmp_path: Path) -> None:
    data, models, run = tmp_path / "places", tmp_path / "models", tmp_path / "run"
    write_pictures(data)

    def succeed(*arguments: object) -> str:
        result = cli(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return result.stdout

    shown = succeed(
        "train", "--data", data, "--run", run, "--recipe", "mnist", "--image-shape", "16x16x3", "--epochs", 10,
        "--batch-size", 16, "--validation-fraction", 0.2, "--device", "cpu", "--precision", "fp32",
    )  # fmt: skip
    assert "skipped 1 broken pictures: sea/broken.jpg cannot be decoded" in shown
    assert "160 + 40 images, 5 classes" in shown
    succeed("evaluate", "--run", run)
    succeed("export", "--run", run)
    succeed("publish", "--run", run, "--name", "places", "--models", models)

    manifest = read_manifest(models / "places" / "1")
    assert manifest.labels == tuple(COUNTS)
    assert manifest.dataset["skipped"][0]["path"] == "sea/broken.jpg"
    assert manifest.evaluation["accuracy"] > 0.85

    generator = np.random.default_rng(1)
    files = []
    for name in COUNTS:
        files.append(tmp_path / f"new {name}.png")
        picture(generator, name).save(files[-1])
    with serving(models, tmp_path / "log") as server, Client(server.target) as client:
        assert [answer.best.label for answer in client.classify(files)] == list(COUNTS)
