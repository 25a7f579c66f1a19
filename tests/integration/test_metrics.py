"""The metrics endpoint: exact counts for known traffic, read by Prometheus' own parser; every metric moves."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from tritonclient.utils import InferenceServerException

from docs import generate
from service.client import Client, ClientError, Options
from service.version_metrics import FAILURES
from tests import colour_model
from tests.integration.server_process import ROOT, ServerProcess, serving

CLASSIFIER = "cifarserve.v1.Classifier"


def test_known_traffic_gives_exact_counts(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    (models / "colours" / "config.toml").write_text("buckets = [1, 2, 4, 8]")
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
        codes = {dict(labels)["code"] for (name, labels) in server.metrics() if name == "cifarserve_requests_total"}
        assert codes == {"OK", "INVALID_ARGUMENT", "NOT_FOUND", *FAILURES}
        assert server.metric("cifarserve_requests_total", model="", code="NOT_FOUND") == 1
        assert metric("request_seconds_count") == 5
        assert metric("images_total") == 44
        # 3 -> 4, 1 -> 1, 40 -> 16 + 16 + 8: no row but one is padding.
        assert metric("padding_images_total") == 1
        assert metric("batch_images_count") == metric("compute_seconds_count") == 5
        assert metric("batch_images_sum") == 44
        assert metric("queue_seconds_count") == 3
        assert metric("queue_images") == 0
        assert metric("queue_oldest_seconds") == 0
        assert metric("queue_limit_images") == 1024
        assert 0 < metric("compute_seconds_sum") < metric("request_seconds_sum") * 5
        assert metric("model_info", precision="fp32", asked="auto") == 1
        assert metric("model_state", state="READY") == 1
        assert server.metric("process_resident_memory_bytes") > 1e6

        def calls(name: str, **labels: str) -> float:
            return server.metric(f"grpc_server_{name}", grpc_service=CLASSIFIER, grpc_method="Classify", **labels)

        assert calls("started_total", grpc_type="unary") == calls("handling_seconds_count") == 6
        assert calls("handled_total", grpc_code="OK") == 3
        assert calls("handled_total", grpc_code="INVALID_ARGUMENT") == 2
        assert calls("handled_total", grpc_code="NOT_FOUND") == 1


def test_predicted_classes_and_confidences_are_those_of_the_answers(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    images = list(colour_model.distinct(100))
    with serving(models, tmp_path / "log", "--max-batch-size", 16) as server, Client(server.target) as client:
        best = [prediction.best for prediction in client.classify(images)]
        for label in colour_model.LABELS:
            found = server.metric("cifarserve_predicted_images_total", model="colours", version="1", **{"class": label})
            assert found == sum(one.label == label for one in best)
        for bound in ("0.5", "0.9", "1.0"):
            below = server.metric("cifarserve_confidence_bucket", model="colours", le=bound)
            assert below == sum(one.probability <= float(bound) for one in best)
        assert server.metric("cifarserve_confidence_count", model="colours") == 100
        total = sum(one.probability for one in best)
        assert server.metric("cifarserve_confidence_sum", model="colours") == pytest.approx(total, rel=1e-5)


def test_calls_that_are_cancelled_late_or_invented_are_counted_without_new_labels(server: ServerProcess) -> None:
    def handled() -> dict[str, float]:
        return {
            dict(labels)["grpc_code"]: value
            for (name, labels), value in server.metrics().items()
            if name == "grpc_server_handled_total" and dict(labels)["grpc_method"] == "ClassifyStream"
        }

    def labels() -> set[frozenset[tuple[str, str]]]:
        return {labels for name, labels in server.metrics() if name.startswith("grpc_server_")}

    raw = pb.RawImage(rgb=colour_model.plain((255, 0, 0)).tobytes(), width=8, height=8)
    request = pb.ClassifyRequest(images=[pb.Image(raw=raw)])
    ended = threading.Event()

    def endless() -> Iterator[pb.ClassifyRequest]:
        yield request
        ended.wait()

    known, before = labels(), handled()
    with grpc.insecure_channel(server.target) as channel:
        for method in (f"/{CLASSIFIER}/Invented", "/no.Such/Method"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        stub = pb_grpc.ClassifierStub(channel)
        cancelled = stub.ClassifyStream(endless())
        next(cancelled)
        cancelled.cancel()
        late = stub.ClassifyStream(endless(), timeout=0.2)
        with pytest.raises(grpc.RpcError):
            list(late)
        ended.set()
        assert len(list(stub.ClassifyStream(iter([request, request])))) == 2
        # Whether the caller's end of the late call or the server's own clock comes first is up to the network.
        _until(lambda: sum(handled().values()) == sum(before.values()) + 3)
        ended_so = {code: count - before[code] for code, count in handled().items() if count != before[code]}
        # A stream that was answered in full when its caller left may look as if it had ended.
        assert ended_so.keys() <= {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}
        assert ended_so["OK"] in (1, 2)
    assert labels() == known


# A metric whose moving would itself be a fault, and those that other tests move: test_lost_engine.py and
# test_fallbacks.py one each, and test_security.py one that needs TLS.
ENGINE_FAILURES = "cifarserve_engine_failures_total"
FALLBACKS = "cifarserve_fallbacks_total"
CERTIFICATE = "cifarserve_certificate_expiry_timestamp_seconds"
# Those of a GPU are there only with one: test_gpu.py.
GPU = {f"cifarserve_gpu_{name}" for name in ("utilization_ratio", "memory_used_bytes", "memory_total_bytes")}
# Where somebody reads the log, no line is dropped: test_log_reader.py.
DROPPED = "cifarserve_log_lines_dropped_total"
NEVER = {"python_gc_objects_uncollectable_total", ENGINE_FAILURES, FALLBACKS, CERTIFICATE, DROPPED, *GPU}


def test_every_metric_is_documented_and_every_documented_one_moves(models: Path, tmp_path: Path) -> None:
    documented = set(re.findall(r"^\| `(\w+)` \| (?:counter|gauge|histogram) ", _operations(), re.MULTILINE))
    documented -= {family.name for family in generate.supervisor_families()}  # which test_workers.py moves
    with _busy_server(models, tmp_path) as server:
        moved: set[str] = set()
        exposed: set[str] = set()

        def look() -> bool:
            for (name, _), value in server.metrics().items():
                if name.endswith("_created"):  # when a series began
                    continue
                family = re.sub(r"_(bucket|count|sum)$", "", name)
                exposed.add(family)
                if value and not math.isnan(value):
                    moved.add(family)
            return documented - NEVER <= moved

        try:
            _until(look)
        except AssertionError:
            raise AssertionError(f"documented, but never moved: {documented - NEVER - moved}") from None
    assert exposed - GPU == documented - {CERTIFICATE, *GPU}


@contextmanager
def _busy_server(models: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with all that it can do switched on, under traffic that makes it do it, until this ends."""
    for version in (1, 2):
        colour_model.publish(models, version=version, baseline=colour_model.BASELINE, scale=1 / version)
    colour_model.edit_manifest(colour_model.publish(models, version=3), labels=None)
    (models / "colours" / "config.toml").write_text(
        "shadow = 1\ncache_bytes = 1000000\nversions = 'latest 2'\nbuckets = [8]\n"
    )
    colour_model.publish(models, "slow", work=3)
    images = list(colour_model.distinct(253))
    log = tmp_path / "log"
    with serving(models, log, "--max-batch-size", 8) as server, Client(server.target, Options(timeout=30)) as client:
        client.classify(images, model="colours")
        client.classify(images[:40], model="colours")
        with triton.InferenceServerClient(server.target) as other:
            pixels = triton.InferInput("image", [1, 8, 8, 3], "UINT8")
            pixels.set_data_from_numpy(colour_model.distinct(254)[253:])
            with pytest.raises(InferenceServerException, match="deadline"):
                other.infer("colours", [pixels], timeout=1)  # microseconds
        ended = threading.Event()

        def call_on() -> None:
            while not ended.is_set():
                client.classify(images[:1], model="slow")

        callers = [threading.Thread(target=call_on) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            yield server
        finally:
            ended.set()
            for caller in callers:
                caller.join()


def _operations() -> str:
    return (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def _until(condition: object, patience: float = 30) -> None:
    """Wait for what another process does in its own time."""
    deadline = time.monotonic() + patience
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
