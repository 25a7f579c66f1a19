"""What every request goes through, whatever its protocol."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.config import Settings
from service.errors import QueueFull
from service.frontend import Frontend, Timing
from service.images import Pixels
from service.metrics import Metrics
from service.repository import Repository
from tests import colour_model


def test_a_request_that_is_refused_is_not_looked_at(tmp_path: Path) -> None:
    colour_model.publish(tmp_path)
    settings = Settings(
        model_repository=tmp_path, provider="cpu", max_queue_images=4, max_images_per_request=4, max_queue_delay=10.0
    )
    images = colour_model.distinct(4)
    read = 0

    def give() -> Pixels:
        nonlocal read
        read += 1
        return images

    async def main() -> None:
        metrics = Metrics()
        repository = Repository(settings, metrics, lambda: None)
        await repository.start()
        frontend = Frontend(repository, settings, metrics, ThreadPoolExecutor(1))
        model = repository.find("colours", 0)
        first = asyncio.create_task(frontend.classify(model, Timing(), "images", 4, give, int, None))
        while not model.batcher.queued_images:
            await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await frontend.classify(model, Timing(), "images", 1, give, int, None)
        assert read == 1
        await repository.close()  # which ends the wait for a full batch
        assert len((await first).probabilities) == 4

    asyncio.run(main())
