"""Errors as RFC 9457 `application/problem+json`: what was wrong, where, and what to do.

The request's content is never repeated: a body of megabytes, a NaN or a lone surrogate must not travel into the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from index.errors import (
    CalibrationError,
    DataError,
    DiskFull,
    Displaced,
    ReadOnly,
    SettingsError,
    SurematchError,
    WriterBusy,
)
from service.as_json import as_json
from service.by_name import address
from service.schemas.queries import QUERY_TAGS

MEDIA_TYPE = "application/problem+json"
MAX_FAULTS = 20
MAX_POINTER = 200
log = logging.getLogger("surematch.service")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem; `/problems/<slug>` is its address."""

    slug: str
    status: int
    title: str
    remedy: str


KINDS = {
    kind.slug: kind
    for kind in (
        Kind("bad-request", 400, "The request could not be understood", "Send a well-formed HTTP/1.1 request."),
        Kind("unauthorized", 401, "A key is needed", "Send a valid key: `Authorization: Bearer KEY`."),
        Kind("forbidden", 403, "The key may not do this", "Use a key with that scope: `surematch keys add`."),
        Kind(
            "cross-site",
            403,
            "A page of another site may not change anything here",
            "Use this service's own pages, a program that is no browser, or keys: `surematch keys add`.",
        ),
        Kind("not-found", 404, "There is nothing at this address", "See /docs for the addresses that exist."),
        Kind("no-such-item", 404, "There is no such item", "Check the id; an item that was deleted is gone."),
        Kind("no-such-collection", 404, "There is no such collection", "See GET /v1/collections for their names."),
        Kind("no-such-calibration", 404, "There is no such calibration", "See GET /v1/admin/calibrations."),
        Kind("no-such-job", 404, "There is no such job", "See GET /v1/jobs."),
        Kind("no-such-query", 404, "There is no such query", "Only recent ones are remembered; ask again."),
        Kind("method-not-allowed", 405, "This address does not know the method", "Use a method of the Allow header."),
        Kind("slow-body", 408, "The body did not arrive in time", "Send it faster, or in smaller requests."),
        Kind("conflict", 409, "The state of the collection forbids it", "See what `detail` says."),
        Kind(
            "body-too-large",
            413,
            "The body is too large",
            "Send less at once (fewer queries or items, a smaller picture), or raise it: `surematch serve "
            "--max-body-bytes N`.",
        ),
        Kind(
            "unsupported-media-type",
            415,
            "The body's content type is not supported",
            "Send JSON with the header Content-Type: application/json.",
        ),
        Kind("head-too-large", 431, "The request's head is too large", "Send at most 64 KiB of address and headers."),
        Kind("unknown-host", 421, "This service has another name", "Call it 127.0.0.1, or add --allowed-hosts NAME."),
        Kind("not-json", 422, "The body is not valid JSON", "Send one JSON object in UTF-8, without NaN or Infinity."),
        Kind("invalid-request", 422, "The request is not valid", "Correct what `errors` names; /docs has the schema."),
        Kind("busy", 503, "Too much is waiting", "Try again after the time of the Retry-After header."),
        Kind("too-slow", 503, "The search took too long", "Try again later, with fewer queries a request."),
        Kind("not-ready", 503, "The service is not ready", "Wait until /readyz answers 200."),
        Kind("unavailable", 503, "The collection cannot answer", "The service's log names the fault and the remedy."),
        Kind("disk-full", 507, "The disk is full", "Nothing was written; make room and send it again."),
        Kind("internal", 500, "The service failed", "The service's log has the details; this is a fault of ours."),
    )
}
DISPLACED = (
    "The collection was moved, removed or replaced, or its link points elsewhere: nothing can be written any more. Put "
    "it back, or start the service anew."
)
STOPPING = "The service is about to stop."
_BY_STATUS = {
    400: "bad-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    413: "body-too-large",
    415: "unsupported-media-type",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Where (JSON pointer, or a query parameter's name) and what."""

    pointer: str
    detail: str


@dataclass(slots=True)
class Problem(Exception):
    """Raise anywhere below a route to answer with a problem of this kind."""

    slug: str
    detail: str
    faults: list[Fault] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


def stopping(outcome: str) -> Problem:
    """Of a request that a stop of the service does not wait for."""
    return Problem("not-ready", f"{STOPPING} {outcome}", headers={"Connection": "close"})


def response(problem: Problem, path: str) -> Response:
    kind = KINDS[problem.slug]
    # without a list of faults these details come from `index.errors` or are as good: they carry their own remedy
    own_remedy = kind.slug in ("invalid-request", "conflict") and not problem.faults
    body: dict[str, Any] = {
        "type": f"/problems/{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail if own_remedy else f"{problem.detail} {kind.remedy}",
        "instance": path,
    }
    if problem.faults:
        body["errors"] = problem.faults
    return Response(as_json(body), kind.status, problem.headers, MEDIA_TYPE)


def from_validation(error: ValidationError) -> Problem:
    """A pydantic error as a problem with JSON pointers, without the input."""
    errors = error.errors(include_url=False, include_input=False, include_context=True)
    if errors[0]["type"] == "json_invalid":
        why = str(errors[0].get("ctx", {}).get("error", "it cannot be parsed"))
        return Problem("not-json", f"The body cannot be parsed: {why}.")
    faults = [Fault(pointer(fault["loc"]), _say(fault["type"], fault["loc"], fault["msg"])) for fault in errors]
    more = f" The first {MAX_FAULTS} are listed." if len(faults) > MAX_FAULTS else ""
    first = f"{faults[0].pointer or 'the body'}: {faults[0].detail}."
    count = "" if len(faults) == 1 else f" {len(faults)} faults were found in all.{more}"
    return Problem("invalid-request", first + count, faults[:MAX_FAULTS])


def pointer(location: Iterable[int | str]) -> str:
    """RFC 6901 pointer of a pydantic error location; '' is the whole document."""
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in location if part not in QUERY_TAGS)
    path = "".join("/" + part for part in parts)
    return path if len(path) <= MAX_POINTER else path[: MAX_POINTER - 1] + "…"


def _say(kind: str, location: tuple[int | str, ...], message: str) -> str:
    if kind == "extra_forbidden":
        return f"'{str(location[-1])[:80]}' is not a member this version knows"
    if kind == "missing":
        return "this member is required"
    return message.replace("Input should be", "expected").removesuffix(".")


async def answer(request: Request, error: Exception) -> Response:
    """The problem that an error is to whoever sent the request."""
    return response(_problem(request, error), address(request.scope))


def _problem(request: Request, error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case HTTPException():
            slug = _BY_STATUS.get(error.status_code, "internal" if error.status_code >= 500 else "bad-request")
            detail = {404: "The address is unknown.", 405: f"{request.method} is not possible here."}
            headers = dict(error.headers or {})
            if error.status_code == 405:
                headers["Allow"] = ", ".join(_methods(request))
            return Problem(slug, detail.get(error.status_code, f"{error.detail}."), headers=headers)
        case DataError() | CalibrationError() | SettingsError():
            return Problem("invalid-request", str(error))
        case ReadOnly() | WriterBusy():
            return Problem("conflict", str(error))
        case DiskFull():
            log.error("there is no room: %s", error, extra=_of_request(request.scope))
            return Problem("disk-full", str(error))
        case SurematchError():
            log.error("a request failed: %s", error, extra=_of_request(request.scope))
            why = DISPLACED if isinstance(error, Displaced) else "The collection or its encoder reported a fault."
            return Problem("unavailable", why)
    return Problem("internal", "Something unexpected happened.")


def _of_request(scope: Scope) -> dict[str, Any]:
    """What a line of the log says of the request it is about."""
    return {"fields": {"request_id": scope.get("state", {}).get("request_id")}}


ANSWERED = (Problem, HTTPException, SurematchError)
"""Errors that say what was wrong; any other is a fault of ours."""


class Faults:
    """Answers a fault of ours, which it logs, where log, metrics, traces and headers are added to it as to any answer.

    The framework would answer it outside of all of them, and its own middleware for that (ServerErrorMiddleware) raises
    it again, to be logged without the request's id. One that comes after the answer has begun goes on up, for the
    server to end the connection. So does the end of the time that a service which stops gives to requests: the server
    cancels them, and would answer with a bare 500.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except ClientDisconnect:
            pass  # there is nobody to answer, and nothing is wrong
        except asyncio.CancelledError:
            if begun:
                raise
            cut_short = stopping("What it was to write, if anything, may be done or not: read it back.")
            await response(cut_short, address(scope))(scope, receive, send)
        except Exception as error:
            if begun:
                raise
            log.error("a fault of ours", exc_info=error, extra=_of_request(scope))
            await (await answer(Request(scope), error))(scope, receive, send)


def install(app: FastAPI) -> None:
    """Make every error of the application a problem."""
    for kind in (*ANSWERED, Exception):
        app.add_exception_handler(kind, answer)


def _methods(request: Request) -> list[str]:
    """Those of all routes at this address: each route names only its own."""
    scope = dict(request.scope)
    found: set[str] = set()
    for route in request.app.state.routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)


def documented(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for the OpenAPI document."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in (KINDS[slug] for slug in slugs):
        schema = {"schema": {"$ref": "#/components/schemas/ProblemReply"}}
        text = found.get(kind.status, {}).get("description")
        title = f"{text}; {kind.title.lower()}" if text else kind.title
        found[kind.status] = {"description": title, "content": {MEDIA_TYPE: schema}}
    return found
