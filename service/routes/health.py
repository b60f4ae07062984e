"""`/healthz`: the process lives. `/readyz`: the collection is open and has answered a query."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from service.problems import DISPLACED, STOPPING, Problem, documented
from service.routes.state import currents_of, json_response, serving_of
from service.schemas.collection import HealthReply, ReadyReply
from service.telemetry.metrics import CONTENT_TYPE

router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)  # monitors that want no body
@router.get("/healthz", summary="Liveness", response_model=HealthReply)
async def healthz() -> Response:
    """Answers as long as the process does; restart it when it does not."""
    return json_response({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Readiness", response_model=ReadyReply, responses=documented("not-ready"))
async def readyz(request: Request) -> Response:
    """200 once a real query has been answered with the collection now served; else 503, and when the end is near.

    503, too, from a service that writes when none of its collections is where it was opened any more: moved, or behind
    a link that points elsewhere now.
    """
    if request.app.state.draining:
        raise Problem("not-ready", STOPPING, headers={"Retry-After": "1"})
    currents = currents_of(request).values()
    if all(current.settings.writable and current.astray for current in currents):
        raise Problem("not-ready", DISPLACED)
    with serving_of(request) as serving:
        return json_response(
            {
                "status": "ready",
                "collection": serving.name,
                "model": serving.collection.model_id,
                "snapshot": serving.collection.snapshot_id,
                "degraded": any(current.degraded for current in currents),
            }
        )


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Latency by route and stage, batch sizes, queue, outcomes, and the histogram of match probabilities."""
    for current in request.app.state.currents.values():
        if current.serving is not None:
            with current.serving.used() as serving:
                report = await asyncio.to_thread(serving.collection.drift_report)
                serving.searcher.metrics.drifted(report)
    return Response(await asyncio.to_thread(request.app.state.metrics.text), media_type=CONTENT_TYPE)
