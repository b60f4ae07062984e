"""Logs as one JSON object a line on stderr, and a request's line: who, what, how long, never a text, a key or a query.

Addresses are logged as the route's template (`/v1/items/{id}`), because an id or a query string may name a person.
"""

from __future__ import annotations

import logging
import random
import re
import sys
import time
from typing import Any

from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.as_json import as_json
from service.headers import header

REQUEST_ID = "X-Request-Id"
_RAW_ID = REQUEST_ID.lower().encode()
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
log = logging.getLogger("surematch.access")


class JsonLines(logging.Formatter):
    """time, level, logger, message, and what `extra={"fields": {...}}` adds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return as_json(line).decode()


def configuration(*, access: bool) -> dict[str, Any]:
    """For `logging.config.dictConfig`."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": sys.stderr}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},  # of libraries: what cannot send traces, for one
        "loggers": {
            "surematch": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
            "surematch.access": {"level": "INFO" if access else "WARNING"},
            # uvicorn's own notices of start and stop are said by us; its errors are not
            "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        },
    }


class RequestLog:
    """Gives every request an id (the caller's, if it is a plain one), answers with it, and logs one line."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = header(scope, _RAW_ID) or ""
        request_id = given if _PLAIN_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (_RAW_ID, request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            if log.isEnabledFor(logging.INFO):
                seconds = time.perf_counter() - began
                log.info("request", extra={"fields": _fields(scope, request_id, status, seconds)})


def _fields(scope: Scope, request_id: str, status: int, seconds: float) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "method": scope["method"],
        "route": route_of(scope),
        "status": status,
        "ms": round(seconds * 1000, 2),
        "key": scope["state"].get("key"),
    }


def route_of(scope: Scope) -> str:
    """The template of the route that answered, or would have, had the request not been refused before it came there;
    "-" for none: of bounded number, and without the caller's words."""
    route = scope.get("route")
    if route is None:
        known = scope["app"].state.routes
        route = next((one for one in known if one.matches(dict(scope))[0] is Match.FULL), None)
    return str(getattr(route, "path", "-"))
