"""OpenTelemetry traces (extra `otel`): a span a request, and below a search's its parts: encode, search, calibrate.

Spans hold method, route, status, collection and counts: never a text, a vector, a label or a key. A caller's trace is
continued (W3C `traceparent`). Where they go is said by the standard variables, `OTEL_EXPORTER_OTLP_ENDPOINT` and so on.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from index.errors import SettingsError
from service.telemetry.logs import route_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

    from service.serving.searcher import Found, Timings

NAME = "surematch"


def provider() -> TracerProvider:
    """One that sends spans as OTLP over HTTP. Raises `SettingsError` without the extra."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"--traces needs the package {error.name}. Install it with: pip install 'surematch[otel]'."
        ) from error
    own = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: NAME}
    made = TracerProvider(resource=Resource.create(own))
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


class RequestSpans:
    """A span for every request but those of supervisors (`/healthz`, `/readyz`, `/metrics`)."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self.app = app
        self.tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ("/healthz", "/readyz", "/metrics"):
            await self.app(scope, receive, send)
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode

        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        parent = extract(dict(Headers(scope=scope)))
        with self.tracer.start_as_current_span(scope["method"], parent, SpanKind.SERVER) as span:
            try:
                await self.app(scope, receive, noting)
            finally:
                route = route_of(scope)
                span.update_name(f"{scope['method']} {route}")
                span.set_attributes(
                    {
                        "http.request.method": scope["method"],
                        "http.route": route,
                        "http.response.status_code": status,
                        "surematch.request_id": str(scope.get("state", {}).get("request_id", "")),
                    }
                )
                if status >= 500:
                    span.set_status(Status(StatusCode.ERROR))


def search_spans(tracer: Tracer, collection: str, found: Found, timings: Timings) -> None:
    """The parts of a search that has just been answered, below the request's span.

    They ran in batches with other requests' on threads of their own, so their spans are laid out afterwards from what
    was measured; what lies between them was waiting.
    """
    end = time.time_ns()
    start = end - int(timings.total_ms * 1e6)
    calibrating = end - int(found.calibrating * 1e9)
    parts = [("search", end - int(timings.search_ms * 1e6), calibrating), ("calibrate", calibrating, end)]
    if timings.encode_ms:
        parts.insert(0, ("encode", start, start + int(timings.encode_ms * 1e6)))
    for name, began, ended in parts:
        span = tracer.start_span(name, start_time=began)
        span.set_attributes(
            {
                "surematch.collection": collection,
                "surematch.snapshot": found.snapshot,
                "surematch.queries": len(found.answers),
            }
        )
        span.end(ended)
