"""What compaction and repair promise beside the index: erased means erased, and a snapshot belongs to its items."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from index.build import build_collection
from index.collection import Collection
from index.items import ItemStore
from index.new_items import NewItem
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
    opened = Collection.open(out, writable=True)
    assert opened.engine.kind == "flat", "until it is repaired, the items are searched as they are"
    until = time.monotonic() + 60
    while opened.snapshot_id.startswith("rebuilt-") and time.monotonic() < until:
        time.sleep(0.02)
    assert (opened.engine.kind, opened.warnings) == (kind, [])
    opened.close()
