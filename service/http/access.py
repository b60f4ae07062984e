"""Which scope a request needs, and whether its key has it. What is not listed here needs `admin`."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.by_name import address
from service.headers import header
from service.http.keys import Keys
from service.problems import Problem, response

OPEN = ("/healthz", "/readyz", "/docs", "/calibration", "/collection", "/openapi.json", "/favicon.ico", "/")
"""No key needed: they say nothing about what the collection holds. The page asks for a key and sends it along."""
OPEN_BELOW = ("/web/", "/problems/")
SEARCH = (
    "/v1/search",
    "/v1/embeddings",
    "/v1/models",
    "/v1/collection",
    "/v1/collections",
    "/v1/calibration",
    "/metrics",
)
WRITE = ("/v1/items", "/v1/items:delete", "/v1/feedback")
FEEDBACK = "/v1/labels"
"""What feedback can name: of people these are all their names, which nobody needs for a search."""


def scope_needed(method: str, path: str) -> str | None:
    """The scope of a request, None when anybody may send it."""
    if path in OPEN or path.startswith(OPEN_BELOW):
        return None
    if path in SEARCH:
        return "search"
    if path == FEEDBACK:
        return "write"
    if path in WRITE or path.startswith("/v1/items/"):
        return "search" if method in ("GET", "HEAD") else "write"
    return "admin"


class Access:
    """Answers 401 without a valid key and 403 without the scope; without `keys` everybody may do everything.

    The key's name is left in `scope["state"]["key"]` for the log, and its scopes in `scope["state"]["scopes"]`.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys is not None:
            problem = self._refusal(scope, self.keys)
            if problem is not None:
                await response(problem, address(scope))(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope, keys: Keys) -> Problem | None:
        needed = scope_needed(scope["method"], scope["path"])
        if needed is None:
            return None
        given = _given(scope)
        key = keys.find(given) if given else None
        if key is None:
            why = "The key is not valid." if given else "No key was sent."
            return Problem("unauthorized", why, headers={"WWW-Authenticate": "Bearer"})
        scope.setdefault("state", {}).update(key=key.name, scopes=key.scopes)
        if needed not in key.scopes:
            return Problem("forbidden", f"The key {key.name} lacks the scope {needed}.")
        return None


def may_write(scope: Scope) -> bool:
    """Whether whoever asks may change items: without keys everybody may."""
    return "write" in scope.get("state", {}).get("scopes", ("write",))


def _given(scope: Scope) -> str:
    kind, _, token = (header(scope, b"authorization") or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else header(scope, b"x-api-key") or ""
