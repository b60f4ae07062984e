"""HTTP for clients that may never finish what they send: who has not sent a request's head in time is let go, and who
goes on sending the body of a request that was answered.

uvicorn closes idle connections between requests, but waits for ever for the rest of a head that has begun, or never
begins: a thousand half-open connections cost an attacker nothing and the service its file descriptors. And it reads the
body of a request that was answered without end.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.drain import MOST


class PatientProtocol(HttpToolsProtocol):
    """Closes a connection whose request's head is not complete `head_seconds` after it was opened, or had begun, and
    one whose body is not complete so long, or `MOST` bytes, after the answer."""

    head_seconds: ClassVar[float] = 10.0
    _deadline: asyncio.TimerHandle | None = None
    _surplus: int | None = None
    """Bytes of the body since its request was answered; None: no such body is on its way."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def on_message_begin(self) -> None:
        self._arm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._disarm()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            self._surplus = 0
            self._arm()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self._surplus is not None:
            self._surplus += len(body)
            if self._surplus > MOST:
                self._let_go()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._surplus is not None:
            self._surplus = None
            self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(self.head_seconds, self._let_go)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _let_go(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
