"""Engines whose threads end by a fault of the server's own, and one dead engine among healthy ones.

The server is the real one; a single function of it raises, once or for one engine, when a file is there.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc

from service.client import to_client_error
from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, ServerProcess, serving
from tests.integration.test_faults import RED, load_on, until
from tests.integration.test_lost_engine import ask, probe

# Raises once for each time that the file is made.
ONCE = """
import os
from service.{module} import {owner}

real = {owner}.{function}


def raising(*arguments):
    try:
        os.unlink({flag!r})
    except FileNotFoundError:
        return real(*arguments)
    raise RuntimeError("dictionary changed size during iteration")


{owner}.{function} = raising
"""

# The runner that was made second raises while the file is there: one of two engines.
ONE_OF_TWO = """
import os
from service import runners

made, compute = [], runners.HostRunner.__call__


def raising(self, images):
    if self not in made:
        made.append(self)
    if made.index(self) == 1 and os.path.exists({flag!r}):
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
    return compute(self, images)


runners.HostRunner.__call__ = raising
"""

FAILING = """
import os, time
from service import runners

compute = runners.HostRunner.__call__


def raising(self, images):
    if not os.path.exists({flag!r}):
        return compute(self, images)
    time.sleep(0.2)  # long enough for others to wait for the next batch
    raise RuntimeError("a secret detail")


runners.HostRunner.__call__ = raising
"""


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    return tmp_path / "flag"


def patched(folder: Path, code: str, flag: Path, **names: str) -> dict[str, str]:
    """The environment of a server in which `code` runs first."""
    (folder / "code").mkdir()
    (folder / "code" / "sitecustomize.py").write_text(code.format(flag=str(flag), **names))
    return {"PYTHONPATH": f"{folder / 'code'}:{ENVIRONMENT['PYTHONPATH']}"}


def loads(server: ServerProcess) -> int:
    return server.log.read_text().count("loaded colours version")


@pytest.mark.parametrize(
    ("module", "owner", "function"),
    [
        ("version_metrics", "VersionMetrics", "left_queue"),
        ("pace", "Pace", "too_late"),
        ("batching", "Batcher", "_next_batch"),
    ],
)
def test_an_engine_whose_thread_ends_keeps_nobody_waiting_and_is_loaded_again(
    models: Path, tmp_path: Path, flag: Path, module: str, owner: str, function: str
) -> None:
    colour_model.publish(models)
    environment = patched(tmp_path, ONCE, flag, module=module, owner=owner, function=function)
    with serving(models, tmp_path / "log", environment=environment) as server, load_on(server) as load:
        flag.touch()
        until(lambda: loads(server) == 2)
        load.more()
        load.end()
        assert not load.errors.keys() - {"INTERNAL", "UNAVAILABLE"}, "nobody waited until the deadline"
        assert server.metric("cifarserve_engine_failures_total") == 1
        log = server.log.read_text()
        assert "colours version 1 is not ready: the thread of an engine of it ended; it is being loaded again" in log
        assert log.count("RuntimeError: dictionary changed size during iteration") == 1
        assert probe(server, "/ready") == 200


def test_an_engine_whose_thread_ends_before_its_version_is_in_service_is_loaded_again(
    models: Path, tmp_path: Path, flag: Path
) -> None:
    for version in (1, 2):
        colour_model.publish(models, version=version)
    (models / "colours" / "config.toml").write_text("versions = 'all'\ntarget_latency = 1.0\n")
    flag.touch()
    environment = patched(tmp_path, ONCE, flag, module="engine", owner="Engine", function="largest_batch")
    with serving(models, tmp_path / "log", environment=environment) as server:
        until(lambda: loads(server) == 3)
        for version in (1, 2):
            until(lambda version=version: ask(server, version=version) == "OK")
        assert probe(server, "/ready") == 200


def test_a_dead_engine_among_healthy_ones_leads_to_recovery(models: Path, tmp_path: Path, flag: Path) -> None:
    colour_model.publish(models)
    (models / "colours" / "config.toml").write_text("instances = 2\n")
    environment = patched(tmp_path, ONE_OF_TWO, flag)
    with serving(models, tmp_path / "log", environment=environment) as server, load_on(server) as load:
        flag.touch()
        until(lambda: loads(server) == 2)
        load.more()
        load.end()
        assert not load.errors.keys() - {"INTERNAL", "UNAVAILABLE"}
        assert server.metric("cifarserve_engine_failures_total") >= 3
        assert "an engine of it failed several batches in a row" in server.log.read_text()
        assert probe(server, "/ready") == 200


def test_the_callers_of_a_failed_batch_get_the_one_id_that_is_in_the_log(
    models: Path, tmp_path: Path, flag: Path
) -> None:
    colour_model.publish(models)
    environment = patched(tmp_path, FAILING, flag)
    with (
        serving(models, tmp_path / "log", environment=environment) as server,
        grpc.insecure_channel(server.target) as channel,
        ThreadPoolExecutor(20) as pool,
    ):
        stub = pb_grpc.ClassifierStub(channel)

        def fail(number: int) -> str:
            image = pb.Image(raw=pb.RawImage(rgb=RED[0].tobytes(), width=8, height=8))
            with pytest.raises(grpc.RpcError) as caught:
                stub.Classify(pb.ClassifyRequest(images=[image], id=f"photo-{number}"), timeout=20)
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            return to_client_error(caught.value).message.removeprefix("internal error ")

        flag.touch()
        told = list(pool.map(fail, range(20)))
        flag.unlink()
        log = server.log.read_text()
    lines = dict(re.findall(r"internal error (\w+): (colours version 1: a batch failed in the engine; .*)", log))
    assert lines.keys() == set(told)
    assert len(lines) < 20
    assert log.count("RuntimeError: a secret detail") == len(lines)
    for number, error_id in enumerate(told):
        assert f"'photo-{number}'" in lines[error_id]
