"""Several collections in one service: `/v1/collections/NAME/search` is `/v1/search` of the collection of that name.

Every route below /v1 has such a twin. The address is taken apart before anything else sees the request, so that routes,
scopes, limits, log and metrics are those of the one route; only the answer's `instance` repeats what was asked for.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

BELOW = "/v1/collections/"
ALONE = ("/v1/collections", "/v1/jobs")
"""What belongs to the service, not to a collection."""


class ByName:
    """Leaves the collection's name in `scope["state"]["collection"]` and the address asked for in `["address"]`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(BELOW):
            name, _, rest = scope["path"].removeprefix(BELOW).partition("/")
            path = f"/v1/{rest}"
            if rest and not path.startswith(ALONE):
                state = {**scope.get("state", {}), "collection": name, "address": scope["path"]}
                scope = {**scope, "path": path, "raw_path": path.encode(), "state": state}
        await self.app(scope, receive, send)


def address(scope: Scope) -> str:
    """The path that was asked for."""
    return str(scope.get("state", {}).get("address", scope["path"]))
