"""The application: `create_app(settings)` puts routes, problems, limits and the collection together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from service import problems
from service.by_name import ByName
from service.http.access import Access
from service.http.direct import Direct
from service.http.drain import Drain
from service.http.keys import Keys
from service.http.limits import LOOPBACK_NAMES, BodyLimit, KnownHosts, SecurityHeaders
from service.jobs.runner import Jobs
from service.openapi import openapi
from service.routes import admin, collection, collections, embeddings, health, items, jobs, page, search
from service.schemas.items import limited_items
from service.schemas.search import limited
from service.serving.collection import Current, Serving
from service.serving.fleet import Fleet
from service.serving.tracing import NAME, RequestSpans, provider
from service.settings import ServeSettings
from service.telemetry.audit import AuditLog
from service.telemetry.logs import RequestLog
from service.telemetry.metrics import Metrics, RequestMetrics

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

TRACES_SECONDS = 3.0
"""For the last traces to be sent at the end."""
DESCRIPTION = """\
Similarity search that knows how sure it is. Every answer carries calibrated match probabilities, the share of
"no match", and on request a set of labels with a coverage guarantee. `score` is a cosine, `probability` a probability:
they are never the same field. Errors are `application/problem+json` (RFC 9457)."""


def create_app(
    settings: ServeSettings,
    servings: Mapping[str, Serving] | None = None,
    pipe: Connection | None = None,
    traces: TracerProvider | None = None,
) -> FastAPI:
    """The ASGI application. Its lifespan opens and warms the collections of `settings`, unless `servings` has them.

    `pipe` leads to the supervisor, where this is one of several workers. `traces` takes the spans; without it they go
    where `settings.traces` says. Raises `SettingsError` when they cannot.
    """
    traces = provider() if traces is None and settings.traces else traces
    opened = dict(servings or {})
    metrics = next(iter(opened.values())).searcher.metrics if opened else Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        currents = {name: Current(settings, metrics, name, opened.get(name)) for name in settings.folders}
        fleet = None if pipe is None else Fleet(pipe, currents)
        await _begin(app, currents, fleet)
        try:
            yield
        finally:
            await _end(app, currents, fleet, traces)

    app = FastAPI(
        title="surematch",
        version=_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere; service/routes/page.py has ours
        redoc_url=None,
        redirect_slashes=False,  # it would repeat the query to an http:// address made of the Host header
        # its own spans: `service.serving.tracing` has ours, and to look for theirs costs more than to route
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.keys = Keys(settings.keys) if settings.keys else None
    app.state.audit = AuditLog(settings.audit_log) if settings.audit_log else None
    app.state.currents = {}
    app.state.jobs = None if settings.jobs is None else Jobs(settings.jobs, settings.job_memory)
    app.state.tracer = None if traces is None else traces.get_tracer(NAME)
    app.state.draining = False
    app.state.under_way = lambda: 0  # requests that have begun to come, where the server can tell: `service.server`
    app.state.request_model = limited(settings)
    app.state.put_model, app.state.delete_model = limited_items(settings)
    problems.install(app)
    _add_middleware(app, settings)
    _add_routes(app)
    return app


async def _begin(app: FastAPI, currents: dict[str, Current], fleet: Fleet | None) -> None:
    for current in currents.values():
        await current.start()
    app.state.currents = currents
    if app.state.jobs is not None:
        await app.state.jobs.start()
    if fleet is not None:
        for current in currents.values():
            current.fleet = fleet
        fleet.join()


async def _end(app: FastAPI, currents: dict[str, Current], fleet: Fleet | None, traces: TracerProvider | None) -> None:
    app.state.currents = {}
    if app.state.jobs is not None:
        await app.state.jobs.stop()
    if fleet is not None:
        fleet.leave()
    for current in currents.values():
        await current.stop()
    if traces is not None:
        # what nobody takes is not waited for: it would be sent again and again
        sending = threading.Thread(target=traces.shutdown, daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, TRACES_SECONDS)
    if app.state.audit is not None:
        app.state.audit.close()


def _add_middleware(app: FastAPI, settings: ServeSettings) -> None:
    """The last one added is the first to see a request."""
    app.add_middleware(Direct, routers=(search.router, embeddings.router))
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, seconds=settings.receive_seconds)
    app.add_middleware(Access, keys=app.state.keys)
    names = {name.lower() for name in (*LOOPBACK_NAMES, settings.host, *settings.allowed_hosts)}
    app.add_middleware(KnownHosts, names=None if settings.public or settings.keys else names)
    app.add_middleware(problems.Faults)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(RequestMetrics, metrics=app.state.metrics)
    if app.state.tracer is not None:
        app.add_middleware(RequestSpans, tracer=app.state.tracer)
    app.add_middleware(RequestLog)
    app.add_middleware(ByName)
    app.add_middleware(Drain, seconds=settings.receive_seconds)


def _add_routes(app: FastAPI) -> None:
    """The routes, the page, and their description, which is made anew when other models are served."""
    routers = [
        module.router for module in (search, embeddings, items, collection, collections, admin, jobs, health, page)
    ]
    app.state.routes = [route for router in routers for route in router.routes]
    for router in routers:
        app.include_router(router)
    page.mount(app)
    documents: dict[str, dict[str, Any]] = {}

    def cached() -> dict[str, Any]:
        open_now = {name: current.serving for name, current in app.state.currents.items() if current.serving}
        served = repr([(name, serving.collection.model_id) for name, serving in open_now.items()])
        if served not in documents:
            documents.clear()
            documents[served] = openapi(app)
        return documents[served]

    app.openapi = cached  # type: ignore[method-assign]


def _version() -> str:
    try:
        return version("surematch")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0"
