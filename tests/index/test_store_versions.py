"""Items put back to an older state, vectors that are others, and stores of earlier versions."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.collection import Collection, NewItem
from index.errors import CollectionError
from index.items.schema import VERSION
from index.items.store import ItemStore
from tests.index.brute_force import same_as_brute_force
from tests.index.helpers import unit


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
