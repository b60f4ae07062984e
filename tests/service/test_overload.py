"""More than the service can do, and clients that do nothing: some are refused, none wait for ever, and it recovers."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.service.conftest import Server, serving
from tests.service.gallery import KNOWN

MANY = {"queries": [{"text": text} for text, _ in KNOWN[:10]]}
HEAD = b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"


def test_beyond_its_bound_the_service_refuses_at_once_and_recovers(collection: Path) -> None:
    with serving(collection, "--max-pending", "20", "--cache-bytes", "0") as server:
        start = threading.Barrier(24, timeout=60)

        def hammer(_: int) -> Counter[int]:
            seen: Counter[int] = Counter()
            with httpx2.Client(base_url=server.url, timeout=60) as api:
                start.wait()
                for _ in range(10):
                    reply = api.post("/v1/search", json=MANY)
                    seen[reply.status_code] += 1
                    if reply.status_code == 503:
                        assert reply.json()["type"] == "/problems/busy"
                        assert reply.headers["retry-after"] == "1"
                    else:
                        assert len(reply.json()["results"]) == len(MANY["queries"])
                    assert api.get("/healthz").status_code == 200
            return seen

        with ThreadPoolExecutor(24) as pool:
            seen = sum(pool.map(hammer, range(24)), Counter())
        assert set(seen) == {200, 503}
        for _ in range(5):  # at once, not after a while
            assert httpx2.post(f"{server.url}/v1/search", json=MANY).status_code == 200
        said = httpx2.get(f"{server.url}/metrics").text
        assert f"surematch_refused_total {seen[503]}.0" in said
        assert "surematch_pending_queries 0.0" in said


@pytest.fixture(scope="module")
def impatient(collection: Path) -> Iterator[Server]:
    with serving(collection, "--receive-seconds", "0.5") as running:
        yield running


@pytest.mark.parametrize(
    "sent", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: 127", b"GET / HTTP/1.1\r\n"], ids=range(4)
)
def test_half_open_connections_are_closed(impatient: Server, sent: bytes) -> None:
    count = int(os.environ.get("SUREMATCH_HALF_OPEN", "50"))
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(impatient.address, timeout=30)) for _ in range(count)]
        for connection in opened:
            connection.sendall(sent)
        assert httpx2.get(f"{impatient.url}/healthz").status_code == 200
        for connection in opened:
            assert connection.recv(1000) == b""
    kept = [c for c in psutil.Process(impatient.process.pid).net_connections() if c.status == "ESTABLISHED"]
    assert not kept


@pytest.mark.parametrize("begun", [b"GET /healthz HT", b"\r\n", b"\r\n\r\n"], ids=["begun", "line", "lines"])
def test_a_second_request_that_never_ends_is_closed_too(impatient: Server, begun: bytes) -> None:
    with socket.create_connection(impatient.address, timeout=30) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
        connection.sendall(begun)
        rest = b"-"
        while rest:
            rest = connection.recv(10_000)


@pytest.mark.parametrize("part", [b"", b'{"queries":'], ids=["nothing", "half"])
def test_a_body_that_does_not_come_is_refused_and_its_connection_closed(impatient: Server, part: bytes) -> None:
    with socket.create_connection(impatient.address, timeout=30) as connection:
        connection.sendall(HEAD + part)
        said = b""
        while piece := connection.recv(10_000):
            said += piece
    assert said.startswith(b"HTTP/1.1 408")
    assert b"/problems/slow-body" in said


def test_a_slow_answer_is_not_a_slow_client(impatient: Server) -> None:
    """The deadline is for what the client sends: one that has sent all of it may wait."""
    connection = http.client.HTTPConnection(*impatient.address, timeout=30)
    for _ in range(2):
        connection.request("POST", "/v1/search", b'{"queries":[{"text":"lamp"}]}', {"Content-Type": "application/json"})
        reply = connection.getresponse()
        assert reply.status == 200
        assert reply.read()
    connection.close()
