"""`/v1/collections`: what a service serves, by name."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.problems import documented
from service.routes.state import currents_of, json_response
from service.schemas.collection import CollectionsReply

router = APIRouter(prefix="/v1", tags=["collection"], responses=documented("not-ready"))


@router.get("/collections", summary="The collections by name", response_model=CollectionsReply)
async def collections(request: Request) -> Response:
    """Each is asked at `/v1/collections/NAME/...`; the default one also at `/v1/...`."""
    currents = currents_of(request)
    listed = []
    for name, current in currents.items():
        if current.serving is None:
            continue
        with current.serving.used() as serving:
            served = serving.collection
            listed.append(
                {
                    "name": name,
                    "items": served.size,
                    "model": served.model_id,
                    "snapshot": served.snapshot_id,
                    "dimension": served.encoder.dimension,
                    "modality": served.encoder.modality,
                    "calibrated": served.uncalibrated() is None,
                    "degraded": current.degraded,
                }
            )
    return json_response({"default": next(iter(currents)), "collections": listed})
