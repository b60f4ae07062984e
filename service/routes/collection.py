"""`/v1/collection` and `/v1/calibration`: what is served, and how far its probabilities can be trusted."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from index.items.gallery import Gallery
from index.metrics import risk_coverage
from service.problems import documented
from service.routes.state import json_response, serving_of
from service.schemas import CalibrationReply, CollectionReply

router = APIRouter(prefix="/v1", tags=["collection"], responses=documented("not-ready"))

LARGEST, CURVE = 20, 100
"""Labels that are listed by their size, and points of the risk-coverage curve."""


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


def _by_size(gallery: Gallery) -> list[dict[str, Any]]:
    """The labels with the most items, largest first."""
    sizes = gallery.profile.sizes
    largest = np.argsort(-sizes, kind="stable")[:LARGEST]
    return [{"label": gallery.names[code], "items": int(sizes[code])} for code in largest]
