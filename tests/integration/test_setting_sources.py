"""A running server does what the highest source says, and says so when it overrules another."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from service.cli import main
from service.client import Client
from tests import colour_model
from tests.integration import server_process
from tests.integration.server_process import cli, serving
from tests.unit.service.test_setting_sources import INJECTED

TUNED = 'provider = "openvino"\nprovider_options = { NUM_STREAMS = 2 }\nbuckets = [4, 64]\nthreads = 1\n'


@pytest.fixture
def models(tmp_path: Path) -> Path:
    colour_model.publish(tmp_path / "models")
    (tmp_path / "models" / "colours" / "config.toml").write_text(TUNED)
    return tmp_path / "models"


def provider(target: str) -> str:
    with Client(target) as client:
        (answer,) = client.classify([colour_model.plain((200, 10, 10))])
        assert answer.best.label == "red"
        return client.models()[0].provider


def test_a_flag_is_obeyed_against_config_toml_and_said_once(models: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    polls = ("--model-control", "poll", "--poll-seconds", 0.05)
    with serving(models, log, "--provider", "cpu", *polls) as server:
        assert provider(server.target) == "CPUExecutionProvider"
        assert 'config.toml: provider: \\"openvino\\" is overruled by --provider cpu' in log.read_text()
        (models / "colours" / "config.toml").write_text(TUNED + "cache_bytes = 1000\n")
        patience = time.monotonic() + 30
        while server.metric("cifarserve_cache_bytes", model="colours") == 0:  # several looks at the file
            assert time.monotonic() < patience
            provider(server.target)
        assert log.read_text().count("is overruled by --provider cpu") == 1
        (models / "colours" / "config.toml").write_text('provider = "cuda"\n')
        while '\\"cuda\\" is overruled by --provider cpu' not in log.read_text():
            assert time.monotonic() < patience
            time.sleep(0.02)
        assert provider(server.target) == "CPUExecutionProvider"


def test_workers_obey_a_variable_against_config_toml(models: Path, tmp_path: Path) -> None:
    environment = {"CIFARSERVE_PROVIDER": "cpu"}
    with serving(models, tmp_path / "log", "--workers", 2, environment=environment) as server:
        assert provider(server.target) == "CPUExecutionProvider"
    assert "is overruled by CIFARSERVE_PROVIDER cpu" in (tmp_path / "log").read_text()


def test_a_load_call_that_a_flag_contradicts_is_refused_by_name(models: Path, tmp_path: Path) -> None:
    (models / "colours" / "config.toml").unlink()
    with (
        serving(models, tmp_path / "log", "--provider", "cpu") as server,
        triton.InferenceServerClient(server.target) as client,
    ):
        with pytest.raises(triton.InferenceServerException, match=r"provider: .*overruled by --provider cpu") as caught:
            client.load_model("colours", config='{"provider": "cuda"}')
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        client.load_model("colours", config='{"threads": 1, "provider": "cpu"}')
        assert provider(server.target) == "CPUExecutionProvider"


def test_a_server_starts_beside_what_kubernetes_injects_and_says_what_it_ignored(tmp_path: Path) -> None:
    colour_model.publish(tmp_path / "models")
    with serving(tmp_path / "models", tmp_path / "log", "--provider", "cpu", environment=INJECTED) as server:
        assert provider(server.target) == "CPUExecutionProvider"
    log = (tmp_path / "log").read_text()
    assert "ignored" in log
    assert "CIFARSERVE_PORT_8001_TCP_ADDR" in log


def test_a_mistyped_variable_ends_the_start_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(server_process.ENVIRONMENT, "CIFARSERVE_PROT", "9001")
    done = cli("serve")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "cifarserve: CIFARSERVE_PROT: there is no such setting; did you mean CIFARSERVE_PORT?"
    ]


def test_verify_computes_as_the_settings_say(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CIFARSERVE_PROVIDER", "cpu")
    assert main(["models", "verify", "--models", str(models)]) == 0
    assert "golden answers in fp32 on CPUExecutionProvider" in capsys.readouterr().out
    monkeypatch.setenv("CIFARSERVE_PROVIDER", "tensorrt")
    assert main(["models", "verify", "--models", str(models)]) == 1
    assert "TensorrtExecutionProvider" in capsys.readouterr().err
