"""A fall-back is never silent: a version that is computed more slowly than it could be is logged and counted."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from service import providers, serving
from service.config import Settings
from service.engine import Engine
from service.fallbacks import Fallbacks
from service.manifest import GOLDEN_FILE, MODEL_FILE, file_entry
from service.metrics import Metrics
from service.providers import NAMES, Wanted
from service.repository import Repository
from service.serving import LoadError
from tests import colour_model
from tests.integration.openvino_here import needs_openvino
from tests.integration.server_process import ROOT
from tests.unit.service.test_precisions import COMPUTE, fast_int8, load, publish

__all__ = ["fast_int8"]
CPU = NAMES["cpu"]


def publish_fp32(repository: Path, version: int) -> Path:
    return colour_model.publish(repository, version=version)


@asynccontextmanager
async def repository_of(folder: Path, **settings: object) -> AsyncIterator[tuple[Repository, Metrics]]:
    metrics = Metrics()
    chosen = {"provider": "cpu", "threads": 1, "max_batch_size": 4, "max_images_per_request": 4} | settings
    repository = Repository(Settings(model_repository=folder, **chosen), metrics, lambda: None)
    await repository.start()
    try:
        yield repository, metrics
    finally:
        await repository.close()


def counted(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Fall-backs by model, version, provider and precision."""
    (family,) = (one for one in metrics.registry.collect() if one.name == "cifarserve_fallbacks")
    return {
        tuple(sample.labels[name] for name in ("model", "version", "provider", "precision")): sample.value
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    }


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.usefixtures("fast_int8")
def test_a_version_in_a_slower_precision_than_the_one_before_it_is_a_fallback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path)  # version 1 may be computed in int8

    async def run() -> None:
        async with repository_of(tmp_path) as (repository, metrics):
            assert counted(metrics) == {}
            publish_fp32(tmp_path, 2)
            assert await repository.refresh(asked=True) == []
            assert counted(metrics) == {("colours", "2", CPU, "fp32"): 1}
            publish_fp32(tmp_path, 3)
            assert await repository.refresh(asked=True) == []
            assert counted(metrics) == {("colours", "2", CPU, "fp32"): 1}, "version 3 is as version 2"

    asyncio.run(run())
    (said,) = warnings(caplog)
    assert said == (
        f"fallback: colours version 2 computes on {CPU} in fp32, but colours version 1 computes on {CPU} in int8:"
        " it may be computed in fp32"
    )


@pytest.mark.usefixtures("fast_int8")
def test_a_version_whose_fastest_precision_does_not_work_is_a_fallback_from_the_first_load_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, scale=-1.0)

    async def run() -> None:
        async with repository_of(tmp_path) as (repository, metrics):
            assert counted(metrics) == {("colours", "1", CPU, "fp32"): 1}
            await repository.unload("colours")
            await repository.load("colours")
            assert counted(metrics) == {("colours", "1", CPU, "fp32"): 2}

    asyncio.run(run())
    fallbacks = [said for said in warnings(caplog) if said.startswith("fallback:")]
    assert len(fallbacks) == 2
    assert all("golden outputs differ" in said and "in int8" in said for said in fallbacks)


@pytest.mark.usefixtures("fast_int8")
def test_what_was_asked_for_is_no_fallback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish(tmp_path)

    async def run() -> None:
        async with repository_of(tmp_path) as (repository, metrics):
            config = tmp_path / "colours" / "config.toml"
            for precision in ("fp32", "int8", "auto", "fp32"):
                config.write_text(f'precision = "{precision}"\n')
                assert await repository.refresh(asked=True) == []
            assert counted(metrics) == {}

    asyncio.run(run())
    assert warnings(caplog) == []


@pytest.mark.usefixtures("fast_int8")
def test_going_back_to_a_version_as_it_was_is_no_fallback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish_fp32(tmp_path, 1)

    async def run() -> None:
        async with repository_of(tmp_path) as (repository, metrics):
            (second := publish(tmp_path / "staged")).rename(tmp_path / "colours" / "2")
            colour_model.edit_manifest(tmp_path / "colours" / "2", version=2)
            assert second.name == "1"
            assert await repository.refresh(asked=True) == []
            (tmp_path / "colours" / "config.toml").write_text("versions = [1]\n")
            assert await repository.refresh(asked=True) == []
            assert repository.versions("colours") == [1]
            assert counted(metrics) == {}

    asyncio.run(run())
    assert warnings(caplog) == []


def as_if(provider: str, loaded: serving.Loaded) -> serving.Loaded:
    """As if that provider computed it, on a machine that does not have it."""
    for engine in loaded.engines:
        engine.provider = NAMES[provider]
    return loaded


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., serving.Loaded]:
    def load_it(name: str, version: int, provider: str, wanted: str = "auto") -> serving.Loaded:
        folder = tmp_path / name / str(version)
        if not folder.exists():
            colour_model.publish(tmp_path, name, version)
        compute = dataclasses.replace(COMPUTE, provider=wanted)
        real = dataclasses.replace(COMPUTE, provider="cpu")
        return as_if(provider, dataclasses.replace(serving.load(folder, name, version, real), compute=compute))

    return load_it


def test_auto_that_ends_on_a_slower_provider_than_before_is_a_fallback_for_any_model(
    loaded: Callable[..., serving.Loaded],
) -> None:
    fallbacks = Fallbacks()
    assert fallbacks.notice(loaded("colours", 1, "openvino")) == ""
    said = fallbacks.notice(loaded("colours", 2, "cpu"))
    assert said.startswith(f"colours version 2 computes on {CPU} in fp32, but colours version 1 computes on OpenVINO")
    assert "but colours version 1" in fallbacks.notice(loaded("colours", 3, "cpu")), "the one before fell back, too"
    assert "but colours version 1" in fallbacks.notice(loaded("other", 1, "cpu"))
    assert fallbacks.notice(loaded("other", 2, "cpu", wanted="cpu")) == "", "as asked"
    assert fallbacks.notice(loaded("other", 3, "cuda")) == "", "better than before"
    assert "but other version 3" in fallbacks.notice(loaded("colours", 1, "openvino")), "slower than what auto can find"


def test_a_provider_that_is_installed_and_does_not_work_is_named_and_nothing_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """As with onnxruntime-gpu on a machine without a driver: ONNX Runtime drops the provider, and goes on without."""
    listed = [NAMES["cuda"], *ort.get_available_providers()]
    monkeypatch.setattr(ort, "get_available_providers", lambda: listed)
    monkeypatch.setattr(ort, "preload_dlls", lambda: sys.stdout.write("Failed to load libcublas.so\n"), raising=False)
    publish_fp32(tmp_path, 1)

    async def run() -> None:
        async with repository_of(tmp_path, provider="auto") as (repository, metrics):
            ((key, value),) = counted(metrics).items()
            assert (key[:2], value) == (("colours", "1"), 1)
            assert key[2] == repository.models()[0].engine.provider != NAMES["cuda"]

    asyncio.run(run())
    (said,) = (said for said in warnings(caplog) if said.startswith("fallback:"))
    assert f"{NAMES['cuda']} was asked for, but does not run" in said
    assert any("Failed to load libcublas.so" in said for said in warnings(caplog))
    assert capfd.readouterr().out == ""


def test_a_provider_that_is_not_installed_is_no_fallback_and_its_absence_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if NAMES["cuda"] in ort.get_available_providers():
        pytest.skip("this onnxruntime has GPU providers")
    caplog.set_level(logging.INFO)
    load(publish_fp32(tmp_path, 1), provider="auto")
    (record,) = (record for record in caplog.records if "install the extra [gpu]" in record.getMessage())
    assert record.levelno == logging.INFO
    assert warnings(caplog) == []


def publish_for_the_cpu_alone(repository: Path, version: int) -> None:
    """Its last step is an operator of ai.onnx.ml, which OpenVINO does not have."""
    folder = colour_model.publish(repository, version=version)
    model = onnx.load(folder / MODEL_FILE)
    for node in model.graph.node:
        node.output[:] = ["unscaled" if name == "logits" else name for name in node.output]
    scaler = helper.make_node("Scaler", ["unscaled"], ["logits"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])
    model.graph.node.insert(len(model.graph.node) - 1, scaler)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    onnx.save(model, folder / MODEL_FILE)
    entries = {name: dataclasses.asdict(file_entry(folder / name)) for name in (MODEL_FILE, GOLDEN_FILE)}
    colour_model.edit_manifest(folder, files=entries)


@needs_openvino
def test_a_version_that_openvino_does_not_take_after_one_that_it_took_is_a_fallback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_fp32(tmp_path, 1)

    async def run() -> None:
        async with repository_of(tmp_path, provider="auto") as (repository, metrics):
            assert repository.models()[0].engine.provider == NAMES["openvino"]
            assert counted(metrics) == {}
            publish_for_the_cpu_alone(tmp_path, 2)
            assert await repository.refresh(asked=True) == []
            assert counted(metrics) == {("colours", "2", CPU, "fp32"): 1}

    asyncio.run(run())
    (said,) = (said for said in warnings(caplog) if said.startswith("fallback:"))
    assert f"colours version 2 computes on {CPU} in fp32, but colours version 1 computes on OpenVINO" in said
    assert "Scaler" in said


@pytest.mark.usefixtures("fast_int8")
def test_instances_of_a_version_are_all_on_one_provider_and_in_one_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a device has the memory for one instance and not for the next."""
    real = providers.open_session
    opened: list[str] = []

    def second_int8_fails(model: Path, wanted: Wanted) -> ort.InferenceSession:
        opened.append(wanted.precision)
        if opened == ["int8", "int8"]:
            raise providers.ProviderError("out of memory")
        return real(model, wanted)

    monkeypatch.setattr(providers, "open_session", second_int8_fails)
    folder = publish(tmp_path)
    engines = load(folder, instances=3).engines
    assert [engine.precision for engine in engines] == ["fp32"] * 3
    assert opened == ["int8", "int8", "fp32", "fp32", "fp32"]
    opened.clear()
    with pytest.raises(LoadError, match="instance 2 of 3: out of memory"):
        load(folder, instances=3, precision="int8")


def test_no_session_has_onnx_runtimes_own_fall_back(tmp_path: Path) -> None:
    folder = publish_fp32(tmp_path, 1)
    assert providers.open_session(folder / MODEL_FILE, Wanted("cpu"))._enable_fallback is False
    assert Engine(folder / MODEL_FILE).run(np.zeros((1, 8, 8, 3), np.uint8)).logits.shape == (1, 5)
    found = 0
    for part in ("service", "training", "benchmarks", "deploy"):
        for path in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("InferenceSession"):
                    found += 1
                    assert "enable_fallback=False" in ast.unparse(node), f"{path}:{node.lineno}"
    assert found >= 3
