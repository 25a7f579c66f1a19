"""OpenVINO computes every session of a process, not the first alone: swaps, versions, instances, models, reloads."""

from __future__ import annotations

from pathlib import Path

import pytest
import tritonclient.grpc as triton

from service.cli import main
from tests import colour_model
from tests.integration.openvino_here import needs_openvino
from tests.integration.server_process import ServerProcess, serving
from tests.integration.test_lifecycle import EXPLICIT, POLL, configure, publish, until

pytestmark = needs_openvino
OPENVINO = "OpenVINOExecutionProvider"


def computed_by(server: ServerProcess) -> dict[tuple[str, str], str]:
    """The provider of each (model, version) that is served."""
    infos = [dict(labels) for name, labels in server.metrics() if name == "cifarserve_model_info"]
    return {(one["model"], one["version"]): one["provider"] for one in infos}


@pytest.mark.parametrize("provider", ["auto", "openvino"])
def test_a_version_that_is_swapped_in_computes_on_openvino_too(models: Path, tmp_path: Path, provider: str) -> None:
    publish(models, 1)
    with serving(models, tmp_path / "log", *POLL, "--provider", provider) as server:
        assert computed_by(server) == {("colours", "1"): OPENVINO}
        for version in (2, 3):
            publish(models, version)
            until(lambda expected={("colours", str(version)): OPENVINO}: computed_by(server) == expected)


@pytest.mark.parametrize("provider", ["auto", "openvino"])
def test_two_versions_of_two_models_with_two_instances_compute_on_openvino(
    models: Path, tmp_path: Path, provider: str
) -> None:
    for version in (1, 2):
        publish(models, version)
        colour_model.publish(models, "other", version)
    configure(models, 'versions = "all"\ninstances = 2\nthreads = 1\n')
    with serving(models, tmp_path / "log", "--provider", provider) as server:
        assert computed_by(server) == {
            ("colours", "2"): OPENVINO, ("colours", "1"): OPENVINO, ("other", "2"): OPENVINO
        }  # fmt: skip


def test_a_model_that_is_unloaded_and_loaded_again_computes_on_openvino(models: Path, tmp_path: Path) -> None:
    publish(models, 1)
    flags = (*EXPLICIT, "--load-model", "colours", "--provider", "openvino")
    with serving(models, tmp_path / "log", *flags) as server, triton.InferenceServerClient(server.target) as client:
        for _ in range(2):
            client.unload_model("colours")
            until(lambda: computed_by(server) == {})
            client.load_model("colours")
            assert computed_by(server) == {("colours", "1"): OPENVINO}


def test_verify_computes_every_version_on_openvino(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for version in (1, 2, 3):
        publish(models, version)
    assert main(["models", "verify", "--models", str(models)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(f"golden answers in fp32 on {OPENVINO}" in line for line in lines)
