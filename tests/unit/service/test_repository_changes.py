"""Changes of what is served that meet each other, or a fault of our own, in a real repository in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service import loading, serving
from service.config import Settings
from service.errors import InternalError
from service.metrics import Metrics
from service.repository import Repository
from service.serving import LoadError
from tests import colour_model

PATIENCE = 30.0


def run(models: Path, scenario: Callable[[Repository], Awaitable[None]]) -> None:
    async def main() -> None:
        repository = Repository(Settings(model_repository=models, provider="cpu", threads=1), Metrics(), lambda: None)
        async with asyncio.timeout(PATIENCE):
            await repository.start()
            await scenario(repository)
            await repository.close()

    asyncio.run(main())


async def classify(repository: Repository) -> None:
    images = colour_model.distinct(1)
    with repository.find("colours", 0).batcher.admit(1) as admitted:
        await admitted.compute(images)


@pytest.mark.parametrize("keep", [True, False], ids=["while it stays", "while it is replaced"])
def test_a_version_that_breaks_while_another_loads_is_not_put_back_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    colour_model.publish(tmp_path)
    if keep:
        (tmp_path / "colours" / "config.toml").write_text('versions = "all"\n')
    load, loading_now, go_on = serving.load, threading.Event(), threading.Event()

    def held(folder: Path, name: str, version: int, compute: object) -> object:
        if version == 2:
            loading_now.set()
            assert go_on.wait(PATIENCE)
        return load(folder, name, version, compute)  # type: ignore[arg-type]

    async def scenario(repository: Repository) -> None:
        served = repository.find("colours", 1)
        colour_model.publish(tmp_path, version=2)
        refreshing = asyncio.create_task(repository.refresh(asked=True))
        await asyncio.to_thread(loading_now.wait, PATIENCE)
        repository._recovery.broken(served, "a test breaks it")
        await asyncio.sleep(0.2)
        go_on.set()
        await refreshing
        while not repository.ready() or repository.versions("colours") != ([1, 2] if keep else [2]):
            await asyncio.sleep(0.01)
        for one in repository.models():
            with one.batcher.admit(1) as admitted:
                await admitted.compute(colour_model.distinct(1))
        await served.close(replaced=False)  # closed by recovery before; again, it changes nothing

    monkeypatch.setattr(serving, "load", held)
    run(tmp_path, scenario)


def test_a_fault_that_nobody_expected_ends_neither_looking_nor_what_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    colour_model.publish(tmp_path)

    async def scenario(repository: Repository) -> None:
        read = loading.read_model_config
        with monkeypatch.context() as patch:
            patch.setattr(loading, "read_model_config", lambda *_: 1 // 0)
            for _ in range(3):
                (failure,) = await repository.refresh(asked=True)
                assert failure.reason == "internal"
        assert loading.read_model_config is read
        await classify(repository)
        colour_model.publish(tmp_path, version=2)
        assert not await repository.refresh(asked=True)
        assert repository.versions("colours") == [2]

    run(tmp_path, scenario)
    assert sum("ZeroDivisionError" in (record.exc_text or str(record.exc_info)) for record in caplog.records) == 1


def test_an_error_of_no_known_kind_while_loading_fails_that_version_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colour_model.publish(tmp_path)

    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("unexpected")

    async def scenario(repository: Repository) -> None:
        colour_model.publish(tmp_path, version=2)
        with monkeypatch.context() as patch:
            patch.setattr(serving, "load", broken)
            (failure,) = await repository.refresh(asked=True)
        assert isinstance(failure, LoadError)
        await classify(repository)
        assert not await repository.refresh(asked=True)
        assert repository.versions("colours") == [2]

    run(tmp_path, scenario)


def test_a_version_whose_engine_breaks_is_recovered(tmp_path: Path) -> None:
    colour_model.publish(tmp_path)

    async def scenario(repository: Repository) -> None:
        served = repository.find("colours", 0)
        served.engine.close()  # every batch fails from now on
        for _ in range(3):
            with pytest.raises(InternalError):
                await classify(repository)
        while not repository.ready():
            await asyncio.sleep(0.01)
        await classify(repository)

    run(tmp_path, scenario)
