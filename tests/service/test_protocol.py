"""What is written to a connection in one turn of the loop leaves together, in its order, and nothing is kept back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
import pytest

from service.app import create_app
from service.http.direct import Direct
from service.http.protocol import Joined
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


def exchanged(server: Server, *parts: bytes) -> bytes:
    """All that is answered to what is sent part by part, until the server closes, or resets, the connection."""
    got = b""
    with socket.create_connection(server.address, timeout=20) as client, contextlib.suppress(ConnectionError):
        for part in parts:
            client.sendall(part)
        while more := client.recv(65536):
            got += more
    return got


def test_a_head_without_end_is_refused(server: Server) -> None:
    line = b"X-Long: " + b"a" * 1000 + b"\r\n"
    before = psutil.Process(server.process.pid).memory_info().rss
    said = exchanged(server, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n", *[line] * 30_000)
    assert not said or said.startswith(b"HTTP/1.1 431 ")  # a reset may overtake it
    assert psutil.Process(server.process.pid).memory_info().rss < before + (16 << 20)


def test_what_follows_a_body_without_end_is_read_no_further(server: Server) -> None:
    head = b"POST /v1/nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    before = psutil.Process(server.process.pid).memory_info().rss
    exchanged(server, head, *[b"X-Trailer: " + b"a" * 1000 + b"\r\n"] * 30_000)
    assert psutil.Process(server.process.pid).memory_info().rss < before + (16 << 20)


def test_heads_and_bodies_in_small_parts_are_read_however_many(server: Server) -> None:
    body = b'{"queries":[{"text":"' + b"lamp " * 20_000 + b'"}]}'
    head = b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    said = exchanged(server, head, b"Content-Length: %d\r\n\r\n" % len(body), *parts)
    assert b"/queries/0/text" in said  # too long a text, of a body that was read whole
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    said = exchanged(server, head, b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n")
    assert b"/queries/0/text" in said


@pytest.mark.parametrize(
    "raw",
    [
        b"hello world\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: abc\r\n\r\n",
        "GET /v1/search?text=\u00e9t HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
    ],
    ids=["no HTTP", "no length", "no ASCII"],
)
def test_what_is_no_request_gets_a_problem(server: Server, raw: bytes) -> None:
    head, _, body = exchanged(server, raw).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"x-request-id"]
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert int(headers[b"content-length"]) == len(body)
    assert json.loads(body)["type"] == "/problems/bad-request"
