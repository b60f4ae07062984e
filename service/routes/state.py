"""What the routes share: the collection now served, and JSON written without a second validation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from service.problems import Problem, documented, from_validation
from service.serving.collection import Current, Serving
from service.telemetry.audit import AuditLog, Operation

B = TypeVar("B", bound=BaseModel)
JSON_BODY = documented("body-too-large", "slow-body", "unsupported-media-type", "invalid-request", "not-json")
"""What may be wrong with a body that `json_body` reads and `validated` parses."""


def currents_of(request: Request) -> dict[str, Current]:
    """By name, the default one first. Raises `Problem` "not-ready" outside the application's lifespan."""
    currents: dict[str, Current] = request.app.state.currents
    if not currents:
        raise Problem("not-ready", "No collection is open.", headers={"Retry-After": "1"})
    return currents


def current_of(request: Request) -> Current:
    """The collection that the address names, the default one otherwise. Raises `Problem` as `named`."""
    return named(request, request.scope["state"].get("collection"))


def named(request: Request, name: str | None) -> Current:
    """The collection of this name, the default one for None.

    Raises `Problem` "not-ready" as `currents_of`, and "no-such-collection".
    """
    currents = currents_of(request)
    if name is None:
        return next(iter(currents.values()))
    if name not in currents:
        raise Problem("no-such-collection", "This service has no collection of this name.")
    return currents[name]


def serving_of(request: Request) -> AbstractContextManager[Serving]:
    """`with serving_of(request) as serving`: the version now served, kept open until the block is left.

    Raises `Problem` "not-ready" before it is open and after it is closed.
    """
    serving = current_of(request).serving
    if serving is None:
        raise Problem("not-ready", "No collection is open.", headers={"Retry-After": "1"})
    return serving.used()


def audit_of(request: Request) -> AuditLog | None:
    """The audit log, None where the service keeps none."""
    audit: AuditLog | None = request.app.state.audit
    return audit


@contextmanager
def audited(request: Request, collection: str | None, announce: Callable[[AuditLog], None]) -> Iterator[None]:
    """Announces a change to the audit log, if there is one, and says there when it then fails."""
    audit = audit_of(request)
    if audit is None:
        yield
        return
    announce(audit)
    try:
        yield
    except Exception:  # not cancellation: a write that has begun is finished, whoever hangs up
        audit.failed(request, collection)
        raise


def operated(request: Request, collection: str | None, event: Operation, **which: str) -> AbstractContextManager[None]:
    """As `audited`, for what an operator does."""
    return audited(request, collection, lambda audit: audit.operating(request, collection, event, **which))


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_body(request: Request) -> bytes:
    """The body, if it is said to be JSON. Raises `Problem`.

    That it must be said is also what keeps a foreign web page from posting here: a form cannot send JSON.
    """
    if media_type(request) != "application/json":
        raise Problem("unsupported-media-type", f"Got {media_type(request)[:80] or 'no Content-Type'!r}.")
    return await request.body()


def body_of(model: str) -> dict[str, Any]:
    """`openapi_extra` of a route that parses a JSON body of this model itself."""
    schema = {"schema": {"$ref": f"#/components/schemas/{model}"}}
    return {"requestBody": {"required": True, "content": {"application/json": schema}}}


def validated(model: type[B], body: bytes) -> B:
    """Raises `Problem`."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None


def json_response(content: Any) -> Response:
    """`content` may hold dataclasses and numpy numbers."""
    try:
        body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # an integer beyond 64 bits in somebody's metadata
        body = json.dumps(content, default=_plain, allow_nan=False, ensure_ascii=True).encode()
    return Response(body, media_type="application/json")


def _plain(value: Any) -> Any:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
