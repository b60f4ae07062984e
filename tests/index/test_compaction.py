"""Compaction: when it starts, what it calibrates with and erases, how it fails, and how closing stops it."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.build import build_collection
from index.calibration.sources import Held
from index.collection import Collection, NewItem
from index.errors import CollectionError, SettingsError
from index.storage import live as live_module
from index.upkeep import compaction, maintenance
from tests.index.brute_force import snapshots
from tests.index.conftest import World
from tests.index.helpers import sentences, unit


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


def test_a_reader_that_opens_while_a_compaction_ends_follows_it(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, made = live_module.load_state, []

    def slow(*how: Any) -> Any:
        state = load(*how)
        if not made:
            made.append("")
            with Collection.open(copied, writable=True, compacts=False) as writing:
                writing.upsert([NewItem("new", "card", "my bank card chip")])
                made[0] = writing.snapshot()
        return state

    monkeypatch.setattr(live_module, "load_state", slow)
    with Collection.open(copied) as reading:
        reading.refresh()
        assert reading.snapshot_id == made[0]


def test_settings_that_change_under_a_writer_are_not_sealed_by_its_compaction(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = live.path / "collection.json"
    before = file.read_bytes()
    file.write_text(json.dumps(json.loads(before) | {"engine": "hnsw"}))
    with pytest.raises(CollectionError, match=r"collection\.json: is damaged, or was changed"):
        live.snapshot()
    file.write_bytes(before)
    write = compaction.write_snapshot

    def changed_meanwhile(*where: Any, **what: Any) -> str:
        file.write_text(json.dumps(json.loads(before) | {"engine": "hnsw"}))
        return write(*where, **what)

    monkeypatch.setattr(compaction, "write_snapshot", changed_meanwhile)
    live.snapshot()
    live.close()
    with pytest.raises(CollectionError, match=r"collection\.json: is damaged, or was changed"):
        Collection.open(live.path, writable=True)
