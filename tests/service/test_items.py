"""Items over a socket: written, found at once, kept through a kill, replaced, deleted; refused when they are bad."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import numpy as np
import pytest

from index.collection import Collection
from service.http import keys
from service.schemas.collection import SnapshotReply
from service.schemas.items import DeletedReply, FeedbackReply, ItemReply, WrittenReply
from service.schemas.search import SearchReply
from service.serving.writer import RecentQueries
from tests.service.conftest import serving
from tests.service.gallery import KNOWN
from tests.service.test_hostile import problem

FLAGS = ("--writable", "--max-items", "50", "--max-text-chars", "2000", "--max-body-bytes", "1000000")


@pytest.fixture
def folder(collection: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(collection, tmp_path / "home"))


@pytest.fixture(scope="module")
def api(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    folder = shutil.copytree(collection, tmp_path_factory.mktemp("written") / "home")
    with serving(folder, *FLAGS) as server, httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


def put(api: httpx2.Client, *items: dict[str, Any], **query: str) -> httpx2.Response:
    return api.put("/v1/items", json={"items": list(items)}, params=query)


def search(api: httpx2.Client, text: str, k: int = 5) -> Any:
    reply = api.post("/v1/search", json={"queries": [{"text": text}], "k": k})
    assert reply.status_code == 200, reply.text
    SearchReply.model_validate(reply.json(), strict=True)
    return reply.json()


def test_what_is_written_is_found_read_replaced_and_deleted(api: httpx2.Client) -> None:
    item = {
        "id": "new/1",
        "label": "light_on",
        "text": "brighten lamp office",
        "metadata": {"lang": "en", "n": [1, None]},
    }
    before = api.get("/v1/collection").json()["items"]
    written = put(api, item, wait="indexed")
    assert written.status_code == 200, written.text
    WrittenReply.model_validate(written.json(), strict=True)
    assert (written.json()["written"], written.json()["replaced"]) == (1, 0)
    found = search(api, item["text"], k=1)
    assert found["results"][0]["hits"][0]["id"] == "new/1"
    assert found["sequence"] >= written.json()["sequence"]
    address = f"/v1/items/{quote('new/1', safe='')}"
    read = api.get(address)
    ItemReply.model_validate(read.json(), strict=True)
    assert read.json() == item
    assert put(api, item | {"label": "volume"}).json()["replaced"] == 1
    assert api.get(address).json()["label"] == "volume"
    assert api.get("/v1/collection").json()["items"] == before + 1
    deleted = api.delete(address)
    DeletedReply.model_validate(deleted.json(), strict=True)
    assert deleted.json()["deleted"] == 1
    assert all(hit["id"] != "new/1" for hit in search(api, item["text"])["results"][0]["hits"])
    for gone in (api.get(address), api.delete(address)):
        assert gone.status_code == 404
        problem(gone, "no-such-item")
    assert api.get("/v1/collection").json()["items"] == before


def test_an_id_with_line_ends_has_an_address_and_one_of_dots_is_found_and_deleted_without(api: httpx2.Client) -> None:
    for id in ("\n", "two\nlines", "last\n"):
        put(api, {"id": id, "text": "brighten lamp"})
        address = f"/v1/items/{quote(id, safe='')}"
        assert api.get(address).json()["id"] == id
        assert api.delete(address).json()["deleted"] == 1
    put(api, {"id": "..", "text": "brighten lamp"})
    asked = {"queries": [{"text": "brighten lamp"}], "filter": {"$id": ".."}}
    assert [hit["id"] for hit in api.post("/v1/search", json=asked).json()["results"][0]["hits"]] == [".."]
    assert api.post("/v1/items:delete", json={"ids": [".."]}).json()["deleted"] == 1


def test_vectors_can_be_written_in_both_forms_and_many_deleted(api: httpx2.Client) -> None:
    vectors = np.linalg.qr(np.random.default_rng(3).standard_normal((32, 32)))[0].astype("<f4")
    listed = {"id": "v1", "label": "made", "vector": vectors[0].tolist()}
    encoded = {"id": "v2", "label": "made", "vector_base64": base64.b64encode(vectors[1].tobytes()).decode()}
    assert put(api, listed, encoded).json()["written"] == 2
    for at, name in enumerate(("v1", "v2")):
        reply = api.post("/v1/search", json={"queries": [{"vector": vectors[at].tolist()}], "k": 1}).json()
        assert reply["results"][0]["hits"][0]["id"] == name
    deleted = api.post("/v1/items:delete", json={"ids": ["v1", "v2", "never was"]})
    assert deleted.json()["deleted"] == 2


def test_filters_choose_what_is_shown_and_what_is_deleted(api: httpx2.Client, collection: Path) -> None:
    made = [
        {"id": f"f{at}", "label": "light_on", "text": "brighten lamp hall", "metadata": {"size": at, "lang": lang}}
        for at, lang in enumerate(("en", "de", "en"))
    ]
    assert put(api, *made).json()["written"] == 3

    def shown(filter: Any) -> set[str]:
        asked = {"queries": [{"text": "brighten lamp hall"}], "k": 5, "filter": filter}
        (answer,) = api.post("/v1/search", json=asked).json()["results"]
        assert abs(sum(entry["probability"] for entry in answer["labels"]) + answer["no_match"] - 1) < 1e-6
        return {hit["id"] for hit in answer["hits"]}

    assert shown({"lang": "en", "size": {"gte": 1}}) == {"f2"}
    assert shown({"$id": {"in": ["f0", "f1"]}}) == {"f0", "f1"}
    deleted = api.post("/v1/items:delete", json={"filter": {"lang": {"exists": True}}})
    assert deleted.json()["deleted"] == 3
    for wrong in ({"filter": {}}, {"filter": {"a": 1}, "ids": ["a"]}, {}, {"filter": {"a": {"near": 1}}}):
        assert api.post("/v1/items:delete", json=wrong).status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "twice", "name"),
    [
        ("POST", "/v1/items:delete", '{"filter": {"size": {"gte": 9}, "size": {"lt": 9}}}', "size"),
        ("POST", "/v1/items:delete", '{"ids": ["stays"], "ids": ["stays"]}', "ids"),
        ("PUT", "/v1/items", '{"items": [{"id": "half", "text": "lamp", "text": "bulb"}]}', "text"),
    ],
)
def test_a_member_named_twice_changes_nothing(
    api: httpx2.Client, method: str, path: str, twice: str, name: str
) -> None:
    assert put(api, {"id": "stays", "text": "lamp"}).status_code == 200
    refused = api.request(method, path, content=twice, headers={"Content-Type": "application/json"})
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/not-json")
    assert f"'{name}' stands twice" in refused.json()["detail"]
    assert [api.get(f"/v1/items/{id}").status_code for id in ("stays", "half")] == [200, 404]


GOOD = {"id": "a", "text": "lamp"}
BAD: dict[str, tuple[Any, str]] = {
    "no-items": ({"items": []}, "/items"),
    "no-id": ({"items": [{"text": "lamp"}]}, "/items/0/id"),
    "empty-id": ({"items": [{"id": "", "text": "lamp"}]}, "/items/0/id"),
    "long-id": ({"items": [{"id": "ü" * 300, "text": "lamp"}]}, "/items/0/id"),
    "number-id": ({"items": [{"id": 1, "text": "lamp"}]}, "/items/0/id"),
    "nothing": ({"items": [{"id": "a"}]}, "/items/0"),
    "blank": ({"items": [{"id": "a", "text": " \n"}]}, "/items/0"),
    "long-text": ({"items": [{"id": "a", "text": "x" * 2001}]}, "/items/0/text"),
    "two-vectors": ({"items": [{"id": "a", "vector": [1.0], "vector_base64": "AAAA"}]}, "/items/0"),
    "empty-label": ({"items": [GOOD | {"label": ""}]}, "/items/0/label"),
    "blank-label": ({"items": [GOOD | {"label": " \n"}]}, "/items/0/label"),
    "list-metadata": ({"items": [GOOD | {"metadata": []}]}, "/items/0/metadata"),
    "big-metadata": ({"items": [GOOD | {"metadata": {"a": "x" * 70_000}}]}, "/items/0/metadata"),
    "unknown": ({"items": [GOOD | {"wait": 1}]}, "/items/0/wait"),
    "many": ({"items": [GOOD] * 51}, "/items"),
}


@pytest.mark.parametrize("metadata", [{"consent": '{"expires": "2020-01-01"}'}, {"consent.expires": "soon"}])
def test_consent_that_cannot_be_kept_to_is_refused(api: httpx2.Client, metadata: dict[str, str]) -> None:
    refused = put(api, GOOD | {"metadata": metadata})
    assert refused.status_code == 422
    assert "consent" in refused.json()["detail"]
    assert api.get("/v1/items/a").status_code == 404


@pytest.mark.parametrize(("body", "pointer"), BAD.values(), ids=BAD)
def test_a_bad_item_is_named_and_nothing_is_written(api: httpx2.Client, body: Any, pointer: str) -> None:
    before = api.get("/v1/collection").json()
    reply = api.put("/v1/items", json=body)
    assert reply.status_code == 422, reply.text
    faults: Any = problem(reply, "invalid-request")["errors"]
    assert pointer in [fault["pointer"] for fault in faults], faults
    assert api.get("/v1/collection").json()["sequence"] == before["sequence"]


@pytest.mark.parametrize(
    "item",
    [
        {"id": "a", "vector": [1.0, 0.0]},
        {"id": "a", "vector": [0.0] * 32},
        {"id": "a", "vector": [1e39] * 32},
        {"id": "a", "vector_base64": "AAAA"},
        {"id": "a", "vector_base64": base64.b64encode(b"\xff" * 128).decode()},
    ],
    ids=["dimension", "zero", "beyond-float32", "3-bytes", "nan"],
)
def test_one_bad_vector_keeps_the_whole_batch_out(api: httpx2.Client, item: dict[str, Any]) -> None:
    assert put(api, {"id": "good one", "text": "lamp"}, item).status_code == 422
    assert api.get("/v1/items/good one").status_code == 404


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_metadata_is_finite(api: httpx2.Client, number: str) -> None:
    body = '{"items":[{"id":"nan","text":"lamp","metadata":{"a":[{"b":' + number + "}]}}]}"
    reply = api.put("/v1/items", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 422
    assert api.get("/v1/items/nan").status_code == 404


def test_an_id_stands_once_in_a_batch(api: httpx2.Client) -> None:
    assert put(api, GOOD, GOOD).status_code == 422


@pytest.mark.parametrize("query", ["wait=soon", "wait=", "wait=indexed&wait=indexed", "k=1"])
def test_an_unknown_parameter_is_refused(api: httpx2.Client, query: str) -> None:
    assert api.put(f"/v1/items?{query}", json={"items": [GOOD]}).status_code == 422


def test_a_read_only_service_says_how_to_write(collection: Path) -> None:
    with serving(collection) as server, httpx2.Client(base_url=server.url) as api:
        for reply in (
            put(api, GOOD),
            api.post("/v1/items:delete", json={"ids": ["a"]}),
            api.post("/v1/admin/snapshot"),
            api.post("/v1/feedback", json={"query_id": "0-0", "label": None}),
        ):
            assert reply.status_code == 409
            problem(reply, "conflict")
        assert "--writable" in reply.json()["detail"]
        assert search(api, KNOWN[0][0])["query_ids"] is None


def test_a_second_writer_is_refused_and_a_reader_follows(folder: Path) -> None:
    with serving(folder, *FLAGS) as writing, serving(folder, "--refresh-seconds", "0.05") as reading:
        with httpx2.Client(base_url=writing.url) as one, httpx2.Client(base_url=reading.url) as two:
            item = {"id": "followed", "label": "volume", "text": "mute speaker hall"}
            sequence = put(one, item).json()["sequence"]
            while two.get("/v1/collection").json()["sequence"] < sequence:
                pass
            hits = search(two, item["text"], k=2)["results"][0]["hits"]
            # the gallery has the same text already: which of the two is first is a matter of rounding
            assert "followed" in [hit["id"] for hit in hits]
        with pytest.raises(AssertionError, match="writ"), serving(folder, *FLAGS):
            pass


def test_an_answer_names_the_state_it_comes_from(folder: Path) -> None:
    """A reader that has not followed yet, and finds erased what a filter looks through, answers from a newer state."""
    with (
        serving(folder, *FLAGS) as writing,
        serving(folder, "--refresh-seconds", "3600") as reading,
        httpx2.Client(base_url=writing.url, timeout=60) as one,
        httpx2.Client(base_url=reading.url) as two,
    ):
        old = search(two, KNOWN[0][0], k=1)
        assert one.delete(f"/v1/items/{quote(old['results'][0]['hits'][0]['id'], safe='')}").status_code == 200
        assert one.post("/v1/admin/snapshot").status_code == 200
        written = put(one, {"id": "newer", "label": "volume", "text": "mute speaker hall"}).json()["sequence"]
        asked = {"queries": [{"text": "mute speaker hall"}], "filter": {"$id": "newer"}}
        answer = two.post("/v1/search", json=asked).json()
        assert [hit["id"] for hit in answer["results"][0]["hits"]] == ["newer"]
        assert answer["sequence"] == written > old["sequence"]


def test_the_text_of_an_item_that_is_gone_is_no_example_any_more(folder: Path) -> None:
    """Deleted, or its consent ended: neither the writer shows it, nor a reader that follows."""
    with (
        serving(folder, *FLAGS) as writing,
        serving(folder, "--refresh-seconds", "0.05") as reading,
        httpx2.Client(base_url=writing.url, timeout=60) as one,
        httpx2.Client(base_url=reading.url) as two,
    ):
        shown = one.get("/v1/collection").json()["examples"]
        found = {hit["text"]: hit["id"] for text in shown for hit in search(one, text)["results"][0]["hits"]}
        deleted, ended = shown[:2]
        assert one.post("/v1/items:delete", json={"ids": [found[deleted]]}).json()["deleted"] == 1
        consent = {"consent": {"expires": "2020-01-01"}}
        assert put(one, {"id": found[ended], "text": ended, "metadata": consent}).json()["replaced"] == 1
        for api in (one, two):
            left = api.get("/v1/collection").json()["examples"]
            assert left
            assert not {deleted, ended} & set(left)


def test_an_item_whose_consent_has_ended_is_there_for_who_may_delete_it(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    asks, writes = keys.add(file, "asks", ["search"]), keys.add(file, "writes", ["search", "write"])
    with serving(folder, *FLAGS, "--keys", str(file)) as server, httpx2.Client(base_url=server.url) as api:
        of = {"asks": {"X-Api-Key": asks}, "writes": {"X-Api-Key": writes}}
        for id, until in (("ended", "2020-01-01"), ("lasts", "2999-01-01")):
            item = {"id": id, "text": "mute speaker", "metadata": {"consent": {"expires": until}}}
            assert api.put("/v1/items", json={"items": [item]}, headers=of["writes"]).status_code == 200
        asked = [(id, who) for id in ("ended", "lasts") for who in of]
        found = {(id, who): api.get(f"/v1/items/{id}", headers=of[who]).status_code for id, who in asked}
        assert found.pop(("ended", "asks")) == 404
        assert set(found.values()) == {200}
        problem(api.get("/v1/items/ended", headers=of["asks"]), "no-such-item")


def test_answers_are_not_much_longer_than_allowed(folder: Path) -> None:
    """Of a question of a few bytes the hits may be megabytes each."""
    limit = 1_500_000
    with (
        serving(folder, "--writable", "--max-answer-chars", str(limit), "--max-text-chars", "50000") as server,
        httpx2.Client(base_url=server.url, timeout=60) as api,
    ):
        long = "mute speaker hall " * 2500
        assert put(api, *({"id": f"long{at}", "text": long} for at in range(40))).status_code == 200
        asked = {"queries": [{"text": "mute speaker hall"}], "filter": {"$id": {"gte": "long", "lt": "lonh"}}, "k": 33}
        assert len(api.post("/v1/search", json=asked).content) > 33 * len(long)
        refused = api.post("/v1/search", json=asked | {"k": 34})
        assert refused.status_code == 422
        told = problem(refused, "invalid-request")["detail"]
        assert f"at most {limit:,} are answered at once" in told
        twice = asked | {"queries": asked["queries"] * 2}
        assert api.post("/v1/search", json=twice).status_code == 422
        assert api.post("/v1/search", json=twice | {"k": 10}).status_code == 200


def test_an_acknowledged_write_survives_a_kill(folder: Path) -> None:
    with serving(folder, *FLAGS) as server, httpx2.Client(base_url=server.url) as api:
        assert put(api, {"id": "kept", "label": "music", "text": "play album bedroom"}).status_code == 200
        server.process.kill()
        server.process.wait(30)
    opened = Collection.open(folder)
    kept = opened.item("kept")
    opened.close()
    assert kept is not None
    assert kept.label == "music"


def test_a_snapshot_on_demand_serves(folder: Path) -> None:
    with serving(folder, *FLAGS) as server, httpx2.Client(base_url=server.url, timeout=120) as api:
        put(api, {"id": "late", "label": "music", "text": "listen song garage"})
        made = api.post("/v1/admin/snapshot")
        assert made.status_code == 200, made.text
        SnapshotReply.model_validate(made.json(), strict=True)
        found = search(api, "listen song garage", k=1)
        assert found["snapshot"] == made.json()["snapshot"]
        assert found["results"][0]["hits"][0]["id"] == "late"
        refused = api.post("/v1/admin/reload")
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/conflict")
        assert refused.json()["detail"].startswith("There is nothing to reload: this service writes")
        assert "then try again" not in refused.json()["detail"], "nothing is to be mended"


def test_readers_and_writers_at_once_all_get_what_they_asked_for(api: httpx2.Client) -> None:
    def write(at: int) -> int:
        item = {"id": f"many-{at}", "label": "door_open", "text": f"unlock gate {at}"}
        return put(api, item).json()["sequence"]

    def read(at: int) -> int:
        return len(search(api, KNOWN[at % len(KNOWN)][0])["results"][0]["hits"])

    with ThreadPoolExecutor(8) as pool:
        sequences = list(pool.map(write, range(20)))
        counts = list(pool.map(read, range(40)))
    assert len(set(sequences)) == 20
    assert set(counts) == {5}
    assert api.post("/v1/items:delete", json={"ids": [f"many-{at}" for at in range(20)]}).json()["deleted"] == 20


def test_feedback_is_kept_for_a_recent_query(api: httpx2.Client) -> None:
    query_id = search(api, KNOWN[0][0])["query_ids"][0]
    for label in (KNOWN[0][1], None):
        reply = api.post("/v1/feedback", json={"query_id": query_id, "label": label})
        assert reply.status_code == 200, reply.text
        FeedbackReply.model_validate(reply.json(), strict=True)
    gone = api.post("/v1/feedback", json={"query_id": "0-0", "label": None})
    assert gone.status_code == 404
    problem(gone, "no-such-query")
    unknown = api.post("/v1/feedback", json={"query_id": query_id, "label": "no such label"})
    assert unknown.status_code == 422
    assert problem(unknown, "invalid-request")["errors"]
    assert api.post("/v1/feedback", json={"query_id": query_id}).status_code == 422


def test_labels_have_one_spelling(api: httpx2.Client) -> None:
    made = [{"id": f"l{at}", "label": label, "text": KNOWN[0][0]} for at, label in enumerate(("é", " e\u0301 ", "a"))]
    labels = api.get("/v1/collection").json()["labels"]
    assert put(api, *made).json()["written"] == 3
    assert api.get("/v1/collection").json()["labels"] == labels + 2
    assert [api.get(f"/v1/items/l{at}").json()["label"] for at in range(3)] == ["é", "é", "a"]
    query_id = search(api, KNOWN[0][0])["query_ids"][0]
    for label in ("a", "e\u0301", f" {KNOWN[0][1]}"):
        assert api.post("/v1/feedback", json={"query_id": query_id, "label": label}).status_code == 200, label
    api.post("/v1/items:delete", json={"filter": {"$id": {"in": ["l0", "l1", "l2"]}}})


def test_feedback_names_labels_that_were_written_a_moment_ago_and_those_before_them(api: httpx2.Client) -> None:
    query_id = search(api, KNOWN[0][0])["query_ids"][0]
    new = [{"id": label, "label": label, "text": f"brighten lamp {label}"} for label in ("awning", "zeppelin", "lift")]
    labels = sorted({label for _, label in KNOWN})
    assert put(api, *new).status_code == 200
    for label in (*labels, "awning", "zeppelin", "lift"):
        reply = api.post("/v1/feedback", json={"query_id": query_id, "label": label})
        assert reply.status_code == 200, f"{label}: {reply.text}"
    api.post("/v1/items:delete", json={"ids": ["awning", "zeppelin", "lift"]})
    gone = api.post("/v1/feedback", json={"query_id": query_id, "label": "awning"})
    assert problem(gone, "invalid-request")["errors"]


def test_that_nothing_matches_is_no_feedback_on_a_search_with_a_filter(api: httpx2.Client) -> None:
    """The calibration would take the query for one that the whole collection cannot answer."""

    def tell(filter: Any, label: str | None) -> httpx2.Response:
        asked = {"queries": [{"text": KNOWN[0][0]}], "filter": filter}
        (query_id,) = api.post("/v1/search", json=asked).json()["query_ids"]
        return api.post("/v1/feedback", json={"query_id": query_id, "label": label})

    other = {"$label": next(label for _, label in KNOWN if label != KNOWN[0][1])}
    refused = tell(other, None)
    assert refused.status_code == 422, refused.text
    (fault,) = problem(refused, "invalid-request")["errors"]
    assert fault["pointer"] == "/label"
    assert "ask again without it, or name the label" in fault["detail"]
    assert tell(other, KNOWN[0][1]).status_code == 200
    for all_left_out in ({"or": []}, {"not": {}}, {"not": {"and": []}}):
        assert tell(all_left_out, None).status_code == 422
    for nothing_left_out in (None, {}, {"and": []}):
        assert tell(nothing_left_out, None).status_code == 200


def test_recent_queries_are_bounded() -> None:
    recent = RecentQueries(2, limit=3 * (2 * 4 + 17))
    first = recent.remember(np.ones((2, 2), np.float32))
    second = recent.remember(np.full((2, 2), 2, np.float32))
    assert recent.get(first[0]) is None
    assert vector(recent, second[0]) == vector(recent, second[1]) == [2, 2]
    assert vector(recent, first[1]) == [1, 1]
    assert len({*first, *second}) == 4


def test_of_more_queries_than_are_remembered_the_last_are() -> None:
    recent = RecentQueries(1, limit=3 * (4 + 17))
    recent.remember(np.zeros((2, 1), np.float32))
    ids = recent.remember(np.arange(5, dtype=np.float32)[:, None])
    assert [vector(recent, id) for id in ids] == [None, None, [2], [3], [4]]


def test_an_id_that_nobody_was_told_is_of_no_query() -> None:
    recent = RecentQueries(1)
    (known,) = recent.remember(np.ones((1, 1), np.float32))
    request = known.partition("-")[0]
    others = ("", "-", "0-0", "0" * 16 + "-1", f"{request}-1", f"{request}-00", f"{request}-\u0660", f" {known}")
    assert [vector(recent, id) for id in (*others, f"{request}-{10**30}")] == [None] * 9
    assert vector(recent, known) == [1]


def vector(recent: RecentQueries, id: str) -> list[float] | None:
    found = recent.get(id)
    return None if found is None else found.vector.tolist()
