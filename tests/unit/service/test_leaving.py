"""A process whose engine never ends its batch ends all the same."""

from __future__ import annotations

import subprocess
import sys

from tests.integration.server_process import ENVIRONMENT

STUCK = """
import asyncio, sys, time
from unittest.mock import Mock
import numpy as np
from service import workers
from service.batching import Batcher


class Stuck:
    max_batch_size = 1

    def compute(self, parts):
        print("computing", flush=True)
        time.sleep(1000)


async def main():
    batcher = Batcher([Stuck()], max_queue_images=1, observer=Mock())
    with batcher.admit(1) as request:
        try:
            await asyncio.wait_for(request.compute(np.zeros((1, 8, 8, 3), np.uint8)), 0.5)
        except TimeoutError:
            pass


asyncio.run(main())
sys.exit(workers.leave(3))
"""


def test_an_engine_that_is_stuck_does_not_keep_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "computing\n"
    assert done.returncode == 3, done.stderr
