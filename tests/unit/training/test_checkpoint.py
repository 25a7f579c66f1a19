"""Checkpoints: whole, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from training import checkpoint
from training.checkpoint import Checkpoint, EpochRecord, Position
from training.errors import CheckpointError
from training.run import RunSpec

TENSORS = {
    "model.weight": torch.arange(12.0).reshape(3, 4).t(),  # not contiguous, as channels_last weights are
    "model.count": torch.tensor(5),
    "totals": torch.tensor([1 / 3, 2.0], dtype=torch.float64),
}
POSITION = Position(2, 7, 0.1, (EpochRecord(1, 1 / 3, 0.5, 1.2, 0.4, 2.5, 20.0),))


@pytest.fixture
def saved(tmp_path: Path, spec: RunSpec) -> Path:
    checkpoint.save(tmp_path, Checkpoint(spec, POSITION, TENSORS))
    return tmp_path


def tensors_file(run: Path) -> Path:
    (path,) = run.glob("*.safetensors")
    return path


def test_what_is_saved_is_loaded_to_the_bit(saved: Path, spec: RunSpec) -> None:
    found = checkpoint.load(saved)
    assert (found.spec, found.position) == (spec, POSITION)
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_a_newer_checkpoint_replaces_the_older(saved: Path, spec: RunSpec) -> None:
    checkpoint.save(saved, Checkpoint(spec, Position(3, 0), {"totals": torch.zeros(2)}))
    assert checkpoint.load(saved).position == Position(3, 0)
    assert {path.name for path in saved.iterdir()} == {"checkpoint.json", "checkpoint-0003-000000.safetensors"}


def test_killed_before_the_json_was_replaced_the_older_one_is_whole(saved: Path) -> None:
    (saved / "checkpoint-0003-000000.safetensors").write_bytes(b"half of the newer tensors")
    (saved / ".checkpoint.json.tmp").write_bytes(b'{"format_')
    assert checkpoint.load(saved).position == POSITION


def test_none_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there; `cifarserve train"):
        checkpoint.load(tmp_path)


def test_a_flipped_bit_in_the_tensors_is_found(saved: Path) -> None:
    data = bytearray(tensors_file(saved).read_bytes())
    data[-1] ^= 1
    tensors_file(saved).write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged: its SHA-256"):
        checkpoint.load(saved)


@pytest.mark.parametrize("content", [b"", b'{"format_version": 2,', b"[]", b'{"format_version": 2}', b"\xff\xfe"])
def test_damaged_json_is_an_error_not_a_crash(saved: Path, content: bytes) -> None:
    (saved / checkpoint.FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        checkpoint.load(saved)


def test_missing_tensors_are_an_error(saved: Path) -> None:
    tensors_file(saved).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(saved)


def test_tensors_are_only_read_from_beside_the_json(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "other.safetensors"
    elsewhere.write_bytes(tensors_file(saved).read_bytes())
    document = json.loads((saved / checkpoint.FILE).read_text())
    document["tensors"]["file"] = str(elsewhere)
    (saved / checkpoint.FILE).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(saved)


def test_a_format_of_the_future_is_refused(saved: Path) -> None:
    document = json.loads((saved / checkpoint.FILE).read_text())
    (saved / checkpoint.FILE).write_text(json.dumps(document | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format_version is 99, this program reads 2"):
        checkpoint.load(saved)
