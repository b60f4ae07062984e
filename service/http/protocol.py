"""HTTP for clients that may never finish what they send, or take: who has not sent a request's head in time is let go,
who sends one without end is refused, and so is who goes on sending the body of a request that was answered, and who
takes nothing more of an answer. And an answer in one packet.

uvicorn closes idle connections between requests, but waits for ever for the rest of a head that has begun, or never
begins: a thousand half-open connections cost an attacker nothing and the service its file descriptors. It reads the
body of a request that was answered without end, and holds an answer that nobody takes as long as the connection.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import random
import socket
import struct
import termios
from contextlib import suppress
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.http.drain import MOST
from service.http.limits import HEADERS
from service.problems import Problem, response
from service.telemetry.logs import REQUEST_ID

LARGEST_HEAD = 64 * 1024
"""Bytes of a head, or of what follows a body, after which no more is read."""
_QUEUED = struct.Struct("i")
_AT_ONCE = struct.pack("ii", 1, 0)
log = logging.getLogger("surematch.service")


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


def end_by_closing(cycle: RequestResponseCycle) -> None:
    """HTTP/1.0 knows no chunks, which uvicorn sends to it, too: what has no length is sent as it is, to the end."""
    framed, unsized = cycle.send, False

    async def send(message: Any) -> None:
        nonlocal unsized
        if message["type"] == "http.response.start" and b"content-length" not in dict(message["headers"]):
            unsized, cycle.chunked_encoding = True, False
        elif unsized:
            cycle.expected_content_length = len(message.get("body", b""))
        await framed(message)

    cycle.send = send  # type: ignore[method-assign]


class PatientProtocol(HttpToolsProtocol):
    """Closes a connection whose request's head is not complete `patience` seconds after it was opened, or had begun, or
    `LARGEST_HEAD` bytes, one whose body is not complete so long, or `MOST` bytes, after the answer, and one that took
    nothing of an answer for so long."""

    patience: ClassVar[float] = 10.0
    _deadline: asyncio.TimerHandle | None = None
    _in_head = False
    _unread = 0
    """Bytes since something of the request was complete: its head, a part of its body, or all of it."""
    _surplus: int | None = None
    """Bytes of the body since its request was answered; None: no such body is on its way."""
    _untaken = 0
    """Bytes of an answer that the client had not taken when it was last looked."""
    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Joined(transport, self.loop))  # type: ignore[arg-type]
        self.transport.set_write_buffer_limits(high=0)  # so that `pause_writing` tells of all that is not taken at once
        self._arm()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_again()

    def resume_writing(self) -> None:
        self._look_no_more()
        super().resume_writing()

    def _look_again(self) -> None:
        self._untaken = self._not_taken()
        self._look = self.loop.call_later(self.patience, self._check_taken)

    def _not_taken(self) -> int:
        """Bytes that wait here and in the kernel, which tells of room only once a third of its megabytes are free."""
        waiting = self.transport.get_write_buffer_size()
        with suppress(OSError):  # of a socket that has just been closed
            connection = self.transport.get_extra_info("socket")
            waiting += _QUEUED.unpack(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(_QUEUED.size)))[0]
        return waiting

    def _look_no_more(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _check_taken(self) -> None:
        if self._not_taken() < self._untaken:
            self._look_again()
            return
        with suppress(OSError):  # else the kernel would hold its megabytes for longer, too
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.transport.abort()  # `close` would wait for what is never taken

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > LARGEST_HEAD:
            self._refuse("head-too-large", "It is not complete yet.")
        if self._deadline is None and (self._in_head or self._waits_for_nothing()):
            self._arm()  # most heads come in one piece, and need none

    def send_400_response(self, msg: str) -> None:
        self._refuse("bad-request", msg)

    def _refuse(self, slug: str, detail: str) -> None:
        """Answers what is no request that the application could see, and reads no more of it."""
        if self.transport.is_closing():
            return
        cycle, request_id = self.cycle, f"{random.getrandbits(64):016x}"
        log.warning("no request could be read", extra={"fields": {"request_id": request_id, "problem": slug}})
        if cycle is None or cycle.response_complete or not cycle.response_started:
            answer = response(Problem(slug, detail), "")
            headers = {**answer.headers, **HEADERS, REQUEST_ID: request_id, "Connection": "close"}
            head = [f"HTTP/1.1 {answer.status_code} {HTTPStatus(answer.status_code).phrase}"]
            head += [f"{name}: {value}" for name, value in headers.items()]
            self.transport.write("\r\n".join([*head, "", ""]).encode() + bytes(answer.body))
        self.transport.close()

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
        self._unread = 0
        self._disarm()
        super().on_headers_complete()
        if self.cycle is not None and self.scope["http_version"] == "1.0":
            end_by_closing(self.cycle)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            self._surplus = 0
            self._arm()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)
        if self._surplus is not None:
            self._surplus += len(body)
            if self._surplus > MOST:
                self._let_go()

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()
        if self._surplus is not None:
            self._surplus = None
            self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._look_no_more()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(self.patience, self._let_go)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _let_go(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
