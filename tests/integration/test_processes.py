"""A library that prints, fails or hangs does not confuse a server, nor keep it from ending."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.child_process import descendants, kill_tree
from service.client import Client
from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, command, serving
from tests.integration.stub_library import at_import_of

WORKERS = ("--workers", 2, "--threads", 1)
NOISE = r"""
import onnxruntime
def say():
    os.write(1, b'\xff*** EP Error ***\n{"metrics_port": 1\n{"error": "no"}\n')
    print("falling back to", ["CPUExecutionProvider"])
    sys.stdout.flush()
say()
whole = onnxruntime.InferenceSession.__init__
def opened(*arguments, **options):
    say()
    whole(*arguments, **options)
onnxruntime.InferenceSession.__init__ = opened
"""
SLOW_LOAD = """
import onnxruntime
def opened(*arguments, **options):
    open({mark!r}, "w").close()
    time.sleep(1000)
onnxruntime.InferenceSession.__init__ = opened
"""


def until(condition: Callable[[], object], patience: float = 90) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


@contextmanager
def starting(models: Path, environment: dict[str, str], *flags: object) -> Iterator[subprocess.Popen[str]]:
    """A server that need not become ready. It and its workers are gone when this ends."""
    arguments = command("serve", "--model-repository", models, "--port", 0, "--metrics-port", 0, "--provider", "cpu")
    with subprocess.Popen(
        [*arguments, *map(str, flags)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        errors="replace",
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                kill_tree(process.pid)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status, and what it said of itself."""
    children = descendants(process.pid)
    _, said = process.communicate(timeout=90)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    return process.returncode, said


@pytest.mark.parametrize("flags", [(), WORKERS], ids=["alone", "workers"])
def test_a_library_that_prints_does_not_hold_up_the_start(models: Path, tmp_path: Path, flags: tuple[object]) -> None:
    colour_model.publish(models)
    environment = at_import_of("service.runners", NOISE, tmp_path / "stub")
    with serving(models, tmp_path / "log", "--provider", "cpu", *flags, environment=environment) as server:
        with Client(server.target) as client:
            assert client.classify([colour_model.plain((200, 10, 10))])[0].best.label == "red"
        server.terminate()
        assert server.wait() == 0
        assert [line.split()[0] for line in server.announced] == ["serving", "gRPC", "metrics", "page", "try"]
        assert "EP Error" in server.log.read_text(errors="replace")


def test_the_supervisor_of_workers_is_without_onnx_runtime() -> None:
    code = "import sys, service.serve; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == 0


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('no usable driver')", "ImportError('no usable driver')"),
        ("os.abort()", "killed by SIGABRT"),
        ("os._exit(7)", "exit status 7"),
        ("print('{}', flush=True); os._exit(0)", "exit status 0"),
    ],
)
def test_a_worker_that_dies_at_its_start_ends_the_start_with_its_reason(
    models: Path, tmp_path: Path, code: str, reason: str
) -> None:
    colour_model.publish(models)
    with starting(models, at_import_of("onnxruntime", code, tmp_path / "stub"), *WORKERS) as process:
        status, said = ended(process)
    assert status == 1
    assert "did not start: " + reason in said.splitlines()[-1]


def test_the_start_of_workers_ends_with_the_reason_of_the_model_that_does_not_load(
    models: Path, tmp_path: Path
) -> None:
    (colour_model.publish(models) / "model.onnx").write_bytes(b"garbage")
    environment = at_import_of("service.runners", NOISE, tmp_path / "stub")
    with starting(models, environment, *WORKERS) as process:
        status, said = ended(process)
    assert status == 1
    last = said.splitlines()[-1]
    assert "did not start: colours version 1 is not served" in last
    assert "model.onnx" in last


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("ignores", [False, True], ids=["hears signals", "hears no signals"])
@pytest.mark.parametrize("flags", [(), WORKERS], ids=["alone", "workers"])
def test_a_signal_ends_a_server_whose_library_hangs_while_it_is_imported(
    models: Path, tmp_path: Path, flags: tuple[object], ignores: bool, number: signal.Signals
) -> None:
    if ignores and not flags:
        pytest.skip("nobody but the kernel could end a single process that hears no signals")
    colour_model.publish(models)
    mark = tmp_path / "hangs"
    code = "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\n" if ignores else ""
    code += f"open({str(mark)!r}, 'w').close(); time.sleep(1000)"
    with starting(models, at_import_of("onnxruntime", code, tmp_path / "stub"), *WORKERS[: len(flags)]) as process:
        until(mark.exists)
        process.send_signal(number)
        status, _ = ended(process)
    assert status == 0


@pytest.mark.parametrize("flags", [(), WORKERS], ids=["alone", "workers"])
def test_sigterm_ends_a_server_whose_model_takes_for_ever_to_load(
    models: Path, tmp_path: Path, flags: tuple[object]
) -> None:
    colour_model.publish(models)
    mark = tmp_path / "loading"
    environment = at_import_of("service.runners", SLOW_LOAD.format(mark=str(mark)), tmp_path / "stub")
    with starting(models, environment, *flags) as process:
        until(mark.exists)
        process.send_signal(signal.SIGTERM)
        status, said = ended(process)
    assert status == 0
    assert "Traceback" not in said


def test_sigterm_does_not_wait_for_a_version_that_is_being_loaded(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", "--provider", "cpu") as server:
        pass
    mark = tmp_path / "loading"
    slow = f"""
import onnxruntime
whole, times = onnxruntime.InferenceSession.__init__, []
def opened(self, model, *arguments, **options):
    if os.path.exists({str(models / "colours" / "2")!r}):
        open({str(mark)!r}, "w").close()
        time.sleep(1000)
    whole(self, model, *arguments, **options)
onnxruntime.InferenceSession.__init__ = opened
"""
    environment = at_import_of("service.runners", slow, tmp_path / "stub")
    with serving(models, tmp_path / "log", "--provider", "cpu", environment=environment) as server:
        colour_model.publish(models, version=2)
        server.process.send_signal(signal.SIGHUP)
        until(mark.exists)
        server.terminate()
        assert server.wait() == 0


def test_a_supervisor_that_fails_ends_with_a_message_and_its_workers(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    code = """
from service import merged_metrics
def look(self):
    raise KeyError("a fault of ours")
merged_metrics.MergedMetrics.look = look
"""
    with starting(models, at_import_of("service.serve", code, tmp_path / "stub"), *WORKERS) as process:
        status, said = ended(process)
    assert status == 1
    assert "the supervisor of the workers fails: KeyError('a fault of ours')" in said.splitlines()[-1]
