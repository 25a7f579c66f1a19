"""`make audit`: what is found is told from what could not be asked. The program that asks is played."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "pillow", "version": "9.0", "vulns": [{"id": "X-1", "fix_versions": ["9.1"]}]}


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ({"dependencies": [GOOD]}, 0, "nothing is known against the versions in some.txt"),
        ({"dependencies": [GOOD, BAD]}, 1, "some.txt: pillow 9.0: X-1, fixed in 9.1"),
        (None, 3, "not audited, the advisory service cannot be asked: ConnectionError"),
    ],
)
def test_the_exit_status_says_what_is_known(tmp_path: Path, said: object, status: int, words: str) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    program = tmp_path / "pip-audit"
    answer = f"cat <<'END'\n{json.dumps(said)}\nEND\nexit 1" if said else "echo ConnectionError >&2; exit 1"
    program.write_text(f"#!{shutil.which('sh')}\n{answer}\n")
    program.chmod(0o755)
    command = [python, ROOT / "requirements" / "audit.py", tmp_path / "some.txt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert words in done.stdout
