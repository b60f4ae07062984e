"""Traces: what a request's spans say, kept in memory; and a real service that sends them to a collector."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest
import uvicorn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from index.stages import measured, stage
from service.app import create_app
from service.settings import ServeSettings
from tests.service.conftest import serving
from tests.service.gallery import KNOWN

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@contextmanager
def traced(collection: Path) -> Iterator[tuple[str, InMemorySpanExporter]]:
    """A real uvicorn in this process, and where its spans go."""
    exporter, traces = InMemorySpanExporter(), TracerProvider()
    traces.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(ServeSettings(collection=collection), traces=traces)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", exporter
    finally:
        server.should_exit = True
        thread.join()


def named(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_searchs_parts_are_below_its_request_and_hold_no_text(collection: Path) -> None:
    text = KNOWN[0][0]
    with traced(collection) as (url, exporter), httpx2.Client(base_url=url) as api:
        before = time.time_ns()
        api.post("/v1/search", json={"queries": [{"text": text}, {"text": "x"}]}, headers={"traceparent": TRACE})
        after = time.time_ns()
        for _ in range(100):
            if len(exporter.get_finished_spans()) >= 4:
                break
            time.sleep(0.01)
        spans = named(exporter)
        assert set(spans) == {"POST /v1/search", "encode", "search", "calibrate"}
        request = spans["POST /v1/search"]
        assert request.kind is SpanKind.SERVER
        assert request.context is not None
        assert request.parent is not None
        assert f"{request.context.trace_id:032x}" == TRACE.split("-")[1]
        assert f"{request.parent.span_id:016x}" == TRACE.split("-")[2]
        assert request.attributes is not None
        assert request.attributes["http.route"] == "/v1/search"
        assert request.attributes["http.response.status_code"] == 200
        for name in ("encode", "search", "calibrate"):
            span = spans[name]
            assert span.parent is not None
            assert span.parent.span_id == request.context.span_id
            assert span.attributes is not None
            assert span.attributes["surematch.queries"] == 2
            assert span.attributes["surematch.collection"] == "home"
            assert span.start_time is not None
            assert span.end_time is not None
            assert before <= span.start_time <= span.end_time <= after
        assert (spans["search"].end_time or 0) <= (spans["calibrate"].start_time or 0)
        assert (spans["encode"].end_time or 0) <= (spans["search"].start_time or 0) + 1_000_000
        assert text not in "".join(span.to_json() for span in spans.values())


def test_vectors_need_no_encoding_and_supervisors_leave_no_span(collection: Path) -> None:
    with traced(collection) as (url, exporter), httpx2.Client(base_url=url) as api:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert api.get(path).status_code == 200
        assert api.get("/v1/items/nobody").status_code == 404
        api.post("/v1/search", json={"queries": [{"vector": [1.0] + [0.0] * 31}]})
        for _ in range(100):
            if len(exporter.get_finished_spans()) >= 4:
                break
            time.sleep(0.01)
        spans = named(exporter)
    assert set(spans) == {"GET /v1/items/{id:id}", "POST /v1/search", "search", "calibrate"}
    assert "nobody" not in spans["GET /v1/items/{id:id}"].to_json()


def test_a_service_sends_its_traces(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    monkeypatch.setitem(os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setitem(os.environ, "OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    with serving(collection, "--traces") as server:
        assert httpx2.get(f"{server.url}/v1/search", params={"text": KNOWN[0][0]}).status_code == 200
    collector.shutdown()
    collector.server_close()
    resources = [resource for request in received for resource in request.resource_spans]
    names = {span.name for one in resources for scope in one.scope_spans for span in scope.spans}
    assert names >= {"GET /v1/search", "encode", "search", "calibrate"}
    (service,) = {
        pair.value.string_value for r in resources for pair in r.resource.attributes if pair.key == "service.name"
    }
    assert service == "surematch"


def test_stages_are_measured_for_those_who_ask() -> None:
    with stage("calibrate"):
        pass
    with measured() as seconds:
        for _ in range(2):
            with stage("calibrate"):
                time.sleep(0.001)
    assert seconds["calibrate"] >= 0.002
    with measured() as others:
        pass
    assert others == {}
