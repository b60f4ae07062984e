"""What /v1/search answers, over a real socket: shapes, sums, order, and agreement with the collection itself."""

from __future__ import annotations

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from index.collection import Collection
from service.schemas.collection import CalibrationReply, CollectionReply, LabelsReply, ReadyReply
from service.schemas.search import SearchReply
from tests.service.conftest import serving
from tests.service.gallery import KNOWN, TOPICS, UNKNOWN, XSS_LABEL

MAPS: list[Any] = ["softmax", "sparsemax", "entmax15", "taylor", {"entmax": 1.3}, {"taylor": 6}]


def ask(api: httpx2.Client, *texts: str, **more: Any) -> Any:
    reply = api.post("/v1/search", json={"queries": [{"text": text} for text in texts], **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_answer_is_as_documented(api: httpx2.Client) -> None:
    SearchReply.model_validate(ask(api, KNOWN[0][0], coverage=0.9), strict=True)
    CollectionReply.model_validate(api.get("/v1/collection").json(), strict=True)
    CalibrationReply.model_validate(api.get("/v1/calibration").json(), strict=True)
    ReadyReply.model_validate(api.get("/readyz").json(), strict=True)


def test_labels_are_listed_by_a_text_that_they_contain(api: httpx2.Client) -> None:
    names = sorted({*TOPICS, XSS_LABEL})
    assert api.get("/v1/labels").json() == {"labels": names, "total": len(names)}
    for text, found in (("LU", ["volume"]), ("script", [XSS_LABEL]), ("nowhere", [])):
        reply = api.get("/v1/labels", params={"contains": text}).json()
        assert reply == LabelsReply(labels=found, total=len(found)).model_dump()
    for refused in ("contains=a&contains=b", "limit=5", "contains=%ff"):
        assert api.get(f"/v1/labels?{refused}").status_code == 422


def test_of_many_labels_the_one_that_is_named_is_listed(collection: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(collection, tmp_path / "home")
    with serving(folder, "--writable") as server, httpx2.Client(base_url=server.url, timeout=30) as api:
        vector = [1.0] + 31 * [0.0]
        items = [{"id": f"many{n}", "vector": vector, "label": f"a{n:04} light"} for n in range(1000)]
        items.append({"id": "one", "vector": vector, "label": "light"})
        assert api.put("/v1/items", json={"items": items[:501]}).status_code == 200
        assert api.put("/v1/items", json={"items": items[501:]}).status_code == 200
        reply = api.get("/v1/labels", params={"contains": "light"}).json()
        assert reply["total"] == 1002  # light_on, too
        assert len(reply["labels"]) == 1000
        assert reply["labels"][:2] == ["light", "a0000 light"]


@pytest.mark.parametrize("map_", MAPS, ids=str)
def test_labels_and_no_match_sum_to_one(api: httpx2.Client, map_: Any) -> None:
    for answer in ask(api, *(text for text, _ in KNOWN), *UNKNOWN, map=map_)["results"]:
        labels = [entry["probability"] for entry in answer["labels"]]
        assert math.isclose(sum(labels) + answer["no_match"], 1, abs_tol=1e-5)
        assert labels == sorted(labels, reverse=True)
        assert all(p > 0 for p in labels)
        assert answer["decision"]["probability"] == max([*labels, answer["no_match"]])
        scores = [hit["score"] for hit in answer["hits"]]
        assert scores == sorted(scores, reverse=True)
        by_label = {entry["label"]: entry["probability"] for entry in answer["labels"]}
        assert all(math.isclose(hit["probability"], by_label.get(hit["label"], 0)) for hit in answer["hits"])


def test_known_questions_match_and_unknown_ones_do_not(api: httpx2.Client) -> None:
    results = ask(api, *(text for text, _ in KNOWN), *UNKNOWN)["results"]
    decided = [answer["decision"]["label"] for answer in results]
    right = sum(label == truth for label, (_, truth) in zip(decided, KNOWN, strict=False))
    assert right >= 0.9 * len(KNOWN)
    assert sum(label is None for label in decided[len(KNOWN) :]) >= 0.8 * len(UNKNOWN)


@pytest.mark.parametrize("map_", MAPS, ids=str)
def test_the_service_agrees_with_the_collection(api: httpx2.Client, collection: Path, map_: Any) -> None:
    texts = [KNOWN[0][0], UNKNOWN[0], KNOWN[1][0]]
    opened = Collection.open(collection)
    try:
        expected = opened.search(texts, k=4, map=map_, coverage=0.9)
    finally:
        opened.close()
    for answer, right in zip(ask(api, *texts, k=4, map=map_, coverage=0.9)["results"], expected, strict=True):
        assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in right.hits]
        assert math.isclose(answer["no_match"], right.no_match or 0, abs_tol=1e-9)
        assert answer["decision"]["label"] == (right.decision.label if right.decision else None)
        assert right.prediction_set is not None
        assert [entry["label"] for entry in answer["prediction_set"]] == [entry.label for entry in right.prediction_set]
        assert answer["set_has_no_match"] == right.set_has_no_match


def test_texts_and_vectors_mix_and_keep_their_order(api: httpx2.Client, collection: Path) -> None:
    texts = [KNOWN[0][0], KNOWN[1][0], UNKNOWN[0]]
    opened = Collection.open(collection)
    vectors = opened.encoder.encode(texts)
    opened.close()
    vector = [float(x) for x in vectors[1]]
    reply = api.post("/v1/search", json={"queries": [{"text": texts[0]}, {"vector": vector}, {"text": texts[2]}]})
    mixed, alone = reply.json()["results"], ask(api, *texts)["results"]
    assert [[h["id"] for h in answer["hits"]] for answer in mixed] == [[h["id"] for h in a["hits"]] for a in alone]
    assert all(math.isclose(m["no_match"], a["no_match"], abs_tol=1e-5) for m, a in zip(mixed, alone, strict=True))


def test_get_gives_the_same_answer(api: httpx2.Client) -> None:
    text = KNOWN[0][0]
    got = api.get("/v1/search", params={"text": text, "k": 3, "map": "entmax:1.3", "coverage": "0.9"}).json()
    posted = ask(api, text, k=3, map={"entmax": 1.3}, coverage=0.9)
    assert got["results"] == posted["results"]
    assert got["snapshot"] == posted["snapshot"]


@pytest.mark.parametrize(
    "text",
    ["日本語 🙂 kitchen", "kitchen " * 200, "e\u0301 kitchen", "<script>kitchen</script>", "kitchen \x7f\u202e"],
)
def test_any_text_is_a_question(api: httpx2.Client, text: str) -> None:
    assert len(ask(api, text)["results"]) == 1


def test_k_bounds_the_hits(api: httpx2.Client) -> None:
    items = api.get("/v1/collection").json()["items"]
    assert len(ask(api, KNOWN[0][0], k=1)["results"][0]["hits"]) == 1
    assert len(ask(api, KNOWN[0][0], k=100)["results"][0]["hits"]) == min(items, 100)


def test_no_coverage_no_set(api: httpx2.Client) -> None:
    answer = ask(api, KNOWN[0][0])["results"][0]
    assert answer["prediction_set"] is None
    assert answer["coverage"] is None


def test_what_is_served_is_named_once(api: httpx2.Client, collection: Path) -> None:
    opened = Collection.open(collection)
    opened.close()
    reply = ask(api, KNOWN[0][0])
    assert (reply["model"], reply["snapshot"]) == (opened.model_id, opened.snapshot_id)
    assert reply["collection"] == opened.name
    served = api.get("/v1/collection").json()
    assert (served["items"], served["dimension"]) == (opened.size, opened.encoder.dimension)
    assert 1 <= len(served["examples"]) <= 8
    assert "vector" not in api.get("/v1/search", params={"text": KNOWN[0][0]}).text


def test_timings_are_milliseconds_of_parts(api: httpx2.Client) -> None:
    timings = ask(api, KNOWN[0][0])["timings"]
    assert all(value >= 0 for value in timings.values())
    parts = timings["queue_ms"] + timings["encode_ms"] + timings["search_ms"]
    assert math.isclose(parts, timings["total_ms"], abs_tol=0.01)


def test_many_clients_get_their_own_answers(api: httpx2.Client) -> None:
    alone = {text: ask(api, text)["results"][0]["hits"][0]["id"] for text, _ in KNOWN}
    texts = [text for text, _ in KNOWN] * 10
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda text: ask(api, text)["results"][0]["hits"][0]["id"], texts))
    assert together == [alone[text] for text in texts]


def test_without_calibration_there_is_no_probability_and_a_reason(uncalibrated: Path) -> None:
    with serving(uncalibrated) as server, httpx2.Client(base_url=server.url) as api:
        answer = ask(api, KNOWN[0][0], coverage=0.9)["results"][0]
        SearchReply.model_validate(ask(api, KNOWN[0][0]), strict=True)
        assert api.get("/v1/calibration").json()["calibrated"] is False
    assert answer["calibrated"] is False
    assert answer["reason"]
    assert answer["labels"] is answer["no_match"] is answer["decision"] is answer["prediction_set"] is None
    assert {hit["probability"] for hit in answer["hits"]} == {None}


def test_explain_tells_why_and_changes_nothing_else(api: httpx2.Client) -> None:
    plain = ask(api, KNOWN[0][0])["results"][0]
    reply = api.post("/v1/search", json={"queries": [{"text": text} for text, _ in KNOWN[:3]], "explain": True})
    SearchReply.model_validate(reply.json(), strict=True)
    told = reply.json()["results"][0]
    why = told["explanation"]
    assert plain["explanation"] is None
    assert {**told, "explanation": None} == plain
    assert math.isclose(why["labels"][0]["probability"], told["labels"][0]["probability"])
    assert why["labels"][0]["items"][0]["id"] == told["hits"][0]["id"]
    by_get = api.get("/v1/search", params={"text": KNOWN[0][0], "explain": "true"})
    assert by_get.json()["results"][0]["explanation"] == why
    for wrong in ("1", "True", ""):
        assert api.get("/v1/search", params={"text": "x", "explain": wrong}).status_code == 422
