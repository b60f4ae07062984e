"""The OpenAPI document: FastAPI's own, plus the schemas of bodies that the routes parse and write themselves."""

from __future__ import annotations

import base64
from copy import deepcopy
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from index.collection import Collection
from service.by_name import ALONE
from service.http.access import scope_needed
from service.problems import documented
from service.schemas.base import VISIBLE, ProblemReply
from service.schemas.collection import UseCalibrationRequest
from service.schemas.embeddings import EmbeddingsRequest
from service.schemas.items import FeedbackRequest
from service.schemas.jobs import JobRequest, PromoteRequest
from service.settings import ServeSettings

REF = "#/components/schemas/{model}"


def openapi(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=_TAGS
    )
    _, own = models_json_schema(
        [
            *((model, "validation") for model in (app.state.request_model, EmbeddingsRequest, FeedbackRequest)),
            *((model, "validation") for model in (UseCalibrationRequest, JobRequest, PromoteRequest)),
            *((model, "validation") for model in (app.state.put_model, app.state.delete_model)),
            (ProblemReply, "serialization"),
        ],
        ref_template=REF,
    )
    document["components"]["schemas"].update(own["$defs"])
    _limit(document, app.state.settings)
    if app.state.keys is not None:
        _secure(document)
    served = {name: now.serving.collection for name, now in app.state.currents.items() if now.serving}
    if len({collection.model_id for collection in served.values()}) == 1:
        _tailor(document["components"]["schemas"], served)
    if len(served) > 1:
        _by_name(document["paths"], list(served))
    return document


def _by_name(paths: dict[str, Any], names: list[str]) -> None:
    """Where several collections are served, every operation on one has a twin at `/v1/collections/{name}/...`."""
    which = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": names}}
    for path in [path for path in paths if path.startswith("/v1/") and not path.startswith(ALONE)]:
        twins = deepcopy(paths[path])
        for operation in twins.values():
            operation["operationId"] += "_of_collection"
            operation["parameters"] = [which, *operation.get("parameters", [])]
            (missing,) = documented("no-such-collection").values()
            also = operation["responses"].get("404")
            if also is not None:
                missing = {**also, "description": f"{also['description']}; {missing['description'].lower()}"}
            operation["responses"]["404"] = missing
        paths[f"/v1/collections/{{name}}{path.removeprefix('/v1')}"] = twins


def _limit(document: dict[str, Any], settings: ServeSettings) -> None:
    """The settings' limits, where they are not in the models already."""
    for parameter in document["paths"]["/v1/search"]["get"]["parameters"]:
        if parameter["name"] == "k":
            parameter["schema"] |= {"maximum": settings.max_k}
        elif parameter["name"] == "text":
            parameter["schema"] |= {"maxLength": settings.max_text_chars}
    text = {"minLength": 1, "maxLength": settings.max_text_chars, "pattern": VISIBLE}
    document["components"]["schemas"]["EmbeddingsRequest"]["properties"]["input"] |= {
        "anyOf": [
            {"type": "string", **text},
            {"type": "array", "minItems": 1, "maxItems": settings.max_queries, "items": {"type": "string", **text}},
        ]
    }


def _tailor(schemas: dict[str, Any], served: dict[str, Collection]) -> None:
    """What depends on the collections now served, all of one model: its dimension, and its names."""
    collection = next(iter(served.values()))
    d = collection.encoder.dimension
    full, rest = divmod(4 * d, 3)
    tail = ("", "[A-Za-z0-9+/][AQgw]==", "[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=")[rest]
    length = 4 * (full + (rest > 0))
    of_list = {"minItems": d, "maxItems": d}
    of_base64 = {
        "minLength": length,
        "maxLength": length,
        "pattern": f"^[A-Za-z0-9+/]{{{4 * full}}}{tail}$",
        "examples": [base64.b64encode(np.eye(1, d, dtype="<f4").tobytes()).decode()],
    }
    schemas["VectorQuery"]["properties"]["vector"] |= of_list
    schemas["Base64Query"]["properties"]["vector_base64"] |= of_base64
    item = schemas["ItemBody"]["properties"]
    item["vector"]["anyOf"][0] |= of_list
    item["vector_base64"]["anyOf"][0] |= of_base64
    embeddings = schemas["EmbeddingsRequest"]["properties"]
    # each of several collections takes its own name and not the others', and all of them the model's
    names = list(served) if len(served) == 1 else []
    embeddings["model"] |= {"enum": list(dict.fromkeys((*names, collection.model_id)))}
    embeddings["dimensions"] |= {"anyOf": [{"const": d}, {"type": "null"}]}


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
    {"name": "items", "description": "Change what is searched, and say what was right (`surematch serve --writable`)."},
    {"name": "embeddings", "description": "The collection's encoder, as OpenAI's API has it."},
    {
        "name": "jobs",
        "description": "Train, index, recalibrate beside the service (`--jobs DIR`); scope admin.",
    },
    {"name": "admin", "description": "For operators; needs the scope admin where keys are used."},
    {"name": "health", "description": "For supervisors and load balancers."},
]
