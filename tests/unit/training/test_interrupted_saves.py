"""Checkpoints of a process that is killed, and checkpoints that somebody edited."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.server_process import ENVIRONMENT
from training import checkpoint
from training.checkpoint import Checkpoint, EpochRecord, Position
from training.errors import CheckpointError
from training.hardware import Compute
from training.recipes import named
from training.run import RunSpec

SPEC = RunSpec(named("tutorial"), Compute("cpu", "fp32", "contiguous"), "pets", "f" * 64, ("cat", "dog"), "pets.tar")
HISTORY = (EpochRecord(1, 1.0, 0.5, 1.0, 0.5, 1.0, 100.0),)

# Saves one checkpoint after the other, each with its step in every tensor, and says which ones are on disk.
SAVING = """
import itertools, sys
from pathlib import Path
import torch
from tests.unit.training.test_interrupted_saves import SPEC
from training import checkpoint
from training.checkpoint import Checkpoint, Position
for step in itertools.count():
    tensors = {name: torch.full((1_000_000,), step) for name in ("model.a", "model.b")}
    checkpoint.save(Path(sys.argv[1]), Checkpoint(SPEC, Position(0, step), tensors))
    print(step, flush=True)
"""


def stop_with(run: Path, pattern: str, process: subprocess.Popen[bytes], seconds: float = 240) -> None:
    """Halt the process at a moment when a file of this kind is there, however short such moments are."""
    deadline = time.monotonic() + seconds
    while True:
        assert time.monotonic() < deadline, f"no {pattern} within {seconds} s"
        assert process.poll() is None, "the process ended by itself"
        if any(run.glob(pattern)):
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            if any(run.glob(pattern)):
                return
            process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("half_written", [".checkpoint-*.safetensors.tmp", ".checkpoint.json.tmp"])
def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path: Path, half_written: str) -> None:
    run, output = tmp_path / "run", tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", SAVING, run], stdout=file, env=ENVIRONMENT)
    try:
        stop_with(run, checkpoint.FILE, process)  # one that is to be replaced
        process.send_signal(signal.SIGCONT)
        stop_with(run, half_written, process)
    finally:
        process.kill()
        process.wait()
    said = output.read_text().split()
    found = checkpoint.load(run)
    assert found.position.step in (len(said) - 1, len(said))  # the last one that it said, or the one it was at
    assert all((tensor == found.position.step).all() for tensor in found.tensors.values())


def save(run: Path, step: int) -> None:
    checkpoint.save(run, Checkpoint(SPEC, Position(0, step, 0.5, HISTORY), {"totals": torch.full((2,), step)}))


def test_the_next_save_clears_away_what_a_killed_one_left(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for leftover in (
        "checkpoint-0000-000002.safetensors",
        ".checkpoint-0000-000003.safetensors.tmp",
        ".checkpoint.json.tmp",
    ):
        (tmp_path / leftover).write_bytes(b"half of it")
    save(tmp_path, 4)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.json", "checkpoint-0000-000004.safetensors"}


def test_other_files_in_the_run_folder_are_left_alone(tmp_path: Path) -> None:
    others = {"model.onnx", "evaluation.json", "notes.safetensors", ".hidden"}
    for name in others:
        (tmp_path / name).write_bytes(b"of somebody else")
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert others <= {path.name for path in tmp_path.iterdir()}


def test_saving_the_same_step_again_keeps_its_tensors(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 1)
    assert checkpoint.load(tmp_path).tensors["totals"].tolist() == [1, 1]


def test_tensors_that_are_none_are_refused_even_with_a_matching_checksum(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(b"garbage")
    document = json.loads((tmp_path / checkpoint.FILE).read_text())
    document["tensors"]["sha256"] = hashlib.sha256(b"garbage").hexdigest()
    (tmp_path / checkpoint.FILE).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"safetensors: damaged"):
        checkpoint.load(tmp_path)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within nested JSON."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*place, key)
        yield from places(inner, (*place, key))


def test_whatever_is_edited_in_the_json_gives_a_checkpoint_error_or_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / checkpoint.FILE
    original = json.loads(path.read_text())
    refused = 0
    for place in places(original):
        for value in (None, [], {}, "x", -1, [1, 2], {"a": 1}, float("inf")):
            document = copy.deepcopy(original)
            inner = document
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            path.write_text(json.dumps(document))
            try:
                checkpoint.load(tmp_path)
            except CheckpointError as error:
                assert str(tmp_path) in str(error)
                refused += 1
    assert refused > 100
