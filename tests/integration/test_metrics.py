"""The metrics endpoint: exact counts for known traffic, read by Prometheus' own parser."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.client import Client, ClientError
from tests import colour_model
from tests.integration.server_process import serving


def test_known_traffic_gives_exact_counts(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    images = list(colour_model.distinct(100))
    with serving(models, tmp_path / "log", "--max-batch-size", 16) as server, Client(server.target) as client:
        client.classify(images[:3])
        client.classify(images[:1])
        client.classify(images[:40])
        for bad in ([], [b"no picture"]):
            with pytest.raises(ClientError):
                client.classify(bad)
        with pytest.raises(ClientError):
            client.classify(images[:1], model="other")

        def metric(name: str, **labels: str) -> float:
            return server.metric(f"cifarserve_{name}", model="colours", version="1", **labels)

        assert metric("requests_total", code="OK") == 3
        assert metric("requests_total", code="INVALID_ARGUMENT") == 2
        assert server.metric("cifarserve_requests_total", model="", code="NOT_FOUND") == 1
        assert metric("request_seconds_count") == 5
        assert metric("images_total") == 44
        # 3 -> 4, 1 -> 1, 40 -> 16 + 16 + 8: no row but one is padding.
        assert metric("padding_images_total") == 1
        assert metric("batch_images_count") == metric("compute_seconds_count") == 5
        assert metric("batch_images_sum") == 44
        assert metric("queue_seconds_count") == 3
        assert metric("queue_images") == 0
        assert 0 < metric("compute_seconds_sum") < metric("request_seconds_sum") * 5
        assert metric("model_info", precision="fp32") == 1
        assert server.metric("process_resident_memory_bytes") > 1e6
