"""`cifarserve models verify`: whether what lies in a repository is what was published, and computes what it should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.cli import main
from service.manifest import MODEL_FILE
from tests import colour_model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for version in (1, 2):
        colour_model.publish(tmp_path, version=version)
    return tmp_path


def verify(models: Path, *names: str) -> int:
    return main(["models", "verify", *names, "--models", str(models)])


def test_whole_versions_pass_and_say_where_they_ran(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(models) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["colours version 1", "colours version 2"]
    assert re.search(r"golden answers in fp32 on \w+ExecutionProvider \(may compute in fp32\)", lines[0])


def test_a_changed_file_is_named_and_the_others_are_still_looked_at(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = models / "colours" / "1" / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert verify(models) == 1
    captured = capsys.readouterr()
    assert "SHA-256 differs" in captured.err
    assert "colours version 2: files as published" in captured.out
    assert verify(models, "colours:2") == 0


def test_what_is_not_there_is_said(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(models, "colours:7") == 1
    assert "no version colours:7" in capsys.readouterr().err
