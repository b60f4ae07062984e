"""A fault of ours is answered, counted and logged as any answer is; a client that leaves is no fault."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import socket
import threading
import time
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from index.collection import Collection, NewItem, Receipt
from service.app import create_app
from service.http.limits import HEADERS
from service.settings import ServeSettings
from tests.service.conftest import serving

ID = {"X-Request-Id": "look-for-me"}


@pytest.fixture
def broken(collection: Path) -> FastAPI:
    """With an address that fails, and one that fails when its answer has begun."""
    app = create_app(ServeSettings(collection=collection))

    @app.get("/v1/broken")
    def fails() -> None:
        raise RuntimeError("secret-of-the-inside")

    @app.get("/v1/broken-late")
    def fails_late() -> StreamingResponse:
        async def parts() -> object:
            yield b"so far"
            raise RuntimeError("secret-of-the-inside")

        return StreamingResponse(parts())  # type: ignore[arg-type]

    return app


def ask(app: FastAPI, *paths: str) -> list[httpx2.Response]:
    async def run() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
            app.router.lifespan_context(app),
        ):
            return [await client.get(path, headers=ID) for path in paths]

    return asyncio.run(run())


def test_a_fault_of_ours_has_the_id_and_the_headers_of_any_answer(broken: FastAPI) -> None:
    (reply,) = ask(broken, "/v1/broken")
    assert reply.status_code == 500
    assert reply.json()["type"] == "/problems/internal"
    assert reply.headers["x-request-id"] == "look-for-me"
    assert {name: reply.headers.get(name) for name in HEADERS} == HEADERS
    assert reply.headers["cache-control"] == "no-store"


def test_a_fault_of_ours_is_counted_as_one(broken: FastAPI) -> None:
    fault, metrics = ask(broken, "/v1/broken", "/metrics")
    assert fault.status_code == 500
    assert 'surematch_requests_total{method="GET",route="/v1/broken",status="500"} 1.0' in metrics.text


def test_a_fault_of_ours_is_logged_once_with_the_id_to_look_for(
    broken: FastAPI, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("surematch.service", "surematch.access"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [caplog.handler])
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)
    caplog.set_level(logging.INFO, "surematch.access")
    (reply,) = ask(broken, "/v1/broken")
    assert "secret" not in reply.text
    (fault,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert fault.exc_info
    assert "secret-of-the-inside" in str(fault.exc_info[1])
    assert fault.fields["request_id"] == "look-for-me"  # type: ignore[attr-defined]
    (line,) = [record for record in caplog.records if record.levelno == logging.INFO]
    assert (line.fields["request_id"], line.fields["status"]) == ("look-for-me", 500)  # type: ignore[attr-defined]


def test_a_fault_after_the_answer_has_begun_goes_to_the_server(broken: FastAPI) -> None:
    async def run() -> None:
        transport = httpx2.ASGITransport(app=broken)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            with pytest.raises(RuntimeError, match="secret"):
                await client.get("/v1/broken-late")

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/v1/search", "/v1/embeddings", "/v1/feedback"])
def test_a_client_that_leaves_within_its_body_is_no_fault(collection: Path, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with serving(collection, "--access-log") as server:
        for _ in range(3):
            with socket.create_connection(server.address) as client:
                client.sendall(head.encode() + b'{"queries":')
                time.sleep(0.1)
        with httpx2.Client(base_url=server.url) as api:
            assert api.get("/readyz").status_code == 200
        server.process.terminate()
        assert server.process.stdout
        said = server.process.stdout.read()
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [line for line in lines if line["level"] == "error"] == []
    assert "Traceback" not in said
    assert [line["status"] for line in lines if line.get("route") == path] == [0] * 3


def test_a_stop_answers_writes_that_take_too_long_and_begins_none_that_wait(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server cancels what is not answered when the time that a stop gives is over."""
    folder = shutil.copytree(collection, tmp_path / "home")
    app = create_app(ServeSettings(collection=folder, writable=True))
    begun, go_on = threading.Event(), threading.Event()

    async def run() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=ID) as client,
        ):
            serving = app.state.currents["home"].serving
            upsert = serving.collection.upsert

            def slow(items: list[NewItem]) -> Receipt:
                begun.set()
                assert go_on.wait(30)
                return upsert(items)  # type: ignore[no-any-return]

            monkeypatch.setattr(serving.collection, "upsert", slow)
            bodies = [{"items": [{"id": id, "text": "lamp"}]} for id in ("begun", "waiting")]
            writes = [asyncio.create_task(client.put("/v1/items", json=body)) for body in bodies]
            async with asyncio.timeout(30):
                while not begun.is_set() or serving.writer._places.pending < len(writes):
                    await asyncio.sleep(0.01)
            for write in writes:
                write.cancel()
            replies = await asyncio.gather(*writes)
            go_on.set()
            return replies

    replies = asyncio.run(run())
    for reply, said in zip(replies, ("may be done or not", "Nothing was written"), strict=True):
        assert (reply.status_code, reply.json()["type"]) == (503, "/problems/not-ready")
        assert said in reply.json()["detail"]
        assert reply.headers["x-request-id"] == "look-for-me"
        assert reply.headers["connection"] == "close"
    opened = Collection.open(folder)
    assert [opened.item(id) is not None for id in ("begun", "waiting")] == [True, False]
    opened.close()


def test_a_stop_waits_for_an_operation_that_has_begun_before_another_writer_may(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(ServeSettings(collection=shutil.copytree(collection, tmp_path / "home"), writable=True))
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go_on.wait(30)
        ended.set()
        return "made"

    async def run() -> bool:
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            monkeypatch.setattr(app.state.currents["home"].serving.collection, "snapshot", slow)
            asked = asyncio.create_task(client.post("/v1/admin/snapshot"))
            assert await asyncio.to_thread(begun.wait, 30)
            asked.cancel()
            assert (await asked).status_code == 503
            threading.Timer(0.5, go_on.set).start()
        return ended.is_set()

    assert asyncio.run(run())
