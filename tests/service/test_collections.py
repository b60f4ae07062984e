"""Several collections in one service, by name: each answers for itself, the first is the default one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest

from index.collection import Collection
from index.errors import SettingsError
from service.client import Client, ServiceProblem
from service.http import keys
from service.schemas.collection import CollectionsReply
from service.settings import ServeSettings
from tests.service.conftest import Server, serving
from tests.service.gallery import KNOWN
from tests.service.test_hostile import problem

TEXT = KNOWN[0][0]


@pytest.fixture(scope="module")
def server(collection: Path, uncalibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`one` is calibrated and the default; `two` is not, and has fewer items."""
    folder = tmp_path_factory.mktemp("several")
    one, two = shutil.copytree(collection, folder / "a"), shutil.copytree(uncalibrated, folder / "b")
    opened = Collection.open(two, writable=True)
    opened.delete(["rows.csv:2", "rows.csv:3"])
    opened.close()
    with serving(Path(f"one={one}"), f"two={two}", "--writable") as running:
        yield running


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=30) as client:
        yield client


def test_each_answers_for_itself(server: Server, api: httpx2.Client) -> None:
    listed = api.get("/v1/collections").json()
    CollectionsReply.model_validate(listed, strict=True)
    assert listed["default"] == "one"
    assert [(entry["name"], entry["items"], entry["calibrated"]) for entry in listed["collections"]] == [
        ("one", 82, True),
        ("two", 80, False),
    ]
    asked = {"queries": [{"text": TEXT}], "k": 3}
    replies = {name: api.post(f"/v1/collections/{name}/search", json=asked).json() for name in ("one", "two")}
    default = api.post("/v1/search", json=asked).json()
    assert default["results"] == replies["one"]["results"]
    assert default["snapshot"] == replies["one"]["snapshot"]
    assert [replies[name]["results"][0]["calibrated"] for name in ("one", "two")] == [True, False]
    with Client(server.url, collection="two") as two, Client(server.url) as first:
        assert two.collection().items == 80
        assert first.collection().items == 82
        assert not two.search([TEXT]).results[0].calibrated
        vectors = first.embeddings([TEXT], first.models().data[0].id)
        assert two.search_vectors(vectors).results[0].hits == two.search([TEXT]).results[0].hits
        assert two.collections() == first.collections()
    with openai.OpenAI(base_url=f"{server.url}/v1/collections/two", api_key="none") as client:
        made = client.embeddings.create(input=TEXT, model=replies["two"]["model"])
    np.testing.assert_allclose(made.data[0].embedding, vectors[0], atol=1e-6)


def test_the_name_is_the_one_it_is_asked_by_not_its_folders(api: httpx2.Client) -> None:
    for name in ("one", "two"):
        below = f"/v1/collections/{name}"
        assert api.get(f"{below}/collection").json()["name"] == name
        assert api.post(f"{below}/search", json={"queries": [{"text": TEXT}]}).json()["collection"] == name
        assert name in [entry["id"] for entry in api.get(f"{below}/models").json()["data"]]
        assert api.post(f"{below}/embeddings", json={"model": name, "input": TEXT}).status_code == 200
    # the document covers both, so it promises only what both take
    schemas = api.get("/openapi.json").json()["components"]["schemas"]
    assert not {"one", "two"} & set(schemas["EmbeddingsRequest"]["properties"]["model"].get("enum", []))


def test_writes_and_queries_to_tell_of_stay_apart(server: Server) -> None:
    with Client(server.url, collection="two") as two, Client(server.url, collection="one") as one:
        two.put_items([{"id": "only/here", "label": "light_on", "text": TEXT}])
        assert two.item("only/here").text == TEXT
        with pytest.raises(ServiceProblem) as missing:
            one.item("only/here")
        assert missing.value.slug == "no-such-item"
        assert missing.value.reply.instance == "/v1/collections/one/items/only/here"
        query = two.search([TEXT]).query_ids
        assert query is not None
        two.feedback(query[0], "light_on")
        with pytest.raises(ServiceProblem) as unknown:
            one.feedback(query[0], "light_on")
        assert unknown.value.slug == "no-such-query"
        assert two.delete_item("only/here").deleted == 1


@pytest.mark.parametrize("name", ["three", "ONE", "one%2f", "%00", "é"])
def test_a_name_nobody_has_is_a_404(api: httpx2.Client, name: str) -> None:
    reply = api.post(f"/v1/collections/{name}/search", json={"queries": [{"text": TEXT}]})
    assert reply.status_code == 404
    if name == "three":
        problem(reply, "no-such-collection")
        problem(api.get("/v1/collections/three/items/x"), "no-such-collection")


def test_what_belongs_to_the_service_has_no_twin(api: httpx2.Client) -> None:
    for path in ("/v1/collections/one", "/v1/collections/one/", "/v1/collections/one/collections/two/search"):
        assert api.get(path).status_code == 404, path
    assert api.get("/v1/collections/one/collections").status_code == 404


def test_the_document_has_a_twin_of_every_operation(api: httpx2.Client) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    own = {path for path in paths if path.startswith("/v1/") and not path.startswith("/v1/collections")}
    twins = {path for path in paths if path.startswith("/v1/collections/{name}/")}
    assert {"/v1" + path.removeprefix("/v1/collections/{name}") for path in twins} == {
        path for path in own if not path.startswith("/v1/jobs")
    }
    (name, *_) = paths["/v1/collections/{name}/search"]["get"]["parameters"]
    assert name["schema"]["enum"] == ["one", "two"]
    ids = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)


def test_metrics_tell_them_apart(api: httpx2.Client) -> None:
    for name in ("one", "two"):
        api.post(f"/v1/collections/{name}/search", json={"queries": [{"text": TEXT}]})
    said = api.get("/metrics").text
    assert 'surematch_items{collection="one"} 82.0' in said
    assert 'surematch_items{collection="two"} 80.0' in said
    assert 'surematch_answers_total{collection="two",outcome="uncalibrated"}' in said
    assert 'surematch_answers_total{collection="two",outcome="match"}' not in said
    assert 'collection="default"' not in said
    assert 'route="/v1/search"' in said
    assert "/v1/collections/one" not in said


def test_a_key_is_asked_for_below_every_name(collection: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = keys.add(file, "reader", ["search"])
    with serving(Path(f"one={collection}"), f"two={collection}", "--keys", str(file)) as server:
        for path in ("/v1/collections", "/v1/collections/two/collection", "/v1/collections/nobody/collection"):
            assert httpx2.get(server.url + path).status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx2.get(f"{server.url}/v1/collections/two/collection", headers=headers).status_code == 200
        refused = httpx2.post(f"{server.url}/v1/collections/two/admin/reload", headers=headers)
        problem(refused, "forbidden")
        assert refused.json()["instance"] == "/v1/collections/two/admin/reload"


def test_one_is_reloaded_and_a_damaged_one_is_refused_alone(collection: Path, tmp_path: Path) -> None:
    one, two = (shutil.copytree(collection, tmp_path / name) for name in ("one", "two"))
    with serving(one, str(two)) as server, httpx2.Client(base_url=server.url, timeout=30) as api:
        assert api.post("/v1/collections/two/admin/reload").status_code == 200
        (two / "encoder" / "model.safetensors").write_bytes(b"x")
        assert api.post("/v1/collections/two/admin/reload").status_code == 409
        assert api.post("/v1/admin/reload").status_code == 200
        assert [entry["degraded"] for entry in api.get("/v1/collections").json()["collections"]] == [False, True]
        assert api.get("/readyz").json()["degraded"] is True
        asked = {"queries": [{"text": TEXT}]}
        assert api.post("/v1/collections/two/search", json=asked).status_code == 200


def test_names(tmp_path: Path) -> None:
    def names(*given: str) -> dict[str, Path]:
        return ServeSettings(collection=Path(given[0]), more=[Path(entry) for entry in given[1:]]).folders

    assert names("a=x", "b-1=y/z") == {"a": Path("x"), "b-1": Path("y/z")}
    assert names("collections/Support Desk") == {"support-desk": Path("collections/Support Desk")}
    assert names("/") == {"default": Path("/")}
    assert names("A=x") == {"a-x": Path("A=x")}  # a folder of that name: A is no name
    with pytest.raises(SettingsError, match="Two collections are called a: x and y"):
        names("a=x", "a=y")


def test_several_workers_reload_the_one_that_was_named(collection: Path, tmp_path: Path) -> None:
    one, two = (shutil.copytree(collection, tmp_path / name) for name in ("one", "two"))
    with serving(one, str(two), "--workers", "2") as server, httpx2.Client(base_url=server.url, timeout=30) as api:
        (two / "encoder" / "model.safetensors").write_bytes(b"x")
        assert api.post("/v1/collections/one/admin/reload").status_code == 200
        assert api.post("/v1/collections/two/admin/reload").status_code == 409
        for _ in range(6):
            with httpx2.Client(base_url=server.url, timeout=30) as fresh:
                listed = fresh.get("/v1/collections").json()["collections"]
                assert [entry["degraded"] for entry in listed] == [False, True]
