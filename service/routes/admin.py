"""`/v1/admin/...`: what an operator does to a running service."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from index.errors import CalibrationError, NotFound, SurematchError
from service.problems import Problem, documented
from service.routes.state import (
    JSON_BODY,
    body_of,
    current_of,
    json_body,
    json_response,
    operated,
    serving_of,
    validated,
)
from service.schemas.collection import ReloadReply, SnapshotReply, UseCalibrationRequest, VersionReply, VersionsReply

router = APIRouter(prefix="/v1/admin", tags=["admin"])


@router.post(
    "/reload",
    summary="Serve what the collection's folder holds now",
    response_model=ReloadReply,
    responses=documented("conflict", "not-ready", "disk-full"),
)
async def reload(request: Request) -> Response:
    """Opens the folder again (a link is followed to where it points now), and serves it once it is verified and warm.

    No request fails: those under way finish on the version they began with. A damaged version is refused with 409 and
    the old one serves on. A service with `--writable` serves its own writes at once and has nothing to reload: 409.
    """
    current = current_of(request)
    with operated(request, current.name, "reload"):
        try:
            new = await current.reload()
        except SurematchError as error:
            if current.settings.writable:  # there is no new version
                raise
            raise Problem("conflict", f"The new version is refused and the old one serves on. {error}") from None
    collection = new.collection
    return json_response({"collection": new.name, "model": collection.model_id, "snapshot": collection.snapshot_id})


@router.post(
    "/snapshot",
    summary="Compact the collection now",
    response_model=SnapshotReply,
    responses=documented("conflict", "not-ready", "disk-full", "unavailable"),
)
async def snapshot(request: Request) -> Response:
    """A new index of all items, the calibration fitted again, deleted items erased from the files. Searches and writes
    go on meanwhile; it answers when the new snapshot serves."""
    with serving_of(request) as serving, operated(request, serving.name, "snapshot"):
        name = await serving.operate(serving.collection.snapshot)
    return json_response({"snapshot": name})


@router.post(
    "/recalibrate",
    summary="Fit the probabilities again with users' feedback",
    response_model=VersionReply,
    responses=documented("conflict", "not-ready", "disk-full", "unavailable"),
)
async def recalibrate(request: Request) -> Response:
    """Makes a new calibration and serves it; the index stays. At least 50 different queries with feedback are needed,
    known and unknown, else 409. `change` says what it changed, measured on feedback that was not fitted on."""
    with serving_of(request) as serving, operated(request, serving.name, "recalibrate"):
        try:
            version = await serving.operate(serving.collection.recalibrate)
        except CalibrationError as error:
            raise Problem("conflict", str(error)) from None
    return json_response(version)


@router.get(
    "/calibrations",
    summary="Every calibration there was",
    response_model=VersionsReply,
    responses=documented("not-ready"),
)
async def calibrations(request: Request) -> Response:
    """The last twenty, oldest first, which is in use, and which do not fit the items as they are now."""
    with serving_of(request) as serving:
        collection = serving.collection
        listed = await asyncio.to_thread(collection.calibrations)
        stale = list(await asyncio.to_thread(collection.stale_calibrations))
        told = {"in_use": collection.state.calibration_id, "reason": collection.uncalibrated(), "stale": stale}
        return json_response({**told, "calibrations": listed})


@router.put(
    "/calibration",
    summary="Go to another calibration",
    response_model=VersionsReply,
    responses={
        **JSON_BODY,
        **documented("conflict", "not-ready", "disk-full", "unavailable", "no-such-calibration"),
    },
    openapi_extra=body_of("UseCalibrationRequest"),
)
async def use_calibration(request: Request) -> Response:
    """Serves the calibration of this id until another is chosen or a compaction fits a new one."""
    asked = validated(UseCalibrationRequest, await json_body(request))
    with serving_of(request) as serving, operated(request, serving.name, "calibration", id=asked.id):
        try:
            await serving.operate(lambda: serving.collection.use_calibration(asked.id))
        except NotFound:
            raise Problem("no-such-calibration", "The collection has no calibration of this id.") from None
        except CalibrationError as error:
            raise Problem("conflict", str(error)) from None
    return await calibrations(request)
