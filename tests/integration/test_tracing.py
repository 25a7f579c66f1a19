"""Traces: a real server, and a collector that speaks OTLP over gRPC in this process."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, command, serving

collector_pb2 = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra [otel]"
)
collector_grpc = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(collector_grpc.TraceServiceServicer):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.target = ""

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.spans += [span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]
        return collector_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    collector_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.target = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    server.stop(None)


def request() -> pb.ClassifyRequest:
    raw = pb.RawImage(rgb=colour_model.plain((255, 0, 0)).tobytes(), width=8, height=8)
    return pb.ClassifyRequest(images=[pb.Image(raw=raw)])


def test_a_request_is_traced_from_its_caller_to_its_batch_with_its_id_in_log_and_exemplar(
    models: Path, tmp_path: Path, collector: Collector
) -> None:
    colour_model.publish(models)
    with serving(
        models, tmp_path / "log", "--access-log-share", 1, environment={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.target}
    ) as server:
        with grpc.insecure_channel(server.target) as channel:
            stub = pb_grpc.ClassifierStub(channel)
            stub.Classify(request(), metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")])
            stub.Classify(request(), metadata=[("traceparent", f"00-{TRACE}-{PARENT}-00")])  # its caller's is not kept
            with pytest.raises(grpc.RpcError):
                stub.Classify(pb.ClassifyRequest())
        scrape = urllib.request.Request(server.metrics_url, headers={"Accept": "application/openmetrics-text"})
        with urllib.request.urlopen(scrape, timeout=10) as reply:
            families = {one.name: one for one in text_string_to_metric_families(reply.read().decode())}
        server.terminate()  # which sends what is left
        assert server.wait() == 0
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]

    good, bad = collector.named("classify")
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (TRACE, PARENT)
    assert bad.status.code == 2
    assert bad.trace_id.hex() != TRACE
    stages = [collector.named(name) for name in ("decode", "queue", "compute")]
    assert all([span.parent_span_id for span in spans] == [good.span_id] for spans in stages)
    edges = [moment for (span,) in stages for moment in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert edges == sorted(edges)
    assert good.start_time_unix_nano <= edges[0] + 1_000_000
    assert edges[-1] <= good.end_time_unix_nano + 1_000_000
    (batch,) = collector.named("batch")
    assert [(link.trace_id.hex(), link.span_id) for link in batch.links] == [(TRACE, good.span_id)]
    assert batch.trace_id.hex() != TRACE
    assert [line.get("trace_id") for line in lines if line["logger"] == "service.access"] == [
        TRACE,
        None,
        bad.trace_id.hex(),
    ]
    exemplars = [sample.exemplar for sample in families["cifarserve_request_seconds"].samples if sample.exemplar]
    assert {exemplar.labels["trace_id"] for exemplar in exemplars} <= {TRACE, bad.trace_id.hex()}
    assert exemplars


def test_a_batch_is_linked_to_all_its_requests(models: Path, tmp_path: Path, collector: Collector) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", environment={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.target}) as server:
        with grpc.insecure_channel(server.target) as channel:
            stub = pb_grpc.ClassifierStub(channel)
            for _ in range(50):
                for call in [stub.Classify.future(request()) for _ in range(16)]:
                    call.result()
        server.terminate()
        assert server.wait() == 0
    batches, requests = collector.named("batch"), collector.named("classify")
    links = [link.span_id for batch in batches for link in batch.links]
    assert sorted(links) == sorted(span.span_id for span in requests)
    assert max(len(batch.links) for batch in batches) > 1


def test_exemplars_of_all_workers_are_on_their_common_page(models: Path, tmp_path: Path, collector: Collector) -> None:
    colour_model.publish(models)
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.target}
    with serving(models, tmp_path / "log", "--workers", 2, "--threads", 1, environment=environment) as server:
        sent = [f"{number:032x}" for number in range(1, 31)]
        for trace in sent:  # each on a connection of its own, so that both workers get some
            with grpc.insecure_channel(server.target) as channel:
                metadata = [("traceparent", f"00-{trace}-{PARENT}-01")]
                pb_grpc.ClassifierStub(channel).Classify(request(), metadata=metadata)
        scrape = urllib.request.Request(server.metrics_url, headers={"Accept": "application/openmetrics-text"})
        with urllib.request.urlopen(scrape, timeout=10) as reply:
            families = {one.name: one for one in text_string_to_metric_families(reply.read().decode())}
        samples = families["cifarserve_request_seconds"].samples
        kept = [(int(one.exemplar.labels["trace_id"], 16), one.exemplar.value) for one in samples if one.exemplar]
        (highest,) = (one.value for one in samples if one.name.endswith("_bucket") and one.labels["le"] == "+Inf")
    assert highest == 30
    # Requests were made one after the other, so the newest of all exemplars is that of the last of them.
    assert max(number for number, _ in kept) == 30
    assert len(kept) <= sum(one.name.endswith("_bucket") for one in samples)


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", environment={"PYTHONVERBOSE": "1"}) as server:
        pass
    assert "import 'service.tracing'" in server.log.read_text()
    assert "opentelemetry" not in server.log.read_text()


def test_a_server_that_cannot_send_the_traces_it_should_says_what_to_install(models: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "opentelemetry"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('No module named opentelemetry')\n")
    environment = ENVIRONMENT | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1",
        "PYTHONPATH": f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}",
    }
    result = subprocess.run(
        command("serve", "--model-repository", models), env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "extra [otel]" in result.stderr
