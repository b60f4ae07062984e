"""The application as Python: what importing it loads, its queue bound, and its OpenAPI document."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI

from index.collection import Collection
from index.encoders.encoder import Encoder
from index.errors import CollectionError, RuntimeMissing
from service.app import create_app
from service.problems import KINDS, Problem
from service.schemas.queries import TextQuery
from service.schemas.search import SearchRequest
from service.server import _Server
from service.serving.collection import Serving
from service.settings import ServeSettings
from tests.service.conftest import ROOT


def settings(collection: Path, **more: Any) -> ServeSettings:
    return ServeSettings(collection=collection, **more)


def test_importing_the_service_loads_no_trainer() -> None:
    code = "import sys, service.app, service.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(loaded.stdout.split())
    assert modules & {"torch", "sentence_transformers", "transformers", "training", "datasets", "wordllama"} == set()


def test_serving_a_static_encoder_loads_no_torch_and_no_scipy(collection: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from service.serving.collection import Serving
from service.settings import ServeSettings
Serving.open(ServeSettings(collection=Path({str(collection)!r}))).close()
print(*sys.modules)
"""
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(loaded.stdout.split()) & {"torch", "scipy", "sklearn"} == set()


def test_a_collection_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    app = create_app(settings(tmp_path / "nothing"))

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pytest.fail("the service started without a collection")

    with pytest.raises(CollectionError, match="nothing"):
        asyncio.run(start())


def call(app: FastAPI, *requests: tuple[str, str], start: bool = True) -> list[httpx2.Response]:
    """Requests inside the application's lifespan (or before it), without a socket."""

    async def run() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            if not start:
                return [await client.request(*request) for request in requests]
            async with app.router.lifespan_context(app):
                return [await client.request(*request) for request in requests]

    return asyncio.run(run())


def test_before_the_collection_is_open_it_is_alive_and_not_ready(collection: Path) -> None:
    asked = [("GET", path) for path in ("/healthz", "/readyz", "/v1/search?text=a", "/v1/collection")]
    replies = call(create_app(settings(collection)), *asked, start=False)
    assert [reply.status_code for reply in replies] == [200, 503, 503, 503]
    assert replies[1].json()["type"] == "/problems/not-ready"
    assert replies[1].headers["retry-after"]


def test_after_the_start_it_is_ready(collection: Path) -> None:
    (reply,) = call(create_app(settings(collection)), ("GET", "/readyz"))
    assert reply.json()["status"] == "ready"


def test_a_fault_of_ours_is_a_500_that_tells_nothing(collection: Path) -> None:
    app = create_app(settings(collection))

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("secret-of-the-inside")

    (reply,) = call(app, ("GET", "/broken"))
    assert reply.status_code == 500
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["type"] == "/problems/internal"
    assert "secret" not in reply.text


def test_every_problem_type_has_its_page(collection: Path) -> None:
    replies = call(create_app(settings(collection)), *(("GET", f"/problems/{slug}") for slug in KINDS))
    assert [reply.json()["type"] for reply in replies] == [f"/problems/{slug}" for slug in KINDS]


def test_a_page_that_a_browser_has_is_not_sent_again(collection: Path) -> None:
    app = create_app(settings(collection))
    paths = ("/", "/docs", "/calibration", "/collection", "/favicon.ico", "/web/app.js")
    whole = call(app, *(("GET", path) for path in paths))

    async def again() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            tags = [{"If-None-Match": reply.headers["etag"]} for reply in whole]
            return [await client.get(path, headers=tag) for path, tag in zip(paths, tags, strict=True)]

    assert [reply.status_code for reply in whole] == [200] * len(paths)
    assert [(reply.status_code, reply.content) for reply in asyncio.run(again())] == [(304, b"")] * len(paths)


def test_examples_given_are_the_examples_shown(collection: Path) -> None:
    app = create_app(settings(collection, examples=["is it warm", "sing"]))
    (reply,) = call(app, ("GET", "/v1/collection"))
    assert reply.json()["examples"] == ["is it warm", "sing"]


def test_names_of_a_proxy_can_be_allowed_and_public_takes_any(collection: Path) -> None:
    asked = ("GET", "http://search.example/healthz")
    assert call(create_app(settings(collection)), asked)[0].status_code == 421
    assert call(create_app(settings(collection, allowed_hosts=["search.example"])), asked)[0].status_code == 200
    assert call(create_app(settings(collection, public=True)), asked)[0].status_code == 200


@pytest.mark.parametrize("public", [True, False])
def test_several_host_headers_are_refused(collection: Path, public: bool) -> None:
    transport = httpx2.ASGITransport(app=create_app(settings(collection, public=public)))

    async def asked() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/healthz", headers=[("Host", "127.0.0.1"), ("Host", "other.example")])

    reply = asyncio.run(asked())
    assert (reply.status_code, reply.json()["type"]) == (400, "/problems/bad-request")


def test_a_server_counts_the_requests_that_have_begun_to_come(collection: Path) -> None:
    """One that is alone waits for nobody to make a batch with. Without our server none is known to be."""
    app = create_app(settings(collection))
    assert app.state.under_way() == 0
    server = _Server(uvicorn.Config(app), app, lambda: None, 0.0)

    async def run() -> None:
        for count in (1, 2):
            server.server_state.tasks.add(asyncio.create_task(asyncio.sleep(0)))
            assert app.state.under_way() == count

    asyncio.run(run())


@pytest.mark.parametrize("wanted", [True, False])
def test_a_service_prepares_its_index_unless_told_not_to(
    collection: Path, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Path] = []
    monkeypatch.setattr(Collection, "prepare", lambda opened: prepared.append(opened.path))
    Serving.open(settings(collection, eight_bits=wanted)).close()
    assert len(prepared) == int(wanted)


def test_the_queue_is_bounded_and_recovers(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving.open(settings(collection, max_pending=3))
    searcher = serving.searcher
    release = threading.Event()
    encode = serving.collection.encoder.encode

    def slow(texts: Sequence[str]) -> Any:
        assert release.wait(30)
        return encode(texts)

    monkeypatch.setattr(serving.collection.encoder, "encode", slow)
    monkeypatch.setattr("service.serving.searcher.QUICK_CHARACTERS", 0)  # slow ones have a thread
    request = SearchRequest(queries=[TextQuery(text="turn on the kitchen light")])

    async def run() -> None:
        waiting = [asyncio.create_task(searcher.search(request)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Problem) as refused:
            await searcher.search(request)
        assert refused.value.slug == "busy"
        assert refused.value.headers == {"Retry-After": "1"}
        release.set()
        assert len(await asyncio.gather(*waiting)) == 3
        found, _ = await searcher.search(request)
        assert found.answers[0].hits

    try:
        asyncio.run(run())
    finally:
        serving.close()


def test_a_write_that_is_refused_says_that_writes_wait_and_is_counted(collection: Path) -> None:
    serving = Serving.open(settings(collection, max_items=1))
    release = threading.Event()

    async def run() -> Problem:
        waiting = asyncio.create_task(serving.write(lambda: release.wait(30), 4))
        await asyncio.sleep(0)
        with pytest.raises(Problem) as refused:
            await serving.write(lambda: None)
        release.set()
        assert await waiting
        return refused.value

    try:
        problem = asyncio.run(run())
    finally:
        serving.close()
    assert problem.slug == "busy"
    assert "4 items to write wait" in problem.detail
    assert b"surematch_refused_total 1.0" in serving.searcher.metrics.text()


def test_a_search_past_its_deadline_is_given_up_and_leaves_its_place(
    collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = Serving.open(settings(collection, deadline_seconds=0.05, max_pending=1))
    release = threading.Event()
    encode = serving.collection.encoder.encode
    encoded: list[str] = []

    def slow(texts: Sequence[str]) -> Any:
        assert release.wait(30)
        encoded.extend(texts)
        return encode(texts)

    monkeypatch.setattr(serving.collection.encoder, "encode", slow)
    monkeypatch.setattr("service.serving.searcher.QUICK_CHARACTERS", 0)  # slow ones have a thread

    async def ask(text: str) -> Any:
        return await serving.searcher.search(SearchRequest(queries=[TextQuery(text=text)]))

    async def run() -> None:
        for text in ("kitchen light", "kitchen lamp"):  # the second waits for the first's call, and is skipped
            with pytest.raises(Problem) as late:
                await ask(text)
            assert late.value.slug == "too-slow"
        release.set()
        while serving.searcher._encoding._running:
            await asyncio.sleep(0.001)
        found, _ = await ask("kitchen lamp bulb")
        assert found.answers[0].hits

    try:
        asyncio.run(run())
    finally:
        release.set()
        serving.close()
    assert encoded == ["kitchen light", "kitchen lamp bulb"]


def test_the_openapi_document_states_the_limits_and_every_reference_resolves(collection: Path) -> None:
    document = create_app(settings(collection, max_k=77, max_queries=5, max_text_chars=99)).openapi()
    schemas = document["components"]["schemas"]
    assert schemas["SearchRequest"]["properties"]["k"]["maximum"] == 77
    assert schemas["SearchRequest"]["properties"]["queries"]["maxItems"] == 5
    assert schemas["TextQuery"]["properties"]["text"]["maxLength"] == 99

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [ref for value in node.values() for ref in references(value)]
        return [ref for value in node for ref in references(value)] if isinstance(node, list) else []

    found = references(document)
    assert found
    assert {ref.removeprefix("#/components/schemas/") for ref in found} <= set(schemas)
    assert all("422" not in path for path in document["paths"])


def test_a_service_whose_encoder_cannot_run_does_not_start(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(folder: Path) -> Encoder:
        raise RuntimeMissing("ONNX Runtime is not installed")

    monkeypatch.setattr("index.storage.folder.load_encoder", missing)
    with pytest.raises(RuntimeMissing, match="ONNX Runtime"):
        Serving.open(settings(collection))
