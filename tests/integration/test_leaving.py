"""A process that is to end does so within its bound, whatever its threads are at: nobody waits for them any more.

The server is the real one; a single function of it never returns once a file is there.
"""

from __future__ import annotations

import io
import signal
import threading
from pathlib import Path

import pytest
from PIL import Image

from service.client import Client, ClientError, Options
from tests import colour_model
from tests.integration.server_process import serving
from tests.integration.test_dead_engine import patched
from tests.integration.test_faults import POLL, RED, until

HANGING = """
import os, time
from service import {module}

real = {module}.{function}


def hanging(*arguments):
    if os.path.exists({flag!r}):
        open({flag!r} + ".reached", "w").close()
        time.sleep(10000)
    return real(*arguments)


{module}.{function} = hanging
"""


@pytest.mark.parametrize("second_signal", [False, True])
@pytest.mark.parametrize("flags", [(), ("--workers", 2)])
def test_a_decoder_that_hangs_does_not_keep_the_process(
    models: Path, tmp_path: Path, second_signal: bool, flags: tuple[object, ...]
) -> None:
    colour_model.publish(models)
    flag, picture = tmp_path / "flag", io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    flag.touch()
    environment = patched(tmp_path, HANGING, flag, module="images", function="decode")
    drain = 1000 if second_signal else 1
    with serving(models, tmp_path / "log", "--drain-seconds", drain, *flags, environment=environment) as server:
        codes: list[str] = []

        def call() -> None:
            with Client(server.target, Options(attempts=1, timeout=1000)) as client:
                try:
                    client.classify([picture.getvalue()])
                except ClientError as error:
                    codes.append(error.code.name)

        caller = threading.Thread(target=call)
        caller.start()
        until(Path(f"{flag}.reached").exists)
        server.terminate()
        if second_signal:
            until(lambda: "draining" in server.log.read_text())
            server.process.send_signal(signal.SIGTERM)
        assert server.wait() == int(second_signal)
        caller.join(60)
        assert not caller.is_alive()
        assert set(codes) <= {"UNAVAILABLE", "CANCELLED"}
        log = server.log.read_text()
    assert "stopped" in log or flags, "the event loop is not held up"
    assert "the process ends although nobody waits for what these threads do: decode_" in log


@pytest.mark.parametrize("second_signal", [False, True])
def test_a_model_that_is_loaded_for_ever_does_not_keep_the_process(
    models: Path, tmp_path: Path, second_signal: bool
) -> None:
    colour_model.publish(models)
    flag = tmp_path / "flag"
    environment = patched(tmp_path, HANGING, flag, module="serving", function="load")
    with (
        serving(models, tmp_path / "log", "--drain-seconds", 1, *POLL, environment=environment) as server,
        Client(server.target) as client,
    ):
        flag.touch()
        colour_model.publish(models, version=2)
        until(Path(f"{flag}.reached").exists)
        client.classify(RED)
        server.terminate()
        if second_signal:
            server.process.send_signal(signal.SIGTERM)
        assert server.wait() in (0, int(second_signal))
        assert "these threads do: work_" in server.log.read_text()
