"""HTTP for clients that may never finish what they send: who has not sent a request's head in time is let go, and who
goes on sending the body of a request that was answered. And an answer in one packet.

uvicorn closes idle connections between requests, but waits for ever for the rest of a head that has begun, or never
begins: a thousand half-open connections cost an attacker nothing and the service its file descriptors. And it reads the
body of a request that was answered without end.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.drain import MOST


class Joined:
    """A transport that sends what is written twice in one turn of the loop at once.

    uvicorn writes an answer's head and its body apart: two calls of the system, two packets, and a client that wakes
    twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: bytes | None = None

    def write(self, data: bytes) -> None:
        first = self._held
        if first is None:
            self._held = data
            self._loop.call_soon(self._send)
        else:
            self._held = None
            self._transport.write(first + data)  # `writelines` of some Pythons forgets who reads slowly, or has left

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        held = self._held
        if held is not None:
            self._held = None
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class PatientProtocol(HttpToolsProtocol):
    """Closes a connection whose request's head is not complete `head_seconds` after it was opened, or had begun, and
    one whose body is not complete so long, or `MOST` bytes, after the answer."""

    head_seconds: ClassVar[float] = 10.0
    _deadline: asyncio.TimerHandle | None = None
    _in_head = False
    _surplus: int | None = None
    """Bytes of the body since its request was answered; None: no such body is on its way."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Joined(transport, self.loop))  # type: ignore[arg-type]
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is None and (self._in_head or self._waits_for_nothing()):
            self._arm()  # most heads come in one piece, and need none

    def _waits_for_nothing(self) -> bool:
        """Between two requests, of which the next has not begun: an empty line ends uvicorn's patience with it."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self.timeout_keep_alive_task is None and not self.transport.is_closing()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._disarm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
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
