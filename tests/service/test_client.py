"""The Python client against a real service, and against the OpenAPI document: one call for every operation."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from index.collection import Collection
from index.errors import DataError, SettingsError, SurematchError
from index.items.new_items import NewItem
from service import client as module
from service.client import AsyncClient, Call, Calls, Client, ServiceProblem
from tests.service.conftest import Server, serving
from tests.service.gallery import KNOWN

TEXTS = [KNOWN[0][0], KNOWN[1][0]]
ARGUMENTS: dict[str, Any] = {
    "queries": TEXTS, "texts": TEXTS, "vectors": np.eye(1, 32), "text": "x", "model": "home", "items": [], "id": "a",
    "ids": [], "query_id": "0-0", "filter": {"a": 1}, "label": None, "kind": "train", "settings": {},
}  # fmt: skip
CALLS = {
    name: getattr(Calls, name)(
        **{
            parameter.name: ARGUMENTS[parameter.name]
            for parameter in inspect.signature(getattr(Calls, name)).parameters.values()
            if parameter.default is parameter.empty
        }
    )
    for name in vars(Calls)
    if not name.startswith("_")
}


@pytest.fixture(scope="module")
def server(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = shutil.copytree(collection, tmp_path_factory.mktemp("client") / "home")
    with serving(folder, "--writable") as running:
        yield running


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


def test_every_operation_of_the_document_has_its_call_and_its_model(server: Server) -> None:
    document = httpx2.get(f"{server.url}/openapi.json").json()
    operations = {
        (method.upper(), path): operation["responses"]["200"]["content"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "application/json" in operation["responses"]["200"]["content"]  # metrics, log and events are text
    }
    called = {
        (call.method, re.sub(r"^/v1/(items|jobs)/[^/]+", r"/v1/\1/{id}", call.path)): call for call in CALLS.values()
    }
    assert set(called) == set(operations)
    for operation, call in called.items():
        schema = operations[operation]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{call.reply.__name__}"}, operation


def test_search_agrees_with_the_collection(api: Client, collection: Path) -> None:
    opened = Collection.open(collection)
    expected = opened.search(TEXTS, k=3, map={"entmax": 1.3}, coverage=0.9)
    vectors = opened.encoder.encode(TEXTS)
    opened.close()
    by_text = api.search(TEXTS, k=3, map={"entmax": 1.3}, coverage=0.9)
    assert api.search(TEXTS, k=3, map="entmax:1.3", coverage=0.9).results == by_text.results
    with pytest.raises(ServiceProblem, match="map"):
        api.search(TEXTS, map="entmax:much")
    by_vector = api.search_vectors(vectors, k=3, map={"entmax": 1.3}, coverage=0.9)
    for reply in (by_text, by_vector):
        assert [[hit.id for hit in answer.hits] for answer in reply.results] == [
            [h.id for h in a.hits] for a in expected
        ]
        np.testing.assert_allclose([a.no_match for a in reply.results], [a.no_match for a in expected], atol=1e-6)
    np.testing.assert_allclose(api.embeddings(TEXTS, "home"), vectors, atol=1e-7)
    assert api.send(Calls.search_text(TEXTS[0], k=3)).results[0].hits[0].id == expected[0].hits[0].id


def test_items_feedback_and_what_is_served(api: Client) -> None:
    assert api.put_items([{"id": "a/b?c", "text": "mute speaker", "label": "volume"}]).written == 1
    assert api.item("a/b?c").label == "volume"
    found = api.search(["mute speaker"], k=1)
    assert found.results[0].hits[0].id == "a/b?c"
    assert found.query_ids
    assert api.feedback(found.query_ids[0], "volume").kept
    assert api.delete_item("a/b?c").deleted == 1
    assert api.delete_items(["a/b?c"]).deleted == 0
    assert api.collection().name == "home"
    assert api.calibration().calibrated
    assert api.models().data[0].id == "home"
    assert api.labels("VOL").labels == ["volume"]
    assert api.ready().status == "ready"
    assert api.health().status == "ok"
    assert api.snapshot().snapshot == api.ready().snapshot


def test_an_item_is_read_and_deleted_whatever_its_id(api: Client) -> None:
    ids = [".", "..", "\n", "two\nlines\n", "\r", "\t", " ", "a/../b", "./a", "/", "%2E", "..."]
    assert api.put_items([{"id": id, "text": f"mute speaker {id}", "label": "volume"} for id in ids]).written == len(
        ids
    )
    assert [api.item(id).id for id in ids] == ids
    assert [api.delete_item(id).deleted for id in ids[:6]] == [1] * 6
    assert api.delete_items(ids).deleted == len(ids) - 6


def test_a_refusal_is_an_exception_with_its_reasons(api: Client) -> None:
    with pytest.raises(ServiceProblem) as refused:
        api.search(["x"], k=0)
    assert (refused.value.status, refused.value.slug) == (422, "invalid-request")
    assert refused.value.reply.errors
    assert refused.value.reply.errors[0].pointer == "/k"
    assert refused.value.request_id
    with pytest.raises(ServiceProblem, match="404"):
        api.item("never was")
    with pytest.raises(ServiceProblem, match="409"):
        api.reload()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Calls.search("abc"), "search takes a list of texts, got a str. Put the text in brackets."),
        (lambda: Calls.search(b"GIF89a"), "search takes a list of texts, got a bytes."),
        (lambda: Calls.embeddings("abc", "home"), "embeddings takes a list of texts, got a str."),
        (lambda: Calls.put_items({"id": "a", "text": "abc"}), "put_items takes a list of items, got a dict."),
        (lambda: Calls.delete_items("abc"), "delete_items takes a list of ids, got a str."),
    ],
)
def test_a_word_is_no_list(call: Callable[[], object], said: str) -> None:
    """Its letters would be sent, each as a text of its own."""
    with pytest.raises(DataError, match=re.escape(said)):
        call()


def test_vectors_are_taken_as_numpy_has_them(api: Client, server: Server) -> None:
    vector = api.embeddings(["mute speaker"], "home")[0]
    item = {"id": "array", "vector": vector, "label": "volume", "metadata": {"bin": np.int64(3)}}
    assert api.put_items([item]).written == 1
    assert api.search_vectors(vector[None], k=1).results[0].hits[0].id == "array"
    assert api.item("array").metadata == {"bin": 3}
    assert api.delete_item("array").deleted == 1

    async def run() -> None:
        async with AsyncClient(server.url) as other:
            assert (await other.send(Calls.put_items([item]))).written == 1
            assert (await other.send(Calls.delete_item("array"))).deleted == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Calls.put_items([NewItem("a", text="x")]), "Item 1: is a NewItem, expected a dict with an id"),
        (lambda: Calls.put_items([{"id": {"a"}}]).arguments(), "The request is not JSON (it holds a set)"),
        (lambda: Calls.put_items([{"vector": np.array([1j])}]).arguments(), "not JSON (it holds a ndarray)"),
        (lambda: Calls.put_items([{"vector": np.array([np.nan])}]).arguments(), "numbers that are finite"),
        (lambda: Calls.search(["x"], filter={"a": object()}).arguments(), "not JSON (it holds a object)"),
        (lambda: Calls.search_vectors(np.array(["x"])), "The query vectors are no array of numbers"),
        (lambda: Calls.search_vectors(np.array([1j])), "no array of numbers (they are complex)"),
        (lambda: Calls.search_vectors(np.ones(32)), "The query vectors have the shape (32,), expected (n, d)"),
        (lambda: Calls.item("a\ud800"), "The id holds half of a surrogate pair"),
        (lambda: Calls.job("a\ud800"), "The id holds half of a surrogate pair"),
        (lambda: Calls.search_text("a\ud800"), "The text holds half of a surrogate pair"),
    ],
)
def test_what_cannot_be_sent_is_said(call: Callable[[], object], said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        call()


def test_vectors_of_another_dimension_are_no_query_even_where_their_bytes_are_one(api: Client) -> None:
    halves = api.embeddings(["mute speaker"], "home").reshape(2, -1)
    with pytest.raises(DataError, match="2 vectors were sent and 1 answered"):
        api.search_vectors(halves)


def test_a_refusal_comes_whole_from_another_process(api: Client) -> None:
    with pytest.raises(ServiceProblem) as refused:
        api.item("never was")
    copy = pickle.loads(pickle.dumps(refused.value))
    assert (str(copy), copy.status, copy.slug) == (str(refused.value), 404, "no-such-item")
    assert (copy.reply, copy.request_id) == (refused.value.reply, refused.value.request_id)


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"collection": ".."}, SettingsError, "No collection is called '..'."),
        ({"collection": ""}, SettingsError, "No collection is called ''."),
        ({"retries": -1}, SettingsError, "retries is -1, expected 0 or more."),
        ({"key": "schl\u00fcssel"}, DataError, "The key holds characters that no key has."),
        ({"key": "sm_key\n"}, DataError, "The key holds characters that no key has."),
    ],
)
def test_what_no_client_can_be_made_of_is_said(
    client: type, settings: dict[str, Any], error: type[SurematchError], said: str
) -> None:
    with pytest.raises(error, match=re.escape(said)) as refused:
        client("http://127.0.0.1:9", **settings)
    assert str(settings.get("key")).strip() not in str(refused.value)


def test_the_sync_client_has_a_method_for_every_call() -> None:
    assert set(CALLS) - {"search_text"} <= set(vars(Client))  # `search` asks the same


def test_both_clients_refuse_a_word_as_the_collection_does() -> None:
    async def run() -> None:
        async with AsyncClient("http://127.0.0.1:9") as api:
            await api.search("abc")

    with Client("http://127.0.0.1:9") as api, pytest.raises(DataError, match="search takes a list of texts, got a str"):
        api.search("abc")
    with pytest.raises(DataError, match="search takes a list of texts, got a str"):
        asyncio.run(run())


def test_another_service_is_no_answer(tmp_path: Path) -> None:
    client = Client("http://127.0.0.1")
    client._http = httpx2.Client(transport=httpx2.MockTransport(lambda request: httpx2.Response(200, text="<html>")))
    with pytest.raises(SurematchError, match="not an answer"):
        client.send(Call("GET", "http://127.0.0.1/readyz", CALLS["ready"].reply))
    client.close()


@pytest.mark.parametrize(
    ("statuses", "retries", "works"), [([503, 503, 200], 2, True), ([503, 503], 1, False), ([500], 2, False)]
)
def test_busy_is_tried_again_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, statuses: list[int], retries: int, works: bool
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    left = list(statuses)

    def answer(request: httpx2.Request) -> httpx2.Response:
        status = left.pop(0)
        body = {"type": "/problems/busy", "title": "t", "status": status, "detail": "d", "instance": "/"}
        return httpx2.Response(status, json={"status": "ok"} if status == 200 else body, headers={"Retry-After": "7"})

    client = Client("http://127.0.0.1", retries=retries)
    client._http = httpx2.Client(transport=httpx2.MockTransport(answer), base_url="http://127.0.0.1")
    if works:
        assert client.send(Calls.health()).status == "ok"
    else:
        with pytest.raises(ServiceProblem):
            client.send(Calls.health())
    assert not left
    assert slept == [7.0] * (len(statuses) - 1)
    client.close()


def test_the_async_client(server: Server) -> None:
    async def run() -> None:
        async with AsyncClient(server.url) as api:
            first, second = await asyncio.gather(api.search(TEXTS[:1]), api.send(Calls.collection()))
            assert first.results[0].hits
            assert second.name == "home"
            with pytest.raises(ServiceProblem):
                await api.search([])

    asyncio.run(run())
