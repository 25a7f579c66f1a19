"""The log: JSON lines for machines with the events of a server's life, access lines when asked for, ids of faults."""

from __future__ import annotations

import json
import logging
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from service import logs
from service.client import Client, ClientError
from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, ServerProcess, command, serving


def lines(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def test_a_servers_life_is_json_lines_where_there_is_no_terminal(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log") as server:
        with Client(server.target) as client:
            client.classify([colour_model.plain((255, 0, 0))])
        server.terminate()
        assert server.wait() == 0
        written = lines(server)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in written)
    # Which providers are not on this machine depends on it.
    messages = [
        line["message"] for line in written if line["level"] == "info" and "is computed on" not in line["message"]
    ]
    assert [message.split(" in ")[0] for message in messages] == [
        "loaded colours version 1",
        "colours serves [1] now, before []",
        "draining",
        "stopped",
    ]


@pytest.mark.parametrize("flags", [("--log-level", "debug"), ("--access-log-share", 1)])
def test_each_request_has_one_access_line_when_they_are_wanted(
    models: Path, tmp_path: Path, flags: tuple[object, ...]
) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", *flags) as server, Client(server.target) as client:
        client.classify([colour_model.plain((255, 0, 0))])
        with pytest.raises(ClientError):
            client.classify([b"no picture"])
        with pytest.raises(ClientError):
            client.classify([b""], model="other")
        server.terminate()
        assert server.wait() == 0
        found = [line for line in lines(server) if line["logger"] == "service.access"]
    assert [(line["code"], line["model"], line["version"]) for line in found] == [
        ("OK", "colours", 1),
        ("INVALID_ARGUMENT", "colours", 1),
        ("NOT_FOUND", None, None),
    ]
    assert 0 < found[0]["compute_seconds"] < found[0]["seconds"]


def test_a_share_of_the_requests_gets_a_line() -> None:
    chosen = sum(logs.AccessLog(0.25).wants() for _ in range(4000))
    assert 800 < chosen < 1200  # 7 standard deviations
    assert not any(logs.AccessLog(0.0).wants() for _ in range(100))


def test_text_is_for_people_and_keeps_the_same_fields() -> None:
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.TextFormatter())
    record = logging.makeLogRecord({"name": "service.access", "levelname": "INFO", "msg": "request", "code": "OK"})
    handler.handle(record)
    assert stream.getvalue().endswith("INFO service.access: request code=OK\n")


def test_a_stack_is_one_field_of_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.makeLogRecord(
            {"msg": "internal error %s", "args": ("1f",), "exc_info": (type(error), error, error.__traceback__)}
        )
    line = json.loads(logs.JsonFormatter().format(record))
    assert line["message"] == "internal error 1f"
    assert line["exception"].endswith("ValueError: two\nlines")


@pytest.fixture
def free_target(models: Path, tmp_path: Path) -> str:
    """An address where nothing listens any more."""
    colour_model.publish(models)
    with serving(models, tmp_path / "log") as server:
        return server.target


def health(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("health", *arguments), env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=60
    )


def test_health_is_0_for_what_serves_and_1_for_all_else(server: ServerProcess, free_target: str) -> None:
    assert health("--target", server.target).returncode == 0
    assert health("--target", server.target, "--service", "colours").stdout == "SERVING\n"
    # Where it listens it learns like the server, so that one image needs no second setting.
    port = server.target.rsplit(":")[-1]
    assert health("--service", "cifarserve.liveness", CIFARSERVE_PORT=port).returncode == 0
    unknown = health("--target", server.target, "--service", "other")
    assert (unknown.returncode, "NOT_FOUND" in unknown.stderr) == (1, True)
    gone = health("--target", free_target)
    assert (gone.returncode, "UNAVAILABLE" in gone.stderr) == (1, True)
    assert health(CIFARSERVE_PORT="many").returncode == 2


def test_liveness_stays_good_while_the_server_drains(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", "--lame-duck-seconds", 60) as server:
        server.terminate()
        while health("--target", server.target).returncode == 0:
            pass
        assert health("--target", server.target, "--service", "cifarserve.liveness").returncode == 0
        server.terminate()  # a second signal: do not wait out the lame-duck time
        assert server.wait() == 1


def test_a_caller_that_leaves_as_its_answer_is_sent_is_no_error_in_the_log() -> None:
    class ExecuteBatchError(Exception):
        """As gRPC's, which cannot be imported without its private module."""

    handler = logging.StreamHandler(stream := StringIO())
    handler.addFilter(logs._is_no_farewell)
    for name, error in (
        ("grpc._cython.cygrpc", ExecuteBatchError("a farewell")),
        ("grpc._cython.cygrpc", OSError("a fault of gRPC's")),
        ("service.x", ExecuteBatchError("another's")),
        ("service.x", None),
    ):
        fields = {"name": name, "msg": str(error), "exc_info": (type(error), error, None) if error else None}
        handler.handle(logging.makeLogRecord(fields))
    said = stream.getvalue()
    assert "a farewell" not in said
    assert all(text in said for text in ("a fault of gRPC's", "another's", "None"))
