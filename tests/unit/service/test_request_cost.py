"""What a request costs in Python: function calls are counted, which no busy machine changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import colour_model
from tests.integration.server_process import ENVIRONMENT

# Of Python functions, on the event loop's thread, for one ModelInfer of one image; gRPC's own are not among them.
# A change that needs more should be worth it, and says so here. The last two: nothing is sent to a call whose deadline
# has passed, which gRPC would leak.
MOST_CALLS = 122
PROGRAM = "tests.unit.service.request_cost"
ROOT = Path(__file__).resolve().parents[3]


def count_calls(repository: Path, images: int) -> float:
    """Python calls a request of so many images."""
    command = [sys.executable, "-m", PROGRAM, str(repository), str(images)]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_a_request_makes_few_python_calls_and_no_more_for_many_images(tmp_path: Path) -> None:
    colour_model.publish(tmp_path)
    one = count_calls(tmp_path, 1)
    assert one <= MOST_CALLS
    assert count_calls(tmp_path, 32) <= one + 5, "the work of a request must not grow in Python with its images"
