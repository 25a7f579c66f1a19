"""One seed for each purpose, epoch and step, all from the recipe's: no generator's state has to outlive a step.

That is what makes a resumed run equal to an unbroken one: step 300 of epoch 7 draws the same numbers whatever ran
before it.
"""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for `purpose`, as in `derive(seed, "step", epoch, step)`; unrelated to all others'."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
