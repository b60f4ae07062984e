"""An opened collection: what is damaged is named and replaced or refused, and no probability is shown uncalibrated."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.answer import Answer, LabelProbability
from index.collection import Collection
from index.encoders.by_name import load_encoder
from index.errors import CollectionError, DataError, SurematchError
from index.items.store import Item, ItemStore
from tests.index.conftest import World
from tests.index.helpers import write_static


def ask(path: Path, text: str = "my card about a bank", **options: Any) -> Answer:
    opened = Collection.open(path)
    try:
        return opened.search([text], **options)[0]
    finally:
        opened.close()


def snapshot(path: Path) -> Path:
    return path / "snapshots" / (path / "snapshots" / "CURRENT").read_text().strip()


def test_answers_are_distributions_over_labels_and_no_match(collection: Collection, world: World) -> None:
    texts = [row.text for row in world.rows(world.test) + world.rows(world.test_unknown)]
    for map_name in ("softmax", "sparsemax", "entmax15", "taylor", {"entmax": 1.3}, {"entmax": 1.0000001}):
        for answer in collection.search(texts, k=5, map=map_name):  # type: ignore[arg-type]
            assert answer.labels is not None
            assert answer.no_match is not None
            assert answer.decision is not None
            of_label = {entry.label: entry.probability for entry in answer.labels}
            assert sum(of_label.values()) + answer.no_match == pytest.approx(1, abs=1e-9)
            assert all(hit.probability == of_label.get(hit.label, 0.0) for hit in answer.hits)
            assert list(of_label.values()) == sorted(of_label.values(), reverse=True)
            assert min(of_label.values(), default=1.0) > 0
            assert answer.decision.probability == max([answer.no_match, *of_label.values()])
            assert answer.calibrated


def test_known_and_unknown_queries_are_told_apart(collection: Collection, world: World) -> None:
    known = collection.search([row.text for row in world.rows(world.test)])
    unknown = collection.search([row.text for row in world.rows(world.test_unknown)])
    assert np.mean([answer.no_match for answer in known]) < 0.2 < 0.6 < np.mean([a.no_match for a in unknown])
    right = [
        a.decision is not None and a.decision.label == r.label
        for a, r in zip(known, world.rows(world.test), strict=True)
    ]
    assert np.mean(right) > 0.85


def test_hits_are_the_nearest_items_and_k_only_cuts(collection: Collection, world: World) -> None:
    rows = world.rows(world.items)
    cosines = collection.encoder.encode([row.text for row in rows]) @ collection.encoder.encode(["bank card"])[0]
    many, few = collection.search(["bank card"], k=50)[0], collection.search(["bank card"], k=3)[0]
    np.testing.assert_allclose([hit.score for hit in many.hits], np.sort(cosines)[::-1][:50], atol=1e-6)
    assert few.hits == many.hits[:3]
    assert (few.labels, few.no_match) == (many.labels, many.no_match)
    assert all(hit.text == rows[int(hit.id.split(":")[1]) - 2].text for hit in many.hits)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "empty text": ({"texts": ["card", " \n"]}, "Query 2 is an empty text"),
    "half a character": ({"texts": ["\ud800"]}, "half of a surrogate pair"),
    "no texts": ({"texts": None}, "a list of texts, got a NoneType"),
    "a number as text": ({"texts": ["card", 5]}, "Query 2 is a int"),
    "k as a word": ({"k": "ten"}, "k must be from 1 to 100, as a whole number, got 'ten'"),
    "half a neighbour": ({"k": 1.5}, "as a whole number"),
    "coverage as a word": ({"coverage": "high"}, "between 0 and 1, got 'high'"),
    "k of zero": ({"k": 0}, "k must be from 1 to 100"),
    "k too large": ({"k": 101}, "k must be from 1 to 100"),
    "unknown map": ({"map": "sigmoid"}, "No map 'sigmoid'"),
    "alpha too large": ({"map": {"entmax": 2.5}}, "alpha from 1 to 2"),
    "alpha NaN": ({"map": {"entmax": float("nan")}}, "alpha from 1 to 2"),
    "odd Taylor order": ({"map": {"taylor": 3}}, "No map"),
    "Taylor order never fitted": ({"map": {"taylor": 4}}, "was not calibrated"),
    "coverage of one": ({"coverage": 1.0}, "between 0 and 1"),
    "coverage NaN": ({"coverage": float("nan")}, "between 0 and 1"),
    "for whom, without coverage": ({"coverage_for": "known-unknown"}, "Give coverage, too"),
    "more coverage than the sample supports": ({"coverage": 0.9999}, "cannot be promised"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_bad_questions_are_refused(collection: Collection, options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        collection.search(options.pop("texts", ["card"]) if "texts" in options else ["card"], **options)


@pytest.mark.parametrize(
    "vectors",
    [np.zeros((1, 16)), np.full((1, 16), np.nan), np.ones((1, 15)) / 15**0.5, np.ones(16) / 4, np.ones((1, 16))],
    ids=["zero", "NaN", "dimension", "one, not a batch", "norm 4"],
)
def test_bad_vectors_are_refused(collection: Collection, vectors: Any) -> None:
    with pytest.raises(DataError, match="vector"):
        collection.search_vectors(vectors)


def edit(**values: object) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        config = json.loads((path / "collection.json").read_text()) | values
        (path / "collection.json").write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))

    return apply


def other_encoder(path: Path) -> None:
    shutil.rmtree(path / "encoder")
    write_static(path / "encoder", seed=99)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another encoder": (other_encoder, "is not the one the collection was built with"),
    "no encoder": (lambda path: shutil.rmtree(path / "encoder"), "modules.json"),
    "no collection.json": (lambda path: (path / "collection.json").unlink(), "not a collection"),
    "collection.json cut": (lambda path: (path / "collection.json").write_text('{"format": 1'), "not readable"),
    "collection.json a list": (lambda path: (path / "collection.json").write_text("[]"), "not readable"),
    "collection.json binary": (lambda path: (path / "collection.json").write_bytes(b"\xff\xfe"), "not readable"),
    "newer format": (edit(format=2), "newer surematch"),
    "no name": (edit(name="gone"), "not readable"),
    "dimension a word": (edit(dimension="16"), "not readable"),
    "dimension of zero": (edit(dimension=0), "not readable"),
    "another dimension": (edit(dimension=17), "says 17 dimensions"),
    "another format's type": (edit(format=None), "not readable"),
    "no items": (lambda path: (path / "items.sqlite").unlink(), "the items are missing"),
    "items cut": (lambda path: (path / "items.sqlite").write_bytes(b"x" * 8192), r"items\.sqlite"),
}


@pytest.mark.parametrize(("damage", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_collection_is_refused_and_left_as_it_is(
    copied: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(copied)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(SurematchError, match=said):
        Collection.open(copied)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_what_may_not_be_read_is_not_called_damaged(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *how: Any, **named: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)  # whoever tests may be root, who reads everything
    with pytest.raises(CollectionError, match=r"collection.json: cannot be read \(Permission denied\). Check its perm"):
        Collection.open(copied)


@pytest.mark.parametrize("name", ["vectors.faiss", "rows.i64", "calibration.json", "manifest.json"])
def test_a_damaged_snapshot_is_rebuilt_from_the_items_without_probabilities(
    copied: Path, built: Path, name: str
) -> None:
    path = snapshot(copied) / name
    path.write_bytes(path.read_bytes()[:-1] + b"#")
    answer, whole = ask(copied), ask(built)
    assert [(hit.id, hit.score) for hit in answer.hits] == [(hit.id, hit.score) for hit in whole.hits]
    assert (answer.calibrated, answer.decision, {hit.probability for hit in answer.hits}) == (False, None, {None})
    assert str(path) in (answer.reason or ""), "the reason names the damaged file"


def test_a_lost_pointer_costs_nothing(copied: Path) -> None:
    (copied / "snapshots" / "CURRENT").unlink()
    assert ask(copied).calibrated


def grow(path: Path, count: int, label: Callable[[int], str]) -> None:
    encoder = load_encoder(path / "encoder")
    store = ItemStore(path / "items.sqlite", encoder.dimension)
    vector = encoder.encode(["my card about a bank"])[0]
    store.upsert([Item(f"new-{at}", label(at), "new", vector) for at in range(count)])
    store.close()


def test_items_written_after_the_snapshot_are_found(copied: Path) -> None:
    grow(copied, 5, lambda at: "card")
    answer = ask(copied)
    assert answer.hits[0].id.startswith("new-")
    assert answer.calibrated


@pytest.mark.parametrize(
    ("count", "label", "said"),
    [(200, lambda at: "card", "180 items; it has 380"), (2, str, "3 labels; it has 5")],
    ids=["items", "labels"],
)
def test_a_stale_calibration_shows_no_probability(
    copied: Path, count: int, label: Callable[[int], str], said: str
) -> None:
    grow(copied, count, label)
    answer = ask(copied)
    assert not answer.calibrated
    assert said in str(answer.reason)
    assert {answer.labels, answer.no_match, answer.decision, *(h.probability for h in answer.hits)} == {None}  # type: ignore[arg-type]


def test_items_that_the_snapshot_does_not_index_are_indexed_again(copied: Path, world: World) -> None:
    encoder = load_encoder(copied / "encoder")
    (copied / "items.sqlite").unlink()
    store = ItemStore(copied / "items.sqlite", encoder.dimension)
    store.upsert([Item("only", "card", "bank", encoder.encode(["bank"])[0])])
    store.close()
    answer = ask(copied)
    assert [hit.id for hit in answer.hits] == ["only"]
    assert "another item store" in (answer.reason or "")


def test_an_emptied_collection_says_so(copied: Path) -> None:
    store = ItemStore(copied / "items.sqlite", 16)
    store.delete([item.id for item in store.get(store.vectors()[0]).values()])
    store.close()
    with pytest.raises(DataError, match="holds no items"):
        ask(copied)


def test_a_failed_open_leaves_no_open_file(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    real = ItemStore.close
    monkeypatch.setattr(ItemStore, "close", lambda self: (closed.append(1), real(self))[1])
    monkeypatch.setattr("index.storage.loading.read_snapshot", lambda root: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Collection.open(copied)
    assert closed == [1]


def test_the_error_of_a_missing_collection_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="surematch index MODEL DATA --out"):
        Collection.open(tmp_path / "nowhere")


def test_labels_of_an_answer_can_stand_in_a_set() -> None:
    one, other = LabelProbability("a", None, 0.5), LabelProbability(None, "a", 0.5)
    assert len({one, other, LabelProbability("a", None, 0.5)}) == 2


def test_a_collection_is_closed_at_the_end_of_its_block(copied: Path) -> None:
    with Collection.open(copied, writable=True) as opened:
        assert opened.search(["my bank card"])
    with Collection.open(copied, writable=True):  # the writer's place is free
        pass
    with pytest.raises(CollectionError, match="was closed"):
        opened.delete(["a"])


@pytest.mark.parametrize(("query", "shape"), [(np.ones(16), r"\(16,\)"), (None, r"\(\)"), ([], r"\(0,\)")])
def test_vectors_that_are_no_rows_are_said_to_be_none(collection: Collection, query: Any, shape: str) -> None:
    with pytest.raises(DataError, match=rf"the shape {shape}, expected \(n, {collection.encoder.dimension}\): a row"):
        collection.search_vectors(query)


def test_how_to_answer_is_checked_before_anything_is_encoded(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "encoder", None)
    with pytest.raises(DataError, match="No map 'nosuch'"):
        collection.search(["my bank card"], map="nosuch")
