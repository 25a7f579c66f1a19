from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Client, Options
from tests import colour_model
from tests.integration.server_process import ServerProcess, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that leave it as it was: model `colours` version 1, small limits."""
    folder = tmp_path_factory.mktemp("shared-server")
    colour_model.publish(folder / "models")
    limits = ("--max-images-per-request", 200, "--max-message-bytes", 2_000_000, "--max-image-pixels", 1_000_000)
    with serving(folder / "models", folder / "log", *limits) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.target, Options(timeout=30)) as client:
        yield client


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """An empty model repository."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder
