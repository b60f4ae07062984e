"""What compaction and repair promise beside the index: erased means erased, and a snapshot belongs to its items."""

from __future__ import annotations

import random
import re
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.build import build_collection
from index.collection import Collection
from index.items.new_items import NewItem
from index.items.store import Item, ItemStore
from tests.index.conftest import World
from tests.index.helpers import unit


def test_an_older_snapshot_that_holds_what_was_deleted_goes(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill between the two copies that stand in for one another: nothing but the erasure removes it."""
    live = Collection.open(copied, writable=True)
    vector = unit(1, 16, seed=5)[0]
    live.upsert([NewItem("person", "card", None, vector)])
    older = live.snapshot()
    live.delete(["person"])
    monkeypatch.setattr(ItemStore, "deaths", lambda store, upto: 0)
    newer = live.snapshot()
    live.close()
    assert {path.name for path in (copied / "snapshots").iterdir()} == {newer, "CURRENT"}
    assert older != newer
    assert not any(vector.tobytes() in path.read_bytes() for path in copied.rglob("*") if path.is_file())


def test_no_calibration_that_is_kept_names_a_label_that_was_deleted(world: World, tmp_path: Path) -> None:
    """Not even one that a warning is about: half of the items and more have it."""
    rows = [row for at, row in enumerate(world.rows(world.items)) if row.label == "card" or at % 3 == 0]
    rows = [replace(row, label="Zacharias") if row.label == "card" else row for row in rows]
    build_collection(str(world.encoder), rows, tmp_path / "people")
    live = Collection.open(tmp_path / "people", writable=True)
    assert live.calibration is not None
    assert any("One label has 60% of the items" in said for said in live.calibration.warnings)
    live.recalibrate(feedback=False)
    live.delete(f"items.csv:{row.line}" for row in rows if row.label == "Zacharias")
    live.snapshot()
    live.close()
    assert list((tmp_path / "people" / "calibrations").glob("*.json"))
    assert not any(b"Zacharias" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("seed", [0, 2])
def test_rows_that_moved_between_pages_leave_nothing_behind(seed: int, tmp_path: Path) -> None:
    """Writes and deletions at random, erased now and then: SQLite's own overwriting left one of these rows each."""
    store, choose, living = ItemStore(tmp_path / "items.sqlite", 16), random.Random(seed), dict[str, int]()
    vectors = iter(np.tile(unit(500, 16), (10, 1)))
    store.upsert([Item(f"base{number}", "x", "filler text " * 3, next(vectors)) for number in range(180)])
    for step in range(400):
        names = [f"i{number}" for number in choose.sample(range(120), choose.randint(1, 8))]
        if choose.random() < 0.3:
            store.delete(names)
            living = {name: at for name, at in living.items() if name not in names}
        else:
            store.upsert([Item(name, "l", f"text of {name}/{step}/", next(vectors)) for name in names])
            living.update(dict.fromkeys(names, step))
        if step % 7 == 0:
            store.purge(store.sequence)
        if step % 21 == 0:
            store.scrub(store.sequence)
    store.purge(store.sequence)
    assert store.scrub(store.sequence)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    found = {(name.decode(), int(at)) for name, at in re.findall(rb"text of (i\d+)/(\d+)/", content)}
    assert found == set(living.items())
    store.close()


def test_a_compacted_snapshot_is_bound_to_its_items(copied: Path) -> None:
    live = Collection.open(copied, writable=True)
    live.snapshot()
    live.close()
    connection = sqlite3.connect(copied / "items.sqlite")
    connection.execute("UPDATE state SET store = 'of another collection, by chance as long'")
    connection.commit()
    connection.close()
    opened = Collection.open(copied)
    assert opened.snapshot_id.startswith("rebuilt-")
    assert any("another item store" in said for said in opened.warnings)
    opened.close()


@pytest.mark.parametrize("kind", ["hnsw", "ivf-pq"])
def test_a_repair_after_damage_keeps_the_kind_of_engine(kind: str, world: World, tmp_path: Path) -> None:
    out = tmp_path / "topics"
    build_collection(str(world.encoder), world.rows(world.items), out, engine=kind)
    for file in out.glob("snapshots/*/vectors.faiss"):
        file.write_bytes(b"damaged")
    reader = Collection.open(out)
    before = reader._store.id
    reader.close()
    opened = Collection.open(out, writable=True)
    assert opened._store.id != before, "no snapshot from before the damage may be taken for one of these items"
    assert opened.engine.kind == "flat", "until it is repaired, the items are searched as they are"
    until = time.monotonic() + 60
    while opened.snapshot_id.startswith("rebuilt-") and time.monotonic() < until:
        time.sleep(0.02)
    assert (opened.engine.kind, opened.warnings) == (kind, [])
    opened.close()
