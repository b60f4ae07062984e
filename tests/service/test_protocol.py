"""What is written to a connection in one turn of the loop leaves together, in its order, and nothing is kept back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.app import create_app
from service.direct import Direct
from service.protocol import Joined
from service.routes import embeddings, items, search
from service.settings import ServeSettings
from tests.service.conftest import Server


class Recorded(asyncio.Transport):
    """Notes what each call of the system would have sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed_after: int | None = None

    def write(self, data: Any) -> None:
        self.sent.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        raise AssertionError("that of Python 3.12.1 and 3.13.0 knows neither slow readers nor those who have left")

    def close(self) -> None:
        self.closed_after = len(self.sent)

    def is_closing(self) -> bool:
        return self.closed_after is not None


def recorded(use: Callable[[Joined], Awaitable[None]]) -> Recorded:
    transport = Recorded()

    async def run() -> None:
        await use(Joined(transport, asyncio.get_running_loop()))

    asyncio.run(run())
    return transport


def test_head_and_body_leave_together() -> None:
    async def use(joined: Joined) -> None:
        for answer in (b"1", b"2"):
            joined.write(b"head " + answer)
            joined.write(b"body " + answer)
        await asyncio.sleep(0)

    assert recorded(use).sent == [b"head 1body 1", b"head 2body 2"]


def test_what_is_alone_leaves_in_the_next_turn() -> None:
    async def use(joined: Joined) -> None:
        for part in (b"event 1", b"event 2"):
            joined.write(part)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        joined.write(b"")
        joined.write(b"event 3")
        joined.write(b"event 4")
        await asyncio.sleep(0)

    assert recorded(use).sent == [b"event 1", b"event 2", b"event 3", b"event 4"]


def test_what_is_held_leaves_before_the_connection_is_closed() -> None:
    async def use(joined: Joined) -> None:
        joined.write(b"last words")
        assert not joined.is_closing()
        joined.close()
        assert joined.is_closing()

    transport = recorded(use)
    assert transport.sent == [b"last words"]
    assert transport.closed_after == 1


def test_an_answer_arrives_in_one_piece(server: Server) -> None:
    with socket.create_connection(server.address, timeout=10) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head, _, body = client.recv(2**16).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body, "of the first packet"


def test_what_is_asked_most_is_answered_directly() -> None:
    direct = Direct(create_app(ServeSettings(collection="somewhere")), (search.router, embeddings.router, items.router))
    assert {("POST", "/v1/search"), ("GET", "/v1/search"), ("POST", "/v1/embeddings")} <= set(direct.routes)
    assert not [path for _, path in direct.routes if "{" in path]


@pytest.mark.parametrize("method", ["PUT", "OPTIONS", "HEAD"])
def test_other_methods_of_the_same_address_are_the_application_s(server: Server, method: str) -> None:
    with socket.create_connection(server.address, timeout=10) as client:
        client.sendall(f"{method} /v1/search HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = client.recv(2**16).partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 405")
    assert b"allow: get, post" in head
