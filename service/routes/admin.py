"""`/v1/admin/...`: what an operator does to a running service."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from index.errors import SurematchError
from service.problems import Problem, documented
from service.routes.state import current_of, json_response, serving_of
from service.schemas import ReloadReply, SnapshotReply

router = APIRouter(prefix="/v1/admin", tags=["admin"])


@router.post(
    "/reload",
    summary="Serve what the collection's folder holds now",
    response_model=ReloadReply,
    responses=documented("conflict", "not-ready"),
)
async def reload(request: Request) -> Response:
    """Opens the folder again (a link is followed to where it points now), and serves it once it is verified and warm.

    No request fails: those under way finish on the version they began with. A damaged version is refused with 409 and
    the old one serves on.
    """
    try:
        new = await current_of(request).reload_everywhere()
    except SurematchError as error:
        raise Problem("conflict", f"The new version is refused and the old one serves on. {error}") from None
    collection = new.collection
    return json_response(
        {"collection": collection.name, "model": collection.model_id, "snapshot": collection.snapshot_id}
    )


@router.post(
    "/snapshot",
    summary="Compact the collection now",
    response_model=SnapshotReply,
    responses=documented("conflict", "not-ready", "disk-full", "unavailable"),
)
async def snapshot(request: Request) -> Response:
    """A new index of all items, the calibration fitted again, deleted items erased from the files. Searches and writes
    go on meanwhile; it answers when the new snapshot serves."""
    with serving_of(request) as serving:
        name = await asyncio.to_thread(serving.collection.snapshot)
    return json_response({"snapshot": name})
