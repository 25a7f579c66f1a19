"""Runs bad_documents.py in a process of its own: the stubs of the Open Inference Protocol and those of tritonclient,
which other tests use, cannot be in one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.integration.server_process import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[3]


def test_whatever_is_read_from_outside_is_taken_or_refused_with_its_place() -> None:
    tests = Path(__file__).with_name("bad_documents.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 8
