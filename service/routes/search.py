"""`/v1/search`: POST for batches, GET for one text from a browser or curl."""

from __future__ import annotations

import re
from typing import Any, get_args
from urllib.parse import parse_qsl

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import ValidationError

from index.calibration.conformal import CoverageFor
from index.calibration.outcome import TAYLOR_ORDER
from index.items.filters import spares_some
from service.problems import Fault, Problem, documented, from_validation
from service.routes.state import JSON_BODY, audit_of, json_body, json_response, media_type, serving_of
from service.schemas.base import VISIBLE
from service.schemas.search import SearchReply, SearchRequest
from service.serving.tracing import search_spans

router = APIRouter(prefix="/v1", tags=["search"])
_PROBLEMS = documented("busy", "too-slow", "not-ready", "disk-full")  # the last where an audit log is kept
OCTETS = "application/octet-stream"
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/SearchRequest"},
            "example": {"queries": [{"text": "what is the temperature outside"}], "k": 5, "coverage": 0.95},
        },
        OCTETS: {"schema": {"type": "string", "format": "binary"}},
    },
}


_MAP = rf"^(softmax|sparsemax|entmax15|taylor|entmax:(1(\.[0-9]{{1,20}})?|2(\.0{{1,20}})?)|taylor:{TAYLOR_ORDER})$"
_NUMBER = r"\d{1,20}(\.\d{1,400})?([eE][+-]?\d{1,3})?"
_PARAMETERS = [
    {"name": name, "in": "query", "required": False, "schema": schema, "description": description}
    for name, schema, description in (
        ("k", {"type": "integer", "default": 10, "minimum": 1}, "hits to return"),
        (
            "map",
            {"type": "string", "default": "softmax", "pattern": _MAP},
            f"softmax, sparsemax, entmax15, taylor, entmax:1.3 or taylor:{TAYLOR_ORDER}",
        ),
        (
            "coverage",
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            "coverage of the prediction set",
        ),
        (
            "coverage_for",
            {"type": "string", "enum": list(get_args(CoverageFor)), "default": "mixed"},
            "whom the coverage is promised to",
        ),
        ("explain", {"type": "boolean", "default": False}, "also answer why"),
    )
]
_NAMES = tuple(str(parameter["name"]) for parameter in _PARAMETERS)
_TEXT = {
    "name": "text",
    "in": "query",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "pattern": VISIBLE},
    "description": "the query",
}


@router.post(
    "/search",
    summary="Search with one or more queries",
    response_model=SearchReply,
    responses={**JSON_BODY, **_PROBLEMS},
    openapi_extra={"requestBody": _BODY},
)
async def post_search(request: Request) -> Response:
    """Hits, label distribution, no-match share, decision and prediction set for each query, in the given order.

    The body is JSON; or `application/octet-stream`: the vectors' little-endian float32 numbers, one after another, with
    k, map, coverage, coverage_for and explain in the query string.
    """
    if media_type(request) == OCTETS:
        return await _answer_vectors(request, await request.body())
    if request.scope["query_string"]:
        raise Problem("invalid-request", "A JSON search takes no query parameters: write them into the body.")
    return await _answer(request, _validated(request, await json_body(request)))


@router.get(
    "/search",
    summary="Search with one text",
    response_model=SearchReply,
    responses={**documented("invalid-request"), **_PROBLEMS},
    openapi_extra={"parameters": [_TEXT, *_PARAMETERS]},
)
async def get_search(request: Request) -> Response:
    """The same answer for one text, for curl and browsers: `results` has one element."""
    return await _answer(request, _validated(request, _from_query_string(request.scope["query_string"], ("text",))))


def _validated(request: Request, body: bytes | dict[str, Any]) -> SearchRequest:
    model: type[SearchRequest] = request.app.state.request_model
    try:
        return model.model_validate_json(body) if isinstance(body, bytes) else model.model_validate(body)
    except ValidationError as error:
        problem = from_validation(error)
        if isinstance(body, dict):
            problem.faults = [Fault(_parameter(fault.pointer), fault.detail) for fault in problem.faults]
            problem.detail = "; ".join(f"{fault.pointer}: {fault.detail}" for fault in problem.faults) + "."
        raise problem from None


async def _answer_vectors(request: Request, body: bytes) -> Response:
    """Raises `Problem` for a body that is not whole vectors, or too many."""
    asked = _validated(request, _from_query_string(request.scope["query_string"], ()))
    with serving_of(request) as serving:
        width = 4 * serving.collection.encoder.dimension
    most = request.app.state.settings.max_queries
    if not body or len(body) % width or len(body) // width > most:
        raise Problem(
            "invalid-request",
            f"Got {len(body):,} bytes, expected a multiple of {width}, the size of a float32 vector of this model, and "
            f"at most {most} vectors.",
        )
    vectors = np.frombuffer(body, "<f4").reshape(-1, width // 4).astype(np.float32, copy=False)
    return await _answer(request, asked, vectors)


async def _answer(request: Request, asked: SearchRequest, vectors: NDArray[np.float32] | None = None) -> Response:
    with serving_of(request) as serving:
        found, timings = await serving.searcher.search(asked, vectors, alone=request.app.state.under_way() == 1)
        filtered = asked.filter is not None and spares_some(asked.filter)
        query_ids = None if serving.recent is None else serving.recent.remember(found.vectors, filtered=filtered)
        if (audit := audit_of(request)) is not None:
            audit.searched(request, serving.name, found.answers, query_ids)
        if (tracer := request.app.state.tracer) is not None:
            search_spans(tracer, serving.name, found, timings)
    return json_response(
        {
            "results": found.answers,
            "query_ids": query_ids,
            "collection": serving.name,
            "model": serving.collection.model_id,
            "snapshot": found.snapshot,
            "calibration_id": found.calibration_id,
            "sequence": found.sequence,
            "timings": timings,
        }
    )


def _from_query_string(raw: bytes, required: tuple[str, ...]) -> dict[str, Any]:
    """A search request from `text=...&k=...`, the text only where it is required.

    Raises `Problem` for what is not UTF-8, unknown or given twice."""
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20)
    except (UnicodeDecodeError, ValueError):
        raise Problem(
            "invalid-request", "The query string is not percent-encoded UTF-8, or has too many parts."
        ) from None
    given = dict(pairs)
    known = (*required, *_NAMES)
    faults = [
        Fault(name[:80], f"this parameter is not known; {', '.join(known)} are") for name in given if name not in known
    ]
    faults += [Fault(name[:80], "given more than once") for name in given if sum(p[0] == name for p in pairs) > 1]
    faults += [Fault(name, "this parameter is required") for name in required if name not in given]
    # without a text the queries are vectors in the body; one that is never encoded stands for them
    body: dict[str, Any] = {"queries": [{"text": given.get("text") if required else "-"}]}
    if "coverage_for" in given:
        body["coverage_for"] = given["coverage_for"]
    for name, kind, pattern in (("k", int, r"\d{1,9}"), ("coverage", float, _NUMBER)):
        if name in given and re.fullmatch(pattern, given[name], re.ASCII):
            body[name] = kind(given[name])
        elif name in given:
            faults.append(Fault(name, "expected " + ("a whole number" if kind is int else "a number between 0 and 1")))
    if "explain" in given:
        if given["explain"] in ("true", "false"):
            body["explain"] = given["explain"] == "true"
        else:
            faults.append(Fault("explain", "expected true or false"))
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
