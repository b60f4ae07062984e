"""The items of a collection in SQLite: the truth from which every index can be rebuilt.

Rows are immutable: replacing an item writes a new row and a tombstone for the old one, so a row number names one
vector for ever. `sequence` grows with every transaction; an acknowledged write is on disk (WAL, synchronous=FULL).
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import CollectionError, DataError

MAX_ID_BYTES = 512
_SCHEMA_VERSION = 1
_SCHEMA = f"""
CREATE TABLE items (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    label TEXT,
    text TEXT,
    metadata TEXT NOT NULL,
    vector BLOB NOT NULL,
    sequence INTEGER NOT NULL
);
CREATE INDEX items_by_sequence ON items (sequence);
CREATE TABLE tombstones (row INTEGER PRIMARY KEY, sequence INTEGER NOT NULL);
CREATE TABLE state (sequence INTEGER NOT NULL);
INSERT INTO state VALUES (0);
PRAGMA user_version = {_SCHEMA_VERSION};
"""


def _uri(path: Path) -> str:
    """A read-only folder (a container's mount) cannot hold SQLite's lock files: the store is then opened as it lies."""
    location = path.absolute().as_uri()
    if os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK)):
        return location
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        raise CollectionError(
            f"{log}: holds writes not yet in {path.name}, and the folder is read-only, so they would be missed. Open "
            "the collection once where it is writable (surematch search COLLECTION TEXT), then mount it again."
        )
    return location + "?mode=ro&immutable=1"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in the gallery. `label` None: an item that stands for itself."""

    id: str
    label: str | None
    text: str | None
    vector: NDArray[np.float32]
    metadata: dict[str, Any] = field(default_factory=dict)


class ItemStore:
    """Items on disk. One connection guarded by a lock; reads are short and writes are single transactions."""

    def __init__(self, path: Path, dimension: int) -> None:
        """Opens or creates the store. Raises `CollectionError` when `path` is not a store of this version."""
        self.path = path
        self.dimension = dimension
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(
                _uri(path), uri=True, check_same_thread=False, isolation_level=None, timeout=30
            )
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            self._prepare()
        except BaseException as error:
            self._connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._unusable(error) from error
            raise

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA synchronous = FULL")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        if version > _SCHEMA_VERSION:
            raise CollectionError(
                f"{self.path}: written by a newer surematch (format {version}, this one reads {_SCHEMA_VERSION}). "
                "Upgrade."
            )

    def _unusable(self, error: sqlite3.Error) -> CollectionError:
        return CollectionError(
            f"{self.path}: the item store cannot be opened ({error}). Check that the folder is writable, or restore it "
            "from a backup."
        )

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @property
    def sequence(self) -> int:
        """Number of the last committed transaction."""
        return int(self._read("SELECT sequence FROM state")[0][0])

    def __len__(self) -> int:
        return int(self._read("SELECT COUNT(*) FROM items")[0][0])

    def upsert(self, items: Sequence[Item]) -> int:
        """Writes all items or none and returns the transaction's sequence number. Raises `DataError`."""
        records = [self._record(item) for item in items]
        ids = [record[0] for record in records]
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise DataError(f"The id {twice!r} stands twice in one batch. Give every item an id of its own.")
        with self._transaction() as (cursor, sequence):
            self._bury(cursor, ids, sequence)
            cursor.executemany(
                "INSERT INTO items (id, label, text, metadata, vector, sequence) VALUES (?, ?, ?, ?, ?, ?)",
                ((*record, sequence) for record in records),
            )
        return sequence

    def delete(self, ids: Sequence[str]) -> tuple[int, int]:
        """Removes the items that exist; returns (sequence number, how many there were)."""
        with self._transaction() as (cursor, sequence):
            count = self._bury(cursor, ids, sequence)
        return sequence, count

    def vectors(self) -> tuple[NDArray[np.int64], list[str | None], NDArray[np.float32]]:
        """All live items in row order: rows (n,), labels, vectors (n, d)."""
        rows = np.empty(len(self), np.int64)
        vectors = np.empty((len(rows), self.dimension), np.float32)
        labels: list[str | None] = []
        for numbers, names, block in self.blocks():
            part = slice(len(labels), len(labels) + len(numbers))
            rows[part], vectors[part] = numbers, block
            labels += names
        return rows, labels, vectors

    def blocks(self, size: int = 4096) -> Iterator[tuple[NDArray[np.int64], list[str | None], NDArray[np.float32]]]:
        """What `vectors` returns, `size` items at a time."""
        last = -1
        while records := self._read(
            "SELECT row, label, vector FROM items WHERE row > ? ORDER BY row LIMIT ?", last, size
        ):
            last = records[-1][0]
            vectors = np.frombuffer(b"".join(record[2] for record in records), dtype="<f4")
            rows = np.array([record[0] for record in records], dtype=np.int64)
            yield rows, [record[1] for record in records], vectors.reshape(len(rows), self.dimension)

    def labels(self) -> dict[int, str | None]:
        """Label of every live row."""
        return dict(self._read("SELECT row, label FROM items"))

    def get(self, rows: Iterable[int]) -> dict[int, Item]:
        """The live items of these rows, without their vectors' cost: `vector` is empty."""
        wanted = json.dumps([int(row) for row in rows])
        found = self._read(
            "SELECT row, id, label, text, metadata FROM items WHERE row IN (SELECT value FROM json_each(?))", wanted
        )
        empty = np.empty(0, np.float32)
        return {row: Item(name, label, text, empty, json.loads(metadata)) for row, name, label, text, metadata in found}

    def _record(self, item: Item) -> tuple[str, str | None, str | None, str, bytes]:
        vector = np.ascontiguousarray(item.vector, dtype="<f4")
        if vector.shape != (self.dimension,):
            raise DataError(
                f"Item {item.id!r}: a vector of shape {vector.shape}, expected ({self.dimension},). Encode it with "
                "this collection's encoder."
            )
        if not np.isfinite(vector).all() or abs(float(np.linalg.norm(vector)) - 1) > 1e-3:
            raise DataError(f"Item {item.id!r}: the vector is not finite or not of norm 1. Encode the item again.")
        try:
            metadata = json.dumps(item.metadata, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"Item {item.id!r}: the metadata is not JSON ({error}). Use plain JSON values.") from error
        for what, value in (("id", item.id), ("label", item.label), ("text", item.text), ("metadata", metadata)):
            try:
                (value or "").encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"Item {item.id[:40]!r}: the {what} holds half of a surrogate pair, which is not a character. "
                    "Repair its encoding."
                ) from error
        if "\0" in item.id or not 1 <= len(item.id.encode()) <= MAX_ID_BYTES:
            raise DataError(
                f"An id must have 1 to {MAX_ID_BYTES} bytes and no NUL, got {item.id[:40]!r}. Choose another one."
            )
        return item.id, item.label, item.text, metadata, vector.tobytes()

    @staticmethod
    def _bury(cursor: sqlite3.Cursor, ids: Sequence[str], sequence: int) -> int:
        wanted = json.dumps(list(ids))
        cursor.execute(
            "INSERT INTO tombstones SELECT row, ? FROM items WHERE id IN (SELECT value FROM json_each(?))",
            (sequence, wanted),
        )
        cursor.execute("DELETE FROM items WHERE id IN (SELECT value FROM json_each(?))", (wanted,))
        return cursor.rowcount

    def _read(self, statement: str, *values: Any) -> list[Any]:
        with self._lock:
            found: list[Any] = self._guard(lambda: self._connection.execute(statement, values).fetchall())
            return found

    @contextmanager
    def _transaction(self) -> Iterator[tuple[sqlite3.Cursor, int]]:
        with self._lock:
            cursor = self._guard(lambda: self._connection.execute("BEGIN IMMEDIATE"))
            try:
                sequence = cursor.execute("UPDATE state SET sequence = sequence + 1 RETURNING sequence").fetchone()[0]
                yield cursor, sequence
                cursor.execute("COMMIT")
            except BaseException as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._failed(error) from error
                raise

    def _guard(self, call: Any) -> Any:
        try:
            return call()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> CollectionError:
        return CollectionError(
            f"{self.path}: {error}. Nothing was written. Free disk space or repair permissions, then try again; if the "
            "file is damaged, restore it from a backup."
        )
