"""`/v1/search`: POST for batches, GET for one text from a browser or curl."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from service.problems import Fault, Problem, documented, from_validation
from service.routes.state import json_response, serving_of
from service.schemas import SearchReply, SearchRequest

router = APIRouter(prefix="/v1", tags=["search"])
_PROBLEMS = documented("invalid-request", "not-json", "busy", "not-ready")
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/SearchRequest"},
            "example": {"queries": [{"text": "what is the temperature outside"}], "k": 5, "coverage": 0.95},
        }
    },
}


@router.post(
    "/search",
    summary="Search with one or more queries",
    response_model=SearchReply,
    responses={**documented("body-too-large", "unsupported-media-type"), **_PROBLEMS},
    openapi_extra={"requestBody": _BODY},
)
async def post_search(request: Request) -> Response:
    """Hits, label distribution, no-match share, decision and prediction set for each query, in the given order."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        # Also what keeps a foreign web page from posting here without asking: a form cannot send JSON.
        raise Problem("unsupported-media-type", f"Got {media_type[:80] or 'no Content-Type'!r}.")
    return await _answer(request, await request.body())


_PARAMETERS = [
    {
        "name": name,
        "in": "query",
        "required": name == "text",
        "schema": schema,
        "description": description,
    }
    for name, schema, description in (
        ("text", {"type": "string"}, "the query"),
        ("k", {"type": "integer", "default": 10, "minimum": 1}, "hits to return"),
        (
            "map",
            {"type": "string", "default": "softmax"},
            "softmax, sparsemax, entmax15, taylor, entmax:1.3 or taylor:6",
        ),
        (
            "coverage",
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            "coverage of the prediction set",
        ),
    )
]


@router.get(
    "/search",
    summary="Search with one text",
    response_model=SearchReply,
    responses=_PROBLEMS,
    openapi_extra={"parameters": _PARAMETERS},
)
async def get_search(request: Request) -> Response:
    """The same answer for one text, for curl and browsers: `results` has one element."""
    return await _answer(request, _from_query_string(request.scope["query_string"]))


async def _answer(request: Request, body: bytes | dict[str, Any]) -> Response:
    serving = serving_of(request)
    model: type[SearchRequest] = request.app.state.request_model
    try:
        asked = model.model_validate_json(body) if isinstance(body, bytes) else model.model_validate(body)
    except ValidationError as error:
        problem = from_validation(error)
        if isinstance(body, dict):
            problem.faults = [Fault(_parameter(fault.pointer), fault.detail) for fault in problem.faults]
            problem.detail = "; ".join(f"{fault.pointer}: {fault.detail}" for fault in problem.faults) + "."
        raise problem from None
    answers, timings = await serving.searcher.search(asked)
    return json_response(
        {
            "results": answers,
            "collection": serving.collection.name,
            "model": serving.collection.model_id,
            "snapshot": serving.collection.snapshot_id,
            "timings": timings,
        }
    )


def _from_query_string(raw: bytes) -> dict[str, Any]:
    """A search request from `text=...&k=...`. Raises `Problem` for what is not UTF-8, unknown or given twice."""
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20)
    except (UnicodeDecodeError, ValueError):
        raise Problem(
            "invalid-request", "The query string is not percent-encoded UTF-8, or has too many parts."
        ) from None
    given = dict(pairs)
    faults = [
        Fault(name[:80], "this parameter is not known; text, k, map and coverage are")
        for name in given
        if name not in ("text", "k", "map", "coverage")
    ]
    faults += [Fault(name[:80], "given more than once") for name in given if sum(p[0] == name for p in pairs) > 1]
    if "text" not in given:
        faults.append(Fault("text", "this parameter is required"))
    body: dict[str, Any] = {"queries": [{"text": given.get("text")}]}
    for name, kind, pattern in (("k", int, r"\d{1,9}"), ("coverage", float, r"\d{0,3}\.?\d{1,20}")):
        if name in given and re.fullmatch(pattern, given[name], re.ASCII):
            body[name] = kind(given[name])
        elif name in given:
            faults.append(Fault(name, "expected " + ("a whole number" if kind is int else "a number between 0 and 1")))
    if "map" in given:
        name, _, value = given["map"].partition(":")
        if value and re.fullmatch(r"\d{1,3}(\.\d{1,20})?", value, re.ASCII):
            body["map"] = {name: int(value) if value.isdigit() else float(value)}
        else:
            body["map"] = given["map"]
    if faults:
        detail = "; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults) + "."
        raise Problem("invalid-request", detail, faults)
    return body


def _parameter(pointer: str) -> str:
    """The query parameter behind a pointer into the request it was made into."""
    return "text" if pointer.startswith("/queries") else pointer.split("/")[1]
