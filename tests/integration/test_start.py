"""Starting: what is announced, and what is refused with a reason."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from service.manifest import GOLDEN_FILE, MODEL_FILE, file_entry
from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, ServerProcess, cli, serving


def start(repository: Path, *flags: object) -> tuple[int, str]:
    """Start a server that should refuse to; its exit status and what it said."""
    result = cli("serve", "--model-repository", repository, "--port", 0, "--metrics-port", 0, *flags)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr


def reseal(folder: Path) -> None:
    """Make the manifest's hashes right again after a file was changed."""
    files = {name: vars(file_entry(folder / name)) for name in (MODEL_FILE, GOLDEN_FILE)}
    colour_model.edit_manifest(folder, files=files)


def test_it_says_what_it_serves_where_and_what_to_try(server: ServerProcess) -> None:
    text = "\n".join(server.announced)
    for part in (
        "colours version 1",
        "5 classes",
        "ExecutionProvider",
        server.target,
        "/metrics",
        "cifarserve classify",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format_version": 99}, "format_version"),
        ({"labels": None}, "labels: missing"),
        ({"labels": ["one", "two"]}, "outputs"),
        ({"version": 7}, "version 7"),
        ({"compute_precisions": ["fp64", "fp32"]}, "fp64"),
        ({"evaluation": {}}, "evaluation.accuracy"),
        ({"files": {"../model.onnx": {"sha256": "", "size": 1}}}, "../model.onnx"),
    ],
)
def test_a_wrong_manifest_is_refused_by_its_key(models: Path, changes: dict[str, object], reason: str) -> None:
    colour_model.edit_manifest(colour_model.publish(models), **changes)
    status, said = start(models)
    assert status == 1
    assert reason in said


def test_a_changed_model_file_is_refused(models: Path) -> None:
    path = colour_model.publish(models) / MODEL_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    status, said = start(models)
    assert status == 1
    assert "SHA-256" in said


def test_a_truncated_model_with_a_right_hash_is_refused(models: Path) -> None:
    folder = colour_model.publish(models)
    (folder / MODEL_FILE).write_bytes((folder / MODEL_FILE).read_bytes()[:-40])
    reseal(folder)
    status, said = start(models)
    assert status == 1
    assert MODEL_FILE in said


def test_a_model_that_answers_otherwise_than_pytorch_did_is_refused(models: Path) -> None:
    folder = colour_model.publish(models)
    images = colour_model.distinct(8)
    golden = colour_model.expected(images).astype(np.float32)
    golden[3] = golden[3][::-1]
    np.savez(folder / GOLDEN_FILE, image=images, probabilities=golden)
    reseal(folder)
    status, said = start(models)
    assert status == 1
    assert "golden outputs differ" in said


def test_a_model_with_another_signature_is_refused(models: Path) -> None:
    folder = colour_model.publish(models)
    model = colour_model.build()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, folder / MODEL_FILE)
    reseal(folder)
    status, said = start(models)
    assert status == 1
    assert "input must be image" in said


def test_an_empty_repository_is_refused(models: Path) -> None:
    status, said = start(models)
    assert status == 1
    assert str(models) in said


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_an_error_and_never_a_silent_fall_back(models: Path, provider: str) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    colour_model.publish(models)
    status, said = start(models, "--provider", provider)
    assert status == 1
    assert "ExecutionProvider" in said


def test_a_wrong_setting_is_a_usage_error_that_names_it(models: Path) -> None:
    status, said = start(models, "--max-batch-size", "many")
    assert status == 2
    assert "--max-batch-size" in said


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_a_port_that_is_taken_is_an_error(models: Path, flag: str) -> None:
    colour_model.publish(models)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, said = start(models, flag, taken.getsockname()[1])
    assert status == 1
    assert flag.removeprefix("--").replace("-", "_") in said


def test_a_server_starts_again_at_once_on_the_ports_it_had(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "before") as before:
        before.metrics()  # whose connection the kernel remembers for a minute, on the side that closed it
    port, metrics_port = before.target.rpartition(":")[2], before.metrics_url.split(":")[2].split("/")[0]
    with serving(models, tmp_path / "after", "--metrics-port", metrics_port, port=int(port)) as after:
        assert (after.target, after.metrics_url) == (before.target, before.metrics_url)


@pytest.mark.parametrize("module", ["service.runners", "training.quantize"])
def test_onnx_runtime_leaves_nothing_at_home_and_reports_to_nobody(models: Path, tmp_path: Path, module: str) -> None:
    """Its telemetry begins by writing an identifier into the home folder, as soon as there is a session."""
    model = colour_model.publish(models) / MODEL_FILE
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in ENVIRONMENT.items() if key not in ("ORT_DISABLE_TELEMETRY", "CI")}
    code = f"import {module}, onnxruntime; onnxruntime.InferenceSession({os.fspath(model)!r})"
    subprocess.run([sys.executable, "-c", code], env=kept | {"HOME": str(home), "XDG_CACHE_HOME": ""}, check=True)
    assert list(home.iterdir()) == []
