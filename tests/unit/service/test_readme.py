"""The README, and what docs/generate.py writes, say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs import generate
from service import config
from tests.integration.server_process import ROOT


def test_its_table_of_settings_is_the_codes() -> None:
    rows = [
        f"| `{config.flag(name)}` | `{field.default}` | {field.metadata['help']} |"
        for name, field in config.FIELDS.items()
    ]
    table = "\n".join(["| setting | default | what it is |", "|---|---|---|", *rows])
    assert table in (ROOT / "README.md").read_text(), f"the README needs this table:\n{table}"


@pytest.mark.parametrize("path", generate.FILES, ids=str)
def test_generated_parts_are_up_to_date(path: Path) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == generate.written(path), "run `make docs`"
