"""A live collection: written, searched, compacted and followed, and every answer is that of the items as they are."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.backup import copy_collection
from index.build import build_collection
from index.calibration.sources import Held
from index.collection import Collection, NewItem, Receipt
from index.errors import CollectionError, Damaged, DataError, ReadOnly, SettingsError, WriterBusy
from index.items import gallery as gallery_module
from index.items import profile as profile_module
from index.items.gallery import Gallery
from index.items.profile import LabelProfile
from index.items.schema import VERSION
from index.items.store import ItemStore
from index.upkeep import compaction, maintenance
from tests.index.conftest import World
from tests.index.helpers import sentences, unit, write_static


@pytest.fixture
def live(copied: Path) -> Iterator[Collection]:
    opened = Collection.open(copied, writable=True)
    yield opened
    opened.close()


def snapshots(path: Path) -> set[str]:
    return {entry.name for entry in (path / "snapshots").iterdir()}


def same_as_brute_force(opened: Collection, queries: np.ndarray, k: int = 20) -> None:
    """Whatever base, delta and tombstones hold, hits are those of an exhaustive search over the items."""
    now = opened._store.everything()
    assert np.array_equal(opened.gallery.rows, now.born)
    expected = np.sort(queries @ now.vectors.T, axis=1)[:, ::-1][:, :k]
    scores, rows = opened.state.search(queries, k)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    at = np.searchsorted(now.born, rows)
    np.testing.assert_allclose(np.einsum("qd,qkd->qk", queries, now.vectors[at]), scores, atol=1e-6)
    assert [opened.gallery.names[code] for code in opened.gallery.codes_of(rows[:, 0])] == [
        now.labels[position] for position in at[:, 0]
    ]


def test_what_was_written_is_found_at_once_and_after_opening_again(live: Collection) -> None:
    before = live.sequence
    receipt = live.upsert(
        [NewItem("new", "card", "my bank card chip", metadata={"a": 1}), NewItem("own", None, "soup")]
    )
    assert receipt == Receipt(before + 1, written=2)
    assert live.sequence == receipt.sequence
    answer = live.search(["my bank card chip"])[0]
    assert (answer.hits[0].id, answer.hits[0].metadata) == ("new", {"a": 1})
    assert answer.hits[0].score == pytest.approx(1, abs=1e-6)
    live.close()
    with_reader = Collection.open(live.path)
    assert with_reader.search(["my bank card chip"])[0].hits == answer.hits
    assert with_reader.size == 182
    with_reader.close()


def test_items_and_ids_may_come_from_a_generator(live: Collection) -> None:
    size = live.size
    assert live.upsert(NewItem(f"g{at}", "card", "bank card") for at in range(3)).written == 3
    assert live.size == size + 3
    assert live.delete(f"g{at}" for at in range(3)).deleted == 3
    with pytest.raises(DataError, match="An id to delete is a int"):
        live.delete([5])  # type: ignore[list-item]


@pytest.mark.parametrize("left", [None, b""], ids=["missing", "empty"])
def test_lost_items_are_a_loss_not_an_empty_collection(copied: Path, tmp_path: Path, left: bytes | None) -> None:
    """SQLite would make an empty file in their place, and everything after would take it for the truth."""
    items = copied / "items.sqlite"
    items.unlink()
    if left is not None:
        items.write_bytes(left)
    for use in (
        lambda: Collection.open(copied),
        lambda: Collection.open(copied, writable=True),
        lambda: copy_collection(copied, tmp_path / "copy", lambda what, done, of: None),
    ):
        with pytest.raises(Damaged, match=r"the items are missing.*Restore the file from a backup"):
            use()
    assert (items.read_bytes() if items.exists() else None) == left
    assert not (tmp_path / "copy").exists()


def test_a_word_is_no_list_and_nothing_is_no_filter(live: Collection) -> None:
    """The letters of an id or a text, and a filter that is true of everything, are never what was meant."""
    before = live.size
    with pytest.raises(DataError, match="delete takes a list of ids"):
        live.delete("sku")
    with pytest.raises(DataError, match="search takes a list of texts"):
        live.search("lamp")
    with pytest.raises(DataError, match="upsert takes a list of items, got a NewItem"):
        live.upsert(NewItem("a", "card", "bank"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="delete takes a list of ids"):
        live.delete(None)  # type: ignore[arg-type]
    for nothing in ({}, {"and": []}, {"not": {"or": []}}, {"or": [{}, {"a": 1}]}):
        with pytest.raises(DataError, match="empty filter"):
            live.delete_where(nothing)
    with pytest.raises(DataError, match="complex"):
        live.search_vectors(np.full((1, live.encoder.dimension), 1j))
    with pytest.raises(DataError, match="An item's id is a string, got a list"):
        live.item(["a"])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="The label of feedback is a int"):
        live.feedback(live.encoder.encode(["card"])[0], 5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="The label of feedback is empty"):
        live.feedback(live.encoder.encode(["card"])[0], "")
    assert live.size == before


def test_replaced_and_deleted_items_are_not_found(live: Collection) -> None:
    live.upsert([NewItem("x", "card", "bank card chip")])
    receipt = live.upsert([NewItem("x", "food", "lemon soup bread"), NewItem("y", "food", "cheese")])
    assert (receipt.written, receipt.replaced) == (2, 1)
    hits = live.search(["bank card chip", "lemon soup bread"], k=100)
    assert "x" not in [hit.id for hit in hits[0].hits if hit.score > 0.999]
    assert hits[1].hits[0].id == "x"
    assert live.delete(["x", "nobody"]).deleted == 1
    assert "x" not in [hit.id for answer in live.search(["lemon soup bread"], k=100) for hit in answer.hits]
    assert live.item("x") is None
    found = live.item("y", vector=True)
    assert found is not None
    np.testing.assert_allclose(found.vector, live.encoder.encode(["cheese"])[0], atol=1e-7)
    assert live.item("y").vector.size == 0  # type: ignore[union-attr]
    assert live.item("\ud800") is None


@pytest.mark.parametrize("small", [0, 2000], ids=["profile label by label", "profile whole"])
def test_any_sequence_of_writes_equals_brute_force(
    live: Collection, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(gallery_module, "SMALL", small)
    random = np.random.default_rng(5)
    queries = unit(30, 16, seed=9)
    ids = [item.id for item in live._store.get(live.gallery.rows.tolist()).values()]
    for step in range(12):
        if step % 3 == 2:
            gone = random.choice(ids, 25, replace=False).tolist()
            live.delete(gone)
            ids = [name for name in ids if name not in gone]
        else:
            names = [f"{step}-{at}" for at in range(20)] + random.choice(ids, 5, replace=False).tolist()
            labels = random.choice(["card", "food", f"new-{step}"], len(names)).tolist()
            vectors = unit(len(names), 16, seed=step)
            live.upsert([NewItem(*parts) for parts in zip(names, labels, [None] * 25, vectors, strict=True)])
            ids = list(dict.fromkeys([*ids, *names]))
        same_as_brute_force(live, queries)
        if step == 8:
            live.snapshot()
            same_as_brute_force(live, queries)
    now = live._store.everything()
    whole = Gallery.of(now.born, now.labels, now.vectors)
    here = live.gallery
    order = [here.names.index(name) for name in whole.names]
    assert sorted(here.names) == whole.names
    np.testing.assert_allclose(here.profile.centroids[order], whole.profile.centroids, atol=1e-6)
    # label by label, only the mean over all labels is that of the last compaction
    profile = LabelProfile.of(now.vectors, whole.codes, len(whole.names), neutral=here.profile.neutral)
    np.testing.assert_allclose(here.profile.cohesion[order], profile.cohesion, atol=1e-9)
    assert here.profile.neutral == pytest.approx(whole.profile.neutral, abs=0.1 if small == 0 else 1e-9)
    np.testing.assert_array_equal(here.profile.sizes[order], whole.profile.sizes)


@pytest.mark.parametrize("small", [0, 185, 2000])
def test_who_follows_many_writes_at_once_says_what_the_writer_says(
    live: Collection, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    """Also where labels have more items than are compared with each other, and where a small gallery grows large."""
    monkeypatch.setattr(gallery_module, "SMALL", small)
    monkeypatch.setattr(profile_module, "_SAMPLE", 20)
    reader = Collection.open(live.path)
    for seed, labels in enumerate((["card", "food"], ["food"]), 70):
        written = sentences(2, labels, seed)
        live.upsert([NewItem(f"{seed}-{at}", label, text) for at, (text, label) in enumerate(written)])
    reader.refresh()
    asked = [text for text, _ in sentences(20, seed=90)]
    assert live.uncalibrated() is None
    assert reader.search(asked) == live.search(asked)
    reader.close()


def test_a_label_too_large_to_follow_waits_for_compaction(live: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_module, "SMALL", 0)
    monkeypatch.setattr(gallery_module, "LARGE", 50)
    card = live.gallery.names.index("card")
    before = live.gallery.profile
    live.upsert([NewItem("v", "card", None, unit(1, 16)[0])])
    np.testing.assert_array_equal(live.gallery.profile.centroids[card], before.centroids[card])
    assert live.gallery.profile.sizes[card] == before.sizes[card] + 1
    live.snapshot()
    assert np.abs(live.gallery.profile.centroids[card] - before.centroids[card]).max() > 1e-4


def test_deleting_almost_everything_near_a_query_still_finds_the_rest(live: Collection) -> None:
    everything = live.search(["bank card"], k=100)[0].hits
    live.delete([hit.id for hit in everything])
    same_as_brute_force(live, live.encoder.encode(["bank card"]), k=100)
    assert not {hit.id for hit in live.search(["bank card"], k=100)[0].hits} & {hit.id for hit in everything}


def test_a_state_once_taken_does_not_change(live: Collection) -> None:
    state, queries = live.state, unit(3, 16)
    before = state.search(queries, 50)
    live.upsert([NewItem("n", "card", None, queries[0])])
    live.delete([live._store.get([int(before[1][1, 0])])[int(before[1][1, 0])].id])
    live.snapshot()
    after = state.search(queries, 50)
    np.testing.assert_array_equal(before[1], after[1])
    np.testing.assert_array_equal(before[0], after[0])
    assert live.state.search(queries[:1], 1)[0][0, 0] == pytest.approx(1)


def test_nothing_of_a_deleted_item_stays_in_memory(live: Collection) -> None:
    """What answers have shown is held by the state they come from, and goes with it."""
    shown = live.search(["bank card"], k=5)[0].hits[0]
    rows, held = set(live.gallery.rows.tolist()), live.state.read
    assert shown.id in [id for id, *_ in held.of(rows, 0).values()]
    live.delete([shown.id])
    assert live.state.read is not held
    live.search(["bank card"], k=5)
    of_others = [id for id, *_ in live.state.read.of(rows, 0).values()]
    assert len(of_others) == 5
    assert shown.id not in of_others


def test_an_answer_begun_before_an_erasure_comes_from_a_newer_state(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "my bank card chip"
    live.upsert([NewItem("x", "card", text)])
    real, calls = live._store.get, []

    def erased_meanwhile(*asked: Any) -> Any:
        if not calls:
            calls.append(1)
            live.delete(["x"])
            live.snapshot()
        return real(*asked)

    monkeypatch.setattr(live._store, "get", erased_meanwhile)
    hits = live.search([text], k=100)[0].hits
    assert len(hits) == 100
    assert "x" not in [hit.id for hit in hits]


def test_compaction_calibrates_again_with_the_queries_it_was_given(live: Collection, world: World) -> None:
    live.maintenance.close()  # so that this test compacts when it wants to
    assert live.calibration is not None
    given = live.calibration.report["queries"]
    live.upsert([NewItem(f"m{at}", label, text) for at, (text, label) in enumerate(sentences(60, ["music"], seed=8))])
    assert "3 labels; it has 4" in str(live.uncalibrated())
    stages: list[str] = []
    name = live.snapshot(lambda what, done, of: stages.append(what))
    assert live.snapshot_id == name == (live.path / "snapshots" / "CURRENT").read_text().strip()
    assert list(dict.fromkeys(stages)) == ["reading items", "calibrating", "building the index", "writing"]
    assert live.uncalibrated() is None
    again = live.calibration.report["queries"]
    assert (again["source"], again["unknown_share"]) == (given["source"], 0.4)
    # queries about music were unknown ones when they were given, and are known now
    music = live.encoder.encode([row.text for row in world.rows(world.held_unknown) if row.label == "music"])
    now = live._store.everything()
    items = now.vectors[[label == "music" for label in now.labels]]
    copies = np.tril(music @ music.T >= 1 - 1e-4, -1).any(axis=1)
    new = ~copies & ~(music @ items.T >= 1 - 1e-4).any(axis=1)
    assert again["known"] == given["known"] + new.sum() > given["known"] + 20
    assert live.search(["guitar song"])[0].decision.label == "music"  # type: ignore[union-attr]
    reader = Collection.open(live.path)
    assert reader.snapshot_id == name
    assert reader.state.pending == 0
    assert reader.uncalibrated() is None
    assert reader.warnings == []
    reader.close()


def test_an_untouched_collection_is_calibrated_again_to_the_same_numbers(live: Collection) -> None:
    before = live.calibration
    live.snapshot()
    assert before is not None
    assert live.calibration is not None
    # what was left out at first is not there to be told of again
    assert live.calibration.to_json() | {"warnings": []} == before.to_json() | {"warnings": []}


def test_deleted_is_in_no_file_after_compaction(live: Collection) -> None:
    vectors = unit(1000, 16, seed=77)
    people = [NewItem(f"person-{at:03d}-secret", "card", f"story of {at:03d}", vectors[at]) for at in range(1000)]
    live.upsert(people)
    live.snapshot()
    receipt = live.delete([person.id for person in people[:50]])
    assert any(vectors[7].tobytes() in file.read_bytes() for file in live.path.rglob("*") if file.is_file())
    assert live.describe()["erased"]["sequence"] < receipt.sequence
    live.snapshot()
    erased = live.describe()["erased"]
    assert erased["sequence"] >= receipt.sequence
    assert erased["at"] is not None
    everything = {file: file.read_bytes() for file in live.path.rglob("*") if file.is_file()}
    for at in range(60):
        for needle in (vectors[at].tobytes(), f"person-{at:03d}-secret".encode(), f"story of {at:03d}".encode()):
            assert any(needle in content for content in everything.values()) == (at >= 50)
    assert len(snapshots(live.path)) == 3, "CURRENT, and two copies that stand in for one another"


def test_without_deletions_the_older_snapshot_stays(live: Collection) -> None:
    first = live.snapshot_id
    live.upsert([NewItem("n", "card", "bank")])
    second = live.snapshot()
    assert snapshots(live.path) == {"CURRENT", first, second}


def test_enough_changes_start_a_compaction_by_themselves(live: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.upkeep.compaction.COMPACT_LEAST", 10)
    first = live.snapshot_id
    live.upsert([NewItem(f"{at}", "card", "bank") for at in range(10)])
    assert live.snapshot_id == first, "not yet"
    live.upsert([NewItem("one more", "card", "bank")])
    live.maintenance._thread.join()  # type: ignore[union-attr]
    assert live.snapshot_id != first
    assert live.state.pending == 0
    compaction = live.describe()["compaction"]
    assert (compaction["running"], compaction["error"]) == (False, None)
    assert compaction["ended"] is not None


def test_in_a_small_collection_a_fifth_is_enough(live: Collection) -> None:
    limit = max(50, len(live.engine) // 5)
    live.upsert([NewItem(f"{at}", "card", "bank") for at in range(limit)])
    assert live.maintenance._thread is None, "not yet"
    live.upsert([NewItem("one more", "card", "bank")])
    live.maintenance._thread.join()  # type: ignore[union-attr]
    assert live.state.pending == 0


def test_a_calibration_that_the_gallery_has_outgrown_is_fitted_again_by_itself(live: Collection) -> None:
    live.upsert([NewItem(f"m{at}", "music", text) for at, (text, _) in enumerate(sentences(20, ["music"], seed=8))])
    thread = live.maintenance._thread
    assert thread is not None
    thread.join()
    assert live.uncalibrated() is None
    assert live.state.pending == 0


def test_a_reader_tries_a_damaged_new_snapshot_once(live: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Collection.open(live.path)
    live.upsert([NewItem("n", "card", "bank")])
    file = live.path / "snapshots" / live.snapshot() / "rows.i64"
    file.write_bytes(file.read_bytes()[:-8])
    assert reader.refresh()
    assert any(str(file) in warning for warning in reader.warnings)
    assert reader.search(["bank"])[0].hits[0].score == pytest.approx(1)
    monkeypatch.setattr("index.storage.live.load_state", lambda *arguments: pytest.fail("loaded again"))
    assert not reader.refresh()
    live.upsert([NewItem("n2", "card", "my bank card chip")])
    assert reader.refresh()
    assert reader.search(["my bank card chip"])[0].hits[0].id == "n2"
    reader.close()


def test_a_bit_of_the_settings_never_gets_into_a_calibration(copied: Path) -> None:
    """A share of unknown queries that is another would make every probability another, and look as sound as before."""
    path = copied / "collection.json"
    sound = path.read_text()
    assert '"unknown_share": 0.4' in sound
    path.write_text(sound.replace('"unknown_share": 0.4', '"unknown_share": 0.5'))
    with pytest.raises(CollectionError, match=r"collection\.json: is damaged, or was changed.*Restore the file"):
        Collection.open(copied, writable=True)
    with closing(Collection.open(copied)) as reader:
        assert "collection.json: is damaged" in str(reader.uncalibrated())
    path.write_text(sound)
    with closing(Collection.open(copied, writable=True)) as writer:
        assert writer.uncalibrated() is None


def test_a_reader_of_what_is_damaged_follows_the_compaction_that_mends_it(copied: Path) -> None:
    """The writer that compacts gives the items another identity first; who reads them since before learns of it."""
    next((copied / "snapshots").glob("*/calibration.json")).write_bytes(b"{")
    reader = Collection.open(copied)
    assert reader.uncalibrated()
    with closing(Collection.open(copied, writable=True, compacts=False)) as writer:
        made = writer.snapshot()
    assert reader.refresh()
    assert (reader.snapshot_id, reader.warnings, reader.uncalibrated()) == (made, [], None)
    reader.close()


def test_without_the_calibrators_package_the_calibration_in_use_stays(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "topics"
    held = Held(world.rows(world.held), world.rows(world.held_unknown))
    build_collection(str(world.encoder), world.rows(world.items), out, held=held, calibrator="venn-abers")
    monkeypatch.setitem(sys.modules, "venn_abers", None)
    monkeypatch.setattr("index.upkeep.compaction.COMPACT_LEAST", 0)
    live = Collection.open(out, writable=True)
    try:
        snapshot, calibration = live.snapshot_id, live.calibration
        assert calibration is not None
        for work in (live.snapshot, live.recalibrate):
            with pytest.raises(SettingsError, match="calibrators"):
                work()
        live.upsert([NewItem(f"{at}", "card", "bank") for at in range(15)])
        live.maintenance._thread.join()  # type: ignore[union-attr]
        assert "calibrators" in live.describe()["compaction"]["error"]
        assert (live.snapshot_id, live.calibration) == (snapshot, calibration)
    finally:
        live.close()


def test_nothing_is_built_without_the_calibrators_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "venn_abers", None)
    with pytest.raises(SettingsError, match="calibrators"):
        build_collection("no such encoder", [], tmp_path / "topics", calibrator="venn-abers")
    assert not list(tmp_path.iterdir())


def test_a_failed_compaction_says_so_and_is_not_tried_again_at_once(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def full(*arguments: Any, **options: Any) -> str:
        tried.append(1)
        raise CollectionError("the disk is full")

    monkeypatch.setattr("index.upkeep.compaction.write_snapshot", full)
    monkeypatch.setattr("index.upkeep.compaction.COMPACT_LEAST", 0)
    first = live.snapshot_id
    for at in range(15):
        live.upsert([NewItem(f"{at}", "card", "bank")])
        if live.maintenance._thread is not None:
            live.maintenance._thread.join()
    assert tried == [1]
    assert live.snapshot_id == first
    assert live.describe()["compaction"]["error"] == "the disk is full"
    assert live.search(["bank"])[0].hits[0].score == pytest.approx(1)
    monkeypatch.undo()
    monkeypatch.setattr(maintenance, "monotonic", lambda: 1e12)
    monkeypatch.setattr("index.upkeep.compaction.COMPACT_LEAST", 0)
    live.upsert([NewItem("again", "card", "bank")])
    live.maintenance._thread.join()  # type: ignore[union-attr]
    assert live.snapshot_id != first


def test_closing_stops_a_compaction_at_its_next_step(live: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    real = live._store.everything

    def slow() -> Any:
        begun.set()
        go.wait(20)
        return real()

    monkeypatch.setattr(live._store, "everything", slow)
    monkeypatch.setattr("index.upkeep.compaction.COMPACT_LEAST", 0)
    first = snapshots(live.path)
    live.upsert([NewItem(f"{at}", "card", "bank") for at in range(10)])
    assert begun.wait(20)
    live.upsert([NewItem("meanwhile", "card", "bank")])
    assert live.describe()["compaction"]["running"]
    closing = threading.Thread(target=live.close)
    closing.start()
    while not live.maintenance._stop:
        pass
    go.set()
    closing.join()
    assert snapshots(live.path) == first
    again = Collection.open(live.path)
    assert again.item("meanwhile") is not None
    again.close()


def test_closing_waits_no_longer_than_bearable_for_a_step_of_minutes(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    real = live._store.calibration_queries

    def slow() -> Any:
        begun.set()
        go.wait(20)
        return real()

    monkeypatch.setattr(maintenance, "_PATIENCE", 0.01)
    monkeypatch.setattr(live._store, "calibration_queries", slow)
    monkeypatch.setattr("index.upkeep.compaction.COMPACT_LEAST", 0)
    first = snapshots(live.path)
    live.upsert([NewItem(f"{at}", "card", "bank") for at in range(10)])
    assert begun.wait(20)
    thread = live.maintenance._thread
    assert thread is not None
    live.close()
    assert thread.is_alive()
    again = Collection.open(live.path, writable=True, compacts=False)
    go.set()
    thread.join()
    assert again.item("9") is not None
    again.close()
    assert snapshots(live.path) == first


def test_closing_waits_for_a_snapshot_that_is_being_written(live: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    real = compaction.write_snapshot

    def slow(*arguments: Any, **options: Any) -> str:
        begun.set()
        go.wait(20)
        return real(*arguments, **options)

    monkeypatch.setattr(maintenance, "_PATIENCE", 0.01)
    monkeypatch.setattr(compaction, "write_snapshot", slow)
    monkeypatch.setattr("index.upkeep.compaction.COMPACT_LEAST", 0)
    first = snapshots(live.path)
    live.upsert([NewItem(f"{at}", "card", "bank") for at in range(10)])
    assert begun.wait(20)
    closing = threading.Thread(target=live.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    go.set()
    closing.join()
    assert snapshots(live.path) > first


def test_a_reader_follows_another_processs_writes_and_snapshots(live: Collection) -> None:
    reader = Collection.open(live.path)
    assert not reader.refresh()
    live.upsert([NewItem("new", "card", "my bank card chip")])
    assert "new" not in [hit.id for hit in reader.search(["my bank card chip"])[0].hits]
    assert reader.refresh()
    assert reader.search(["my bank card chip"])[0].hits[0].id == "new"
    assert reader.sequence == live.sequence
    live.delete(["new"])
    name = live.snapshot()
    # not refreshed: the item it still knows is erased, so the answer comes from a newer state
    assert "new" not in [hit.id for hit in reader.search(["my bank card chip"])[0].hits]
    assert reader.sequence == live.sequence
    assert reader.refresh()
    assert (reader.snapshot_id, reader.state.pending) == (name, 0)
    assert not reader.refresh()
    reader.close()


def test_a_reader_does_not_write(built: Path) -> None:
    reader = Collection.open(built)
    for write in (
        lambda: reader.upsert([NewItem("x", "card", "bank")]),
        lambda: reader.delete(["x"]),
        lambda: reader.snapshot(),
    ):
        with pytest.raises(ReadOnly, match="open for reading only"):
            write()
    reader.close()


def test_a_closed_collection_says_that_it_is_closed(copied: Path) -> None:
    closed = Collection.open(copied, writable=True)
    closed.close()
    assert not closed.writable
    for use in (
        lambda: closed.upsert([NewItem("x", "card", "bank")]),
        lambda: closed.delete(["x"]),
        lambda: closed.recalibrate(feedback=False),
    ):
        with pytest.raises(CollectionError, match=r"was closed\. Open the collection again\.$"):
            use()


def test_one_writer_at_a_time_and_the_next_when_it_is_gone(live: Collection) -> None:
    with pytest.raises(WriterBusy, match=r"process \d+ is writing"):
        Collection.open(live.path, writable=True)
    live.close()
    script = (
        "import sys; from pathlib import Path; from index.collection import Collection\n"
        "Collection.open(Path(sys.argv[1]), writable=True); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(live.path)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(WriterBusy, match=f"process {other.pid} is writing"):
        Collection.open(live.path, writable=True)
    other.kill()
    other.communicate()
    Collection.open(live.path, writable=True).close()


BAD = {
    "nothing to encode": (NewItem("bad", "card"), "no text, no image and no vector"),
    "an empty text": (NewItem("bad", "card", " "), "no text, no image and no vector"),
    "an image": (NewItem("bad", "card", image=b"x"), "encoder reads texts"),
    "wrong dimension": (NewItem("bad", "card", None, unit(1, 15)[0]), r"'bad': a vector of shape \(15,\)"),
    "NaN": (NewItem("bad", "card", None, np.full(16, np.nan, np.float32)), "'bad': the vector is not finite"),
    "zero": (NewItem("bad", "card", None, np.zeros(16, np.float32)), "'bad': .* norm 1"),
    "twice": (NewItem("good", "card", "bank"), "'good' stands twice"),
    "10 kB id": (NewItem("x" * 10_000, "card", "bank"), "of 10000. Choose"),
    "a number as id": (NewItem(7, "card", "bank"), "Item 2: the id is a int"),  # type: ignore[arg-type]
    "a number as label": (NewItem("bad", 5, "bank"), "Item 2: the label is a int, expected a string or None"),  # type: ignore[arg-type]
    "a number as text": (NewItem("bad", "card", 5), "Item 2: the text is a int"),  # type: ignore[arg-type]
    "a name of a picture": (NewItem("bad", "card", image="x.png"), "Item 2: the image is a str"),  # type: ignore[arg-type]
    "a word as vector": (NewItem("bad", None, None, "abc"), "'bad': the vector is no array of numbers"),  # type: ignore[arg-type]
    "deep metadata": (
        NewItem("bad", None, "bank", metadata={"a": json.loads("[" * 70 + "]" * 70)}),
        "more than 64 deep",
    ),
    "an empty label": (NewItem("bad", "", "bank"), "'bad': the label is empty"),
    "numbers as names": (NewItem("bad", None, "bank", metadata={"a": [{1: "x", "1": "y"}]}), "name 1 is not a string"),
    "no metadata": (NewItem("bad", "card", "bank", metadata=None), "Item 2: the metadata is a NoneType"),  # type: ignore[arg-type]
    "no item": ("bank", "Item 2: is a str, expected a NewItem"),
    "metadata": (NewItem("bad", "card", "bank", metadata={"a": {1, 2}}), "'bad': the metadata is not JSON"),
    "half a character": (NewItem("bad", "card", "\ud800"), "'bad': .*surrogate"),
}


@pytest.mark.parametrize(("bad", "said"), BAD.values(), ids=BAD)
def test_a_bad_item_refuses_the_batch_and_the_old_state_is_served(live: Collection, bad: NewItem, said: str) -> None:
    before = live.state
    with pytest.raises(DataError, match=said):
        live.upsert([NewItem("good", "card", "bank"), bad])
    assert live.state is before
    assert live.item("good") is None


def test_an_item_store_put_back_to_an_older_state_does_not_mix_with_its_snapshots(copied: Path) -> None:
    older = copied.parent / "older.sqlite"
    opened = Collection.open(copied, writable=True)
    with sqlite3.connect(older) as backup:
        opened._store._connection.backup(backup)
    backup.close()
    opened.upsert([NewItem("from the future", "card", None, unit(1, 16, seed=1)[0])])
    opened.snapshot()
    opened.close()
    for left in copied.glob("items.sqlite*"):
        left.unlink()
    shutil.copy(older, copied / "items.sqlite")
    reader = Collection.open(copied)
    assert any("put back to an older state" in warning for warning in reader.warnings)
    reader.close()
    # the same row numbers and sequence numbers are given out again, to other vectors
    store = ItemStore(copied / "items.sqlite", 16)
    vector = unit(1, 16, seed=2)[0]
    writer = Collection.open(copied, writable=True)
    writer.upsert([NewItem("now", "card", None, vector)])
    same_as_brute_force(writer, np.stack([vector, *unit(5, 16)]))
    writer.close()
    store.close()
    again = Collection.open(copied)
    same_as_brute_force(again, np.stack([vector, *unit(5, 16)]))
    again.close()


def test_a_snapshot_with_other_vectors_for_the_same_rows_is_not_trusted(copied: Path) -> None:
    with sqlite3.connect(copied / "items.sqlite") as connection:
        rows = connection.execute("SELECT row FROM items").fetchall()
        vectors = unit(len(rows), 16, seed=4)
        connection.executemany(
            "UPDATE items SET vector = ?, checksum = NULL WHERE row = ?",
            [(vector.tobytes(), row) for vector, (row,) in zip(vectors, rows, strict=True)],
        )
    connection.close()
    opened = Collection.open(copied)
    assert any("by their own vectors" in warning for warning in opened.warnings)
    same_as_brute_force(opened, vectors[:5])
    opened.close()


V1 = """
CREATE TABLE items (row INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, label TEXT, text TEXT,
    metadata TEXT NOT NULL, vector BLOB NOT NULL, sequence INTEGER NOT NULL);
CREATE INDEX items_by_sequence ON items (sequence);
CREATE TABLE tombstones (row INTEGER PRIMARY KEY, sequence INTEGER NOT NULL);
CREATE TABLE state (sequence INTEGER NOT NULL);
INSERT INTO state VALUES (0);
PRAGMA user_version = 1;
"""


def as_version_1(path: Path) -> None:
    """Rewrites a collection's store as version 1 wrote it, with one item deleted from the end."""
    store = ItemStore(path / "items.sqlite", 16)
    now = store.everything()
    items = store.get(now.born.tolist())
    store.close()
    for left in path.glob("items.sqlite*"):
        left.unlink()
    connection = sqlite3.connect(path / "items.sqlite")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(V1)
    for row, vector in zip(now.born.tolist(), now.vectors, strict=True):
        values = (row, items[row].id, items[row].label, items[row].text, "{}", vector.tobytes())
        connection.execute("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, 1)", values)
    connection.execute("INSERT INTO items VALUES (999, 'gone', 'card', 'gone', '{}', ?, 1)", (vector.tobytes(),))
    connection.execute("DELETE FROM items WHERE row = 999")
    connection.execute("INSERT INTO tombstones VALUES (999, 2)")
    connection.execute("UPDATE state SET sequence = ?", (now.sequence,))
    connection.commit()
    connection.close()
    current = path / "snapshots" / (path / "snapshots" / "CURRENT").read_text().strip()
    assert current.is_dir()


def test_a_version_1_store_is_brought_up_to_date(copied: Path, built: Path) -> None:
    whole = Collection.open(built)
    expected = whole.search(["bank card"], k=20)
    whole.close()
    as_version_1(copied)
    opened = Collection.open(copied, writable=True)
    with sqlite3.connect(copied / "items.sqlite") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
    connection.close()
    assert [(hit.id, hit.score) for hit in opened.search(["bank card"], k=20)[0].hits] == [
        (hit.id, hit.score) for hit in expected[0].hits
    ]
    opened.upsert([NewItem("new", "card", "bank card")])
    assert opened._store.everything().born.max() > 999, "a row number once used stays used"
    opened.close()


def test_a_migration_that_is_cut_short_leaves_version_1(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_version_1(copied)

    def cut(*arguments: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("index.items.schema._first_state", cut)
    with pytest.raises(CollectionError, match="cannot be opened"):
        ItemStore(copied / "items.sqlite", 16)
    connection = sqlite3.connect(copied / "items.sqlite")
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT COUNT(*) FROM items").fetchone() == (180,)
    connection.close()


def test_an_encoder_swapped_under_a_writer_lets_the_lock_go(copied: Path) -> None:
    shutil.rmtree(copied / "encoder")
    write_static(copied / "encoder", seed=99)
    for _ in range(2):
        with pytest.raises(CollectionError, match="is not the one"):
            Collection.open(copied, writable=True)


def test_a_collection_can_be_emptied_and_filled_again(live: Collection) -> None:
    live.delete([item.id for item in live._store.get(live.gallery.rows.tolist()).values()])
    with pytest.raises(DataError, match="holds no items"):
        live.search(["bank"])
    live.snapshot()
    live.upsert([NewItem("a", "card", "bank"), NewItem("b", None, "soup")])
    assert live.search(["bank"])[0].hits[0].id == "a"
    assert (live.size, live.gallery.label_count) == (2, 2)
    live.snapshot()
    assert live.search(["soup"])[0].hits[0].id == "b"


def test_a_write_to_a_folder_that_was_replaced_is_refused(copied: Path, tmp_path: Path) -> None:
    """By hand, in a hurry: the old one is moved away and a back-up put in its place, while it is open."""
    opened = Collection.open(copied, writable=True)
    opened.upsert([NewItem("kept", "card", "bank card")])
    copied.rename(tmp_path / "away")
    with pytest.raises(CollectionError, match=r"moved, removed or replaced.*nothing was written"):
        opened.upsert([NewItem("lost", "card", "bank card")])
    shutil.copytree(tmp_path / "away", copied)
    with pytest.raises(CollectionError, match="nothing was written"):
        opened.upsert([NewItem("lost", "card", "bank card")])
    opened.close()
    again = Collection.open(copied, writable=True)
    assert again.item("kept") is not None
    assert again.item("lost") is None
    again.close()


def test_a_reader_does_not_follow_into_another_collection(copied: Path, tmp_path: Path) -> None:
    """Its items are those of the folder it opened; snapshots of another would not fit them."""
    reader = Collection.open(copied)
    before = reader.search(["bank card"])[0]
    other = shutil.copytree(copied, tmp_path / "other")
    writer = Collection.open(other, writable=True)
    writer.upsert([NewItem("new", "card", "bank card")])
    writer.snapshot()
    writer.close()
    copied.rename(tmp_path / "away")
    other.rename(copied)
    with pytest.raises(CollectionError, match="not followed"):
        reader.refresh()
    assert reader.search(["bank card"])[0] == before
    assert not reader.warnings
    reader.close()
