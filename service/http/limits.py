"""What stands between the socket and the application: known host names, the body limit, and security headers."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.by_name import address
from service.headers import header
from service.problems import Problem, response


class BodyLimit:
    """Refuses bodies over `limit` bytes with 413: by Content-Length before anything is read, else while counting; and
    with 408 those that take longer than `seconds`.

    `service.http.drain` sees to it that the client reads the answer.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # The server has checked that the header, if any, is digits.
        if int(header(scope, b"content-length") or "0") > self.limit:
            await response(self.too_large(), address(scope))(scope, receive, send)
            return
        seen = 0
        whole = False
        deadline = asyncio.get_running_loop().time() + self.seconds

        async def counted() -> Message:
            nonlocal seen, whole
            if whole:  # what is waited for now is only the client's going away
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                # the rest may never come: the connection cannot be used for another request
                headers = {"Connection": "close"}
                raise Problem("slow-body", f"It took over {self.seconds:g} seconds.", headers=headers) from None
            whole = not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise self.too_large()
            return message

        await self.app(scope, counted, send)

    def too_large(self) -> Problem:
        return Problem("body-too-large", f"The limit is {self.limit:,} bytes a request.")


_SAFE = ("GET", "HEAD", "OPTIONS")
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class KnownHosts:
    """Refuses requests with several Host headers. Where `names` are given, which is where no key tells friend from foe,
    also those whose Host header is none of them, and changes that a page of another site sends.

    A web page elsewhere can have its own name resolve to 127.0.0.1 and then read a service on loopback as if it were
    its own (DNS rebinding); the name it must use gives it away. And it can post what needs no content type of JSON; a
    browser says that it does (Fetch Metadata, or Origin). A request without these headers is no browser's.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] | None) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is not None:
            await response(problem, address(scope))(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) > 1:  # a proxy may have heeded another one
            return Problem("bad-request", "It has several Host headers.")
        if self.names is None:
            return None
        if hosts and not self._is_own(hosts[0].decode("latin-1")):
            return Problem("unknown-host", "The Host header names another service.")
        if scope["method"] not in _SAFE and self._is_elsewheres(scope):
            return Problem("cross-site", "The browser says that the request is of another site's page.")
        return None

    def _is_own(self, host: str) -> bool:
        return _without_port(host).lower() in self.names if self.names is not None else True

    def _is_elsewheres(self, scope: Scope) -> bool:
        site, origin = header(scope, b"sec-fetch-site"), header(scope, b"origin")
        if site in ("cross-site", "same-site"):  # the latter is another port, or another name of the domain
            return True
        return origin is not None and not self._is_own(origin.partition("://")[2])


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


# Scripts and styles only from this service, nothing inline, no other origin, no framing, no forms.
_CONTENT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _CONTENT,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_RAW = tuple((name.lower().encode(), value.encode()) for name, value in HEADERS.items())
_NO_STORE, _NO_CACHE = (b"cache-control", b"no-store"), (b"cache-control", b"no-cache")


class SecurityHeaders:
    """Adds `HEADERS` to every answer, and forbids caching what depends on the collection."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message["headers"]
                said = {name for name, _ in own}
                caching = _NO_STORE if scope["path"].startswith("/v1/") else _NO_CACHE
                message["headers"] = [*own, *(header for header in (*_RAW, caching) if header[0] not in said)]
                if scope["app"].state.draining:  # so that a kept connection is made anew, to another process
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)
