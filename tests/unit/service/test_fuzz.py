"""A short run of the fuzzer on each target, from the committed corpus. In processes of their own: the stubs of the
Open Inference Protocol and those of tritonclient, which other tests use, cannot be in one.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.server_process import ENVIRONMENT

TARGETS = ("pictures", "tensors", "requests", "documents")
INPUTS = 5000
SEEDS = """
import sys
from tests.fuzz.targets import TARGETS, seeds
for name in sys.argv[1:]:
    found = seeds(name)
    assert len(found) >= 2, name
    for seed in found:
        for data in (seed, seed[:-1], seed[: len(seed) // 2], seed + seed, b""):
            TARGETS[name](data)
"""


def run(folder: Path, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_the_corpus_and_pieces_of_it(tmp_path: Path) -> None:
    run(tmp_path, "-c", SEEDS, *TARGETS)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris, which is not for this Python")
@pytest.mark.parametrize(
    "target", [(one,) for one in TARGETS] + [(one, "--fields") for one in TARGETS if one != "pictures"], ids=" ".join
)
def test_what_the_fuzzer_finds_in_a_moment_is_taken_or_refused(tmp_path: Path, target: tuple[str, ...]) -> None:
    flags = (f"-runs={INPUTS}", "-timeout=30", "-rss_limit_mb=4096", "-seed=1", "-max_len=4096")
    said = run(tmp_path, "-m", "tests.fuzz.run", *target, *flags)
    assert f"Done {INPUTS} runs" in said
