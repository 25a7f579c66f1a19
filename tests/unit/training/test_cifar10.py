"""The binary layout of the original CIFAR-10, on generated files."""

from __future__ import annotations

import functools
import hashlib
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from training import cifar10
from training.errors import DatasetError


def write_batch(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """As the data set's page describes it: label, then 1024 red, 1024 green and 1024 blue values, row by row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for image, label in zip(images, labels, strict=True):
            file.write(bytes([label]))
            for channel in range(3):
                file.write(image[:, :, channel].tobytes())


def random_batch(seed: int, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 32, 32, 3), np.uint8), generator.integers(0, 10, count)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(cifar10.TRAIN_FILES + cifar10.TEST_FILES):
        write_batch(tmp_path / cifar10.FOLDER / name, *random_batch(seed))
    return tmp_path


def test_records_become_images_and_labels(folder: Path) -> None:
    dataset = cifar10.read_original(folder)
    expected = [random_batch(seed) for seed in range(6)]
    assert np.array_equal(dataset.train.images, np.concatenate([images for images, _ in expected[:5]]))
    assert dataset.train.labels.tolist() == np.concatenate([labels for _, labels in expected[:5]]).tolist()
    assert np.array_equal(dataset.test.images, expected[5][0])
    assert dataset.classes[3] == "cat"


def test_a_truncated_batch_is_an_error(folder: Path) -> None:
    path = folder / cifar10.FOLDER / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"data_batch_2\.bin: 12291 bytes"):
        cifar10.read_original(folder)


def test_a_label_beyond_the_classes_is_an_error(folder: Path) -> None:
    write_batch(folder / cifar10.FOLDER / "test_batch.bin", np.zeros((1, 32, 32, 3), np.uint8), np.array([10]))
    with pytest.raises(DatasetError, match="label 10"):
        cifar10.read_original(folder)


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """The address of a web server on this machine that gives out the files of a folder."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_download_is_verified_by_its_checksum(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder / cifar10.FOLDER, cifar10.FOLDER)
    with web_server(tmp_path) as address:
        monkeypatch.setattr(cifar10, "archive_url", lambda: f"{address}/{archive.name}")
        with pytest.raises(DatasetError, match="could not be fetched"):
            cifar10.read_original(tmp_path / "wrong")
        assert not (tmp_path / "wrong" / cifar10.FOLDER).exists()
        monkeypatch.setattr(cifar10, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
        assert len(cifar10.read_original(tmp_path / "right").train) == 20
