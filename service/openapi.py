"""The OpenAPI document: FastAPI's own, plus the schemas of bodies that the routes parse and write themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.access import scope_needed
from service.problems import documented
from service.schemas import EmbeddingsRequest, ProblemReply

REF = "#/components/schemas/{model}"


def openapi(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=_TAGS
    )
    _, own = models_json_schema(
        [(app.state.request_model, "validation"), (EmbeddingsRequest, "validation"), (ProblemReply, "serialization")],
        ref_template=REF,
    )
    document["components"]["schemas"].update(own["$defs"])
    if app.state.keys is not None:
        _secure(document)
    return document


def _secure(document: dict[str, Any]) -> None:
    """Say which operations need a key, of which scope, and that they answer 401 and 403 without."""
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "made by `surematch keys add NAME --scope SCOPE`"}
    }
    refusals = documented("unauthorized", "forbidden")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            scope = scope_needed(method.upper(), path)
            if scope is not None:
                operation["security"] = [{"key": [scope]}]
                operation["responses"].update({str(status): reply for status, reply in refusals.items()})


_TAGS = [
    {"name": "search", "description": "Ask: hits, calibrated probabilities, the no-match share."},
    {"name": "collection", "description": "What is served, and how far its probabilities can be trusted."},
    {"name": "embeddings", "description": "The collection's encoder, as OpenAI's API has it."},
    {"name": "admin", "description": "For operators; needs the scope admin where keys are used."},
    {"name": "health", "description": "For supervisors and load balancers."},
]
