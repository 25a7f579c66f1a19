"""Tuning a real model on a real server: what it writes is served, what gives wrong answers is not, nothing is left."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import onnx
import pytest
from PIL import Image

from service import config, cpu, model_config
from service.cli import main
from service.client import Client
from service.manifest import file_entry, read_manifest
from service.tune import engines
from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, command, serving

QUICK = ("--minutes", 0.3, "--concurrency", 8, "--providers", "cuda,cpu")


def environment(out: Path) -> dict[str, str]:
    """In which the servers that are tried have `out` in their command lines, and others have not."""
    return ENVIRONMENT | {"TMPDIR": str(out)}


def tune(models: Path, out: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    """In a folder without settings of its own."""
    arguments = command("tune", "--model-repository", models, "--page", out / "tune.html", *flags)
    return subprocess.run(arguments, env=environment(out), cwd=out, capture_output=True, text=True, timeout=240)


def add_int8_that_answers_otherwise(folder: Path) -> None:
    """The manifest says that it has passed in int8, as it may have elsewhere: here its answers are not golden."""
    onnx.save(colour_model.build(scale=0.1), folder / "model.int8.onnx")
    files = {name: vars(entry) for name, entry in read_manifest(folder).files.items()}
    files["model.int8.onnx"] = vars(file_entry(folder / "model.int8.onnx"))
    colour_model.edit_manifest(folder, compute_precisions=["fp32", "int8"], files=files)


def left_behind(out: Path) -> list[str]:
    """Command lines of servers that tuning has started."""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if f"{out}/cifarserve-tune-" in line:
            lines.append(line)
    return lines


def test_what_is_written_is_what_is_served(models: Path, tmp_path: Path) -> None:
    folder = colour_model.publish(models)
    add_int8_that_answers_otherwise(folder)
    # So slow that something else is certainly better.
    (models / "colours" / "config.toml").write_text("# ours\nkeep_versions = 3\nthreads = 1\nmax_queue_delay = 0.2\n")
    done = tune(models, tmp_path, *QUICK, "--minutes", 2, "--force")
    assert done.returncode == 0, done.stderr + done.stdout
    written = models / "colours" / "config.toml"
    document = tomllib.loads(written.read_text())
    assert "tuned" in document, done.stdout
    tuned = document["tuned"]
    assert document["keep_versions"] == 3
    assert tuned["model"] == "colours version 1"
    assert {"when", "machine", "software", "goal", "result", "command"} <= tuned.keys()
    assert any(row["present"] and row["images_per_second"] > 0 for row in tuned["measured"])
    why = {row["what"]: row["why"] for row in tuned["dropped"]}
    assert "CUDAExecutionProvider" in why["cuda"]
    assert why["bf16"] == why["fp16"] == "this version has not passed its gates in it"
    if cpu.computes_int8():
        assert why["cpu int8"].startswith("golden outputs differ")
    assert not any("int8" in row["settings"] for row in tuned["measured"])
    assert "<svg" in (tmp_path / "tune.html").read_text()
    assert f"written: {written}" in done.stdout

    # Read again, it gives the keys that it says; a server takes it and answers as before.
    settings = config.load({"config": tmp_path / "cifarserve.toml"} if (tmp_path / "cifarserve.toml").exists() else {})
    compute = model_config.read_model_config(written.parent, settings).compute
    keys = ("provider", "precision", "threads", "max_batch_size", "max_queue_delay", "target_latency")
    assert {key: getattr(compute, key) for key in keys} == {key: document[key] for key in keys}
    image = colour_model.plain((200, 10, 10))
    with serving(models, tmp_path / "log") as server, Client(server.target) as client:
        (answer,) = client.classify([image])
        assert answer.best.label == "red"
        assert client.models()[0].precision == "fp32"
    assert not left_behind(tmp_path)


def test_present_settings_that_are_kept_are_not_written(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    text = "# ours\nthreads = 1\n"
    (models / "colours" / "config.toml").write_text(text)
    # Too short for finals, without which nothing takes the place of what there is.
    done = tune(models, tmp_path, *QUICK, "--minutes", 0.01, "--force")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Keep the present settings" in done.stdout
    assert "no file of settings is written" in done.stdout
    assert (models / "colours" / "config.toml").read_text() == text
    assert not (tmp_path / "cifarserve.toml").exists()
    assert (tmp_path / "tune.html").exists()


def test_an_objective_that_nothing_holds_writes_no_settings(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    done = tune(models, tmp_path, *QUICK, "--slo", "p99<1us", "--out", tmp_path / "out")
    assert done.returncode == 1, done.stderr + done.stdout
    assert "p99 < 0.001 ms holds with no settings that were tried" in done.stderr
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_no_server_and_shows_what_was_measured(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with subprocess.Popen(
        command("tune", "--model-repository", models, "--page", tmp_path / "page.html", "--providers", "cpu"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(tmp_path),
        cwd=tmp_path,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            if "first look" in line:
                break
        deadline = time.monotonic() + 120
        while not left_behind(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)  # the next server
        assert left_behind(tmp_path)
        process.send_signal(signal.SIGINT)
        said, problems = process.communicate(timeout=150)
    assert process.returncode == 130
    assert "(present)" in said.replace("\n", " ")
    assert "nothing is decided" in said
    assert "interrupted: nothing is written" in problems
    assert not left_behind(tmp_path)
    assert sorted(path.name for path in models.rglob("config.toml")) == []
    assert not (tmp_path / "page.html").exists()


def test_the_server_that_is_tried_ends_when_tuning_is_killed(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    arguments = command("tune", "--model-repository", models, "--page", tmp_path / "page.html", "--minutes", 5)
    with subprocess.Popen(
        arguments, env=environment(tmp_path), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        patience = time.monotonic() + 120
        while not left_behind(tmp_path) and time.monotonic() < patience:
            time.sleep(0.1)
        assert left_behind(tmp_path)
        process.kill()
    patience = time.monotonic() + 60
    while left_behind(tmp_path) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not left_behind(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "config.toml is there already: --force"),
        (("--force", "--model", "others"), "--model: no model others"),
        (("--force", "--model", "colours:7"), "has no version 7"),
        (("--force", "--slo", "quick"), 'is not of the form "p99<10ms"'),
        (("--force", "--encoded"), "--encoded needs --pictures"),
        (("--force", "--images-per-request", 257), "--images-per-request: the server takes 256 at most"),
        (("--force", "--minutes", 0), "--minutes: must be above 0"),
        (("--force", "--providers", "tpu"), "'tpu' is not one of"),
        (("--force", "--goal", "latency", "--slo", "p99<1s"), "not allowed with"),
    ],
)
def test_what_is_asked_for_wrongly_is_said_at_once(
    models: Path, tmp_path: Path, flags: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    colour_model.publish(models)
    (models / "colours" / "config.toml").write_text("threads = 1\n")
    page = tmp_path / "tune.html"
    try:
        status = main(["tune", "--model-repository", str(models), "--page", str(page), *map(str, flags)])
    except SystemExit as ended:  # by argparse
        status = ended.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert (models / "colours" / "config.toml").read_text() == "threads = 1\n"


def test_present_settings_that_do_not_serve_are_an_error(models: Path, tmp_path: Path) -> None:
    folder = colour_model.publish(models)
    shutil.copy(folder / "manifest.json", folder / "stray.onnx")
    done = tune(models, tmp_path, *QUICK)
    assert done.returncode == 1
    assert "the settings as they are do not serve" in done.stderr
    assert "stray.onnx: is not in the manifest" in done.stderr


def test_pictures_go_as_files_and_the_file_of_the_server_is_only_changed_when_told(
    models: Path, tmp_path: Path
) -> None:
    colour_model.publish(models)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(colour_model.distinct(3)):
        Image.fromarray(image).save(pictures / f"{number}.png")
    # No batch is full, so each waits: something else is certainly better, and what is kept would not be written.
    settings = "max_batch_size = 32\nmax_queue_delay = 0.2\nport = 9\n"
    (tmp_path / "cifarserve.toml").write_text(settings)
    flags = ("--pictures", pictures, "--encoded", "--images-per-request", 2, "--goal", "latency", "--out", "out")
    done = tune(models, tmp_path, *QUICK, *flags, "--minutes", 2)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "out" / "config.toml").exists(), done.stdout
    document = tomllib.loads((tmp_path / "out" / "config.toml").read_text())
    assert document["tuned"]["goal"] == "lowest median latency with 8 in flight, 2 images a request"
    assert any(row["present"] and "batches to 32" in row["settings"] for row in document["tuned"]["measured"])
    assert (tmp_path / "cifarserve.toml").read_text() == settings
    assert not (models / "colours" / "config.toml").exists()


def test_a_provider_that_crashes_takes_only_its_process_along() -> None:
    async def ask() -> list[dict[str, object]]:
        async with engines.EngineProcess() as process:
            # No such job: an error that nothing there expects, as a fault in a native library would be.
            died = await process.ask({"kind": "crash"}, 60)
            job = {"kind": "curve", "folder": "nowhere", "compute": {}}
            return [died, await process.ask({"kind": "crash"}, 60), await process.ask(job, 0.01)]

    died, again, late = asyncio.run(ask())
    assert died == again == {"error": "the process that computed it ended with status 1"}
    assert late == {"error": "took longer than 0.01 s"}
