"""`/v1/collection`, `/v1/labels`, `/v1/calibration`: what is served, and how far its probabilities can be trusted."""

from __future__ import annotations

import asyncio
import heapq
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from fastapi import APIRouter, Request, Response

from index.items.gallery import Gallery
from index.metrics import risk_coverage
from service.problems import Fault, Problem, documented
from service.routes.state import json_response, serving_of
from service.schemas.collection import CalibrationReply, CollectionReply, LabelsReply

router = APIRouter(prefix="/v1", tags=["collection"], responses=documented("not-ready"))

LARGEST, LISTED, CURVE = 20, 1000, 100
"""Labels that are listed by their size and by their name, and points of the risk-coverage curve."""
_CONTAINS = {
    "name": "contains",
    "in": "query",
    "required": False,
    "schema": {"type": "string", "default": ""},
    "description": "a text that they contain, in whatever case",
}


@router.get("/collection", summary="What is served", response_model=CollectionReply)
async def collection(request: Request) -> Response:
    """Name, size, model and snapshot of the collection, and questions to start with."""
    with serving_of(request) as serving:
        served = serving.collection
        return json_response(
            {
                **served.describe(),
                "name": serving.name,
                "items": served.size,
                "model": served.model_id,
                "snapshot": served.snapshot_id,
                "dimension": served.encoder.dimension,
                "examples": await asyncio.to_thread(serving.examples),
                "labels_by_size": _by_size(served.gallery),
            }
        )


@router.get(
    "/labels",
    summary="Labels by name",
    response_model=LabelsReply,
    responses=documented("invalid-request"),
    openapi_extra={"parameters": [_CONTAINS]},
)
async def labels(request: Request) -> Response:
    """Those that contain a text, or all: what /v1/feedback can name. Of more than 1,000 the first are listed."""
    text = _contained(request.scope["query_string"])
    with serving_of(request) as serving:
        names = await asyncio.to_thread(serving.collection.answerable)
        first, total = await asyncio.to_thread(_containing, names, text)
    return json_response({"labels": first, "total": total})


@router.get("/calibration", summary="How far the probabilities can be trusted", response_model=CalibrationReply)
async def calibration(request: Request) -> Response:
    """How the calibrator was fitted, on how many queries, and what it measured on held-out ones."""
    with serving_of(request) as serving:
        described: dict[str, Any] = serving.collection.describe()
        state = serving.collection.state
    curve = None
    if state.calibration is not None:
        held = state.calibration.held_out
        curve = await asyncio.to_thread(risk_coverage, held.probability, held.right, held.weight, CURVE)
    shown = {name: described[name] for name in ("calibrated", "reason", "stale", "drift", "warnings")}
    version = described["calibration_id"]
    return json_response({**(described["calibration"] or {}), **shown, "version": version, "risk_coverage": curve})


def _contained(raw: bytes) -> str:
    """The text of `contains=...`, or none. Raises `Problem`."""
    try:
        given = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise Problem("invalid-request", "The query string is not percent-encoded UTF-8.") from None
    if given and [name for name, _ in given] != ["contains"]:
        fault = Fault("contains", "expected once, and no other parameter")
        raise Problem("invalid-request", f"{fault.pointer}: {fault.detail}.", [fault])
    return given[0][1] if given else ""


def _containing(names: list[str], text: str) -> tuple[list[str], int]:
    """The first `LISTED`, and how many there are."""
    folded = text.casefold()
    found = [name for name in names if folded in name.casefold()]
    return heapq.nsmallest(LISTED, found, key=lambda name: (name != text, name)), len(found)


def _by_size(gallery: Gallery) -> list[dict[str, Any]]:
    """The labels with the most items, largest first."""
    sizes = gallery.profile.sizes
    largest = np.argsort(-sizes, kind="stable")[:LARGEST]
    return [{"label": gallery.names[code], "items": int(sizes[code])} for code in largest]
