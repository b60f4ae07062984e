"""The rest of a refused request's body, read and thrown away so that the client comes to read the answer."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.headers import header

MOST = 2**26
"""Bytes that are thrown away for one answer."""
_SLOW = 408
"""Who was too slow already is not waited for again."""


class Drain:
    """Answers who is refused in the middle of a body at once, and reads on for a while before the answer ends.

    Many clients send all of it before they read. A connection that is to be closed (`Connection: close`) would be
    closed while they do, and they would see a reset in place of the reason. On others `service.http.protocol` reads on.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _sends_body(scope):
            await self.app(scope, receive, send)
            return
        whole = refused = held = False

        async def watched() -> Message:
            nonlocal whole
            message = await receive()
            whole = whole or not message.get("more_body", False)
            return message

        async def without_end(message: Message) -> None:
            nonlocal refused, held
            if message["type"] == "http.response.start":
                refused = 400 <= message["status"] < 500 and message["status"] != _SLOW
            elif refused and not whole and not message.get("more_body", False):
                held, message = True, {**message, "more_body": True}
            await send(message)

        await self.app(scope, watched, without_end)
        if held:
            seen = 0
            with suppress(TimeoutError):
                async with asyncio.timeout(self.seconds):
                    while not whole and seen < MOST:
                        seen += len((await watched()).get("body", b""))
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _sends_body(scope: Scope) -> bool:
    """Who expects to be told to continue sends nothing after a refusal."""
    length = header(scope, b"content-length")
    announced = length not in (None, "0") or header(scope, b"transfer-encoding") is not None
    return announced and header(scope, b"expect") is None
