"""Which OpenVINO a session takes, the one in ONNX Runtime or the plugin: the same one for the life of the process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import onnxruntime as ort
import pytest

from service import providers
from service.manifest import MODEL_FILE
from service.providers import NAMES, ProviderError, Wanted
from tests import colour_model
from tests.integration.server_process import ENVIRONMENT
from tests.unit.service.test_precisions import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return colour_model.publish(tmp_path)


@pytest.fixture
def listed_after_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ONNX Runtime lists once a plugin with a device is registered; without Intel's processor it has no device."""
    listed = [*ort.get_available_providers(), NAMES["openvino"], NAMES["openvino"] + ".AUTO"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: listed)


def outcome(model: Path, provider: str = "openvino") -> object:
    """The providers of a session, or why there is none."""
    try:
        return providers.open_session(model, Wanted(provider)).get_providers()
    except ProviderError as error:
        return type(error), str(error)


def test_a_second_session_ends_as_the_first_did(folder: Path, request: pytest.FixtureRequest) -> None:
    first = outcome(folder / MODEL_FILE)
    assert outcome(folder / MODEL_FILE) == first
    request.getfixturevalue("listed_after_registration")
    assert outcome(folder / MODEL_FILE) == first


def test_auto_takes_the_same_provider_and_precision_each_time(folder: Path, request: pytest.FixtureRequest) -> None:
    def found() -> tuple[str, str]:
        (engine,) = load(folder, provider="auto").engines
        return engine.provider, engine.precision

    first = found()
    request.getfixturevalue("listed_after_registration")
    assert found() == first


@pytest.mark.usefixtures("listed_after_registration")
def test_a_plugin_in_the_list_is_not_taken_for_openvino_compiled_in() -> None:
    compiled_in = (Path(ort.capi.__file__).parent / "libonnxruntime_providers_openvino.so").exists()
    assert providers._openvino_is_built_in() is compiled_in


@pytest.mark.parametrize("name", ["openvino", "theirs"])
def test_it_does_not_matter_who_registered_the_plugin(folder: Path, name: str) -> None:
    """Under whatever name: in a process of its own, as ONNX Runtime keeps a plugin for the life of the process."""
    pytest.importorskip("onnxruntime_ep_openvino", reason="the plugin is not installed")
    code = f"""
        import sys
        from pathlib import Path
        import onnxruntime as ort
        if sys.argv[1] == "registered":
            import onnxruntime_ep_openvino as plugin
            ort.register_execution_provider_library({name!r}, plugin.get_library_path())
        from tests.unit.service.test_openvino_decision import outcome
        for _ in range(2):
            print(outcome(Path({str(folder / MODEL_FILE)!r})))
    """
    ran = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), before],
            env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=True,
        ).stdout
        for before in ("registered", "not registered")
    ]  # fmt: skip
    assert ran[0] == ran[1]
    assert len(set(ran[0].splitlines())) == 1
