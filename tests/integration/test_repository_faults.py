"""A repository with something wrong in it: the rest is served, and the server says what is not served and why."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from service import health
from service.client import Client, ClientError
from service.manifest import MANIFEST_FILE, MODEL_FILE
from tests import colour_model
from tests.integration.server_process import ServerProcess, serving
from tests.integration.test_lifecycle import EXPLICIT, POLL, ask, configure, publish, ready, states, until


def damage(folder: Path) -> None:
    """Other bytes of the same length."""
    model = folder / MODEL_FILE
    model.write_bytes(bytes(reversed(model.read_bytes())))


def health_of(server: ServerProcess, name: str = "") -> str:
    return health.check(server.target, name, 10)


@pytest.mark.parametrize(
    "flags", [(*EXPLICIT, "--load-model", "colours,other"), POLL, ()], ids=["explicit", "poll", "none"]
)
def test_what_can_be_served_is_and_the_server_is_not_ready_until_the_rest_is(
    models: Path, tmp_path: Path, flags: tuple[object, ...]
) -> None:
    publish(models, 1)
    damage(publish(models, 2))
    other = colour_model.publish(models, "other")
    whole = (other / MODEL_FILE).read_bytes()
    damage(other)
    with serving(models, tmp_path / "log", *flags) as server:
        assert ready(server) == [1], "the version below the broken one"
        assert (health_of(server), health_of(server, "colours"), health_of(server, "other")) == (
            "NOT_SERVING", "SERVING", "NOT_SERVING",
        )  # fmt: skip
        assert "SHA-256" in states(server)["other", "1"][1]
        with Client(server.target) as client, pytest.raises(ClientError) as caught:
            client.classify(list(colour_model.distinct(1)), model="other")
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert server.metric("cifarserve_load_failures_total", model="other") >= 1
        (other / MODEL_FILE).write_bytes(whole)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: health_of(server) == "SERVING")


@pytest.mark.parametrize("flags", [(), EXPLICIT], ids=["none", "explicit"])
def test_an_entry_that_cannot_be_read_is_reported_and_touches_nothing_else(
    models: Path, tmp_path: Path, flags: tuple[object, ...]
) -> None:
    publish(models, 1)
    (models / "loop").symlink_to(models / "loop")
    (models / "nowhere").symlink_to(tmp_path / "nothing")
    (models / "colours" / "7").symlink_to(models / "colours" / "7")
    with serving(models, tmp_path / "log", *flags, *(("--load-model", "colours") if flags else ())) as server:
        found = states(server)
        assert found["colours", "1"][0] == "READY"
        assert "symbolic link" in found["loop", ""][1]
        assert "link to nothing" in found["nowhere", ""][1]
        publish(models, 2)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: 2 in ready(server))
        assert ask(server) == 2
        assert "symbolic link" in states(server)["colours", "7"][1]


def test_a_load_that_fails_leaves_the_configuration_that_was_in_force(models: Path, tmp_path: Path) -> None:
    publish(models, 1)
    publish(models, 2)
    with serving(models, tmp_path / "log", *EXPLICIT, "--load-model", "colours") as server:
        with triton.InferenceServerClient(server.target) as client:
            for config in ({"versions": [9]}, {"versions": [1], "provider": "tensorrt"}, {"instances": 0}):
                with pytest.raises(InferenceServerException):
                    client.load_model("colours", config=json.dumps(config))
                assert ask(server) == 2
            publish(models, 3)
            client.load_model("colours")
            assert ask(server) == 3
            client.load_model("colours", config=json.dumps({"versions": [1]}))
            with pytest.raises(InferenceServerException):
                client.load_model("colours", config=json.dumps({"versions": [9]}))
        server.process.send_signal(signal.SIGHUP)
        assert ask(server) == 1, "the override that loaded stays"


def test_to_load_a_version_whose_files_were_replaced_is_refused_since_a_version_is_immutable(
    models: Path, tmp_path: Path
) -> None:
    folder = publish(models, 1)
    with serving(models, tmp_path / "log", *EXPLICIT, "--load-model", "colours") as server:
        shutil.rmtree(folder)
        colour_model.publish(models, "colours", 1, scale=0.2)
        with triton.InferenceServerClient(server.target) as client:
            with pytest.raises(InferenceServerException, match="immutable"):
                client.load_model("colours")
            assert ask(server) == 1
            assert "immutable" in states(server)["colours", "1"][1]
            client.unload_model("colours")
            client.load_model("colours")
        with Client(server.target) as ours:
            (answer,) = ours.classify(list(colour_model.distinct(1)))
        assert answer.best.probability == pytest.approx(
            colour_model.expected(colour_model.distinct(1), 0.2).max(), abs=1e-5
        )


def test_sighup_tries_again_what_failed_although_no_name_size_or_time_has_changed(models: Path, tmp_path: Path) -> None:
    publish(models, 1)
    model = publish(models, 2) / MODEL_FILE
    whole, times = model.read_bytes(), model.stat()
    damage(model.parent)
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
    with serving(models, tmp_path / "log") as server:
        assert ready(server) == [1]
        model.write_bytes(whole)
        os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: ready(server) == [2])


def test_a_request_that_names_no_model_of_several_is_told_which_there_are(models: Path, tmp_path: Path) -> None:
    publish(models, 1)
    for number in range(12):
        colour_model.publish(models, f"model-{number:02}")
    damage(colour_model.publish(models, "zebra"))
    image = colour_model.distinct(1)
    with serving(models, tmp_path / "log") as server, Client(server.target) as client:
        for call in (lambda: client.classify(list(image)), lambda: client.model(), lambda: client.model(version=1)):
            with pytest.raises(ClientError, match=r"colours, model-00, .* and 3 more") as caught:
                call()
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        with triton.InferenceServerClient(server.target) as other:
            pixels = triton.InferInput("image", list(image.shape), "UINT8")
            pixels.set_data_from_numpy(image)
            for ask_other in (
                lambda: other.infer("", [pixels]),
                lambda: other.get_model_metadata(""),
                lambda: other.get_model_config(""),
            ):
                with pytest.raises(InferenceServerException, match="several are served"):
                    ask_other()


def test_a_shadow_with_other_labels_is_refused_by_name_and_one_with_another_order_is_compared(
    models: Path, tmp_path: Path
) -> None:
    publish(models, 1)
    folder = publish(models, 2)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    labels = manifest["labels"]
    manifest["labels"] = ["violet", *labels[1:]]
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    configure(models, "versions = [1]\nshadow = 2\n")
    with serving(models, tmp_path / "log") as server:
        assert ask(server) == 1
        assert "cannot be the shadow of version 1" in states(server)["colours", "2"][1]
        assert server.metric("cifarserve_shadow_images_total") == 0
        manifest["labels"] = list(reversed(labels))
        (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: states(server)["colours", "2"][0] == "READY")
        ask(server)
        until(lambda: server.metric("cifarserve_shadow_images_total") > 0)


def test_what_stays_wrong_is_logged_once_and_not_at_every_poll(models: Path, tmp_path: Path) -> None:
    publish(models, 1)
    damage(publish(models, 2))
    colour_model.publish(models, "other")
    (models / "loop").symlink_to(models / "loop")
    with serving(models, tmp_path / "log", "--model-control", "poll", "--poll-seconds", 0.05) as server:
        shutil.rmtree(models / "other")
        until(lambda: "folder of other is gone" in server.log.read_text())
        configure(models, "versions = [9]\n")
        until(lambda: "version 9 is not in the repository" in server.log.read_text())
        time.sleep(1.0)  # some twenty looks
        messages = [json.loads(line)["message"] for line in server.log.read_text().splitlines()]
    assert len(messages) == len(set(messages)), messages
