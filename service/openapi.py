"""The OpenAPI document: FastAPI's own, plus the schemas of bodies that the routes parse and write themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.schemas import ProblemReply

REF = "#/components/schemas/{model}"


def openapi(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=_TAGS
    )
    _, own = models_json_schema(
        [(app.state.request_model, "validation"), (ProblemReply, "serialization")], ref_template=REF
    )
    document["components"]["schemas"].update(own["$defs"])
    return document


_TAGS = [
    {"name": "search", "description": "Ask: hits, calibrated probabilities, the no-match share."},
    {"name": "collection", "description": "What is served, and how far its probabilities can be trusted."},
    {"name": "health", "description": "For supervisors and load balancers."},
]
