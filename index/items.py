"""The items of a collection in SQLite: the truth from which every index can be rebuilt.

Rows are immutable: replacing an item writes a new row and marks the old one dead, so a row number names one vector
for ever. `sequence` grows with every transaction; an acknowledged write is on disk (WAL, synchronous=FULL). Reads have
connections of their own and wait for no write.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index import items_schema
from index.errors import CollectionError, Damaged, DataError, DiskFull, ReadOnly
from index.filters import Filter
from index.items_schema import LIVE_AT

MAX_ID_BYTES = 512
_EMPTY_VECTOR = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in the gallery. `label` None: an item that stands for itself."""

    id: str
    label: str | None
    text: str | None
    vector: NDArray[np.float32]
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened from one sequence number to `sequence`: rows born (and still alive) with labels and vectors (n, d),
    and rows that died."""

    sequence: int
    born: NDArray[np.int64]
    labels: list[str | None]
    vectors: NDArray[np.float32]
    died: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class KeptQueries:
    """Calibration queries that are no items: labels, whether each was `known` (n,) when given, vectors (n, d)."""

    labels: list[str | None]
    known: NDArray[np.bool_]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Feedback:
    """What users said was right: numbers (n,) ascending, labels (None: none of the gallery's), query vectors (n, d)."""

    numbers: NDArray[np.int64]
    labels: list[str | None]
    vectors: NDArray[np.float32]

    def distinct(self) -> Feedback:
        """One note a query vector: the last word on it counts, however often it was said."""
        last = {vector.tobytes(): at for at, vector in enumerate(self.vectors)}
        kept = sorted(last.values())
        return Feedback(self.numbers[kept], [self.labels[at] for at in kept], self.vectors[kept])


class ItemStore:
    """Items on disk. One connection writes, under a lock, in single transactions; a pool of others reads."""

    def __init__(self, path: Path, dimension: int) -> None:
        """Opens or creates the store. Raises `CollectionError` when `path` is not a store of this version."""
        self.path = path
        self.dimension = dimension
        self._lock = threading.Lock()
        self._closed = False
        self._readers: list[sqlite3.Connection] = []  # those that nobody uses now; append and pop are atomic
        try:
            self._connection = self._connect()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            self._prepare()
            self.id = str(self._read("SELECT store FROM state")[0][0])
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.Error):
                raise self._unusable(error) from error
            raise

    def _connect(self) -> sqlite3.Connection:
        found = sqlite3.connect(_uri(self.path), uri=True, check_same_thread=False, isolation_level=None, timeout=30)
        try:
            found.execute("PRAGMA synchronous = FULL")
            found.execute("PRAGMA secure_delete = ON")
        except BaseException:
            found.close()
            raise
        return found

    def _prepare(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > items_schema.VERSION:
            raise CollectionError(
                f"{self.path}: written by a newer surematch (format {version}, this one reads "
                f"{items_schema.VERSION}). Upgrade."
            )
        if version == items_schema.VERSION:
            return
        if "mode=ro" in _uri(self.path):
            raise ReadOnly(
                f"{self.path}: written by an older surematch (format {version}) and in a folder that cannot be written "
                "to, so it cannot be brought up to date. Open the collection once where it is writable."
            )
        if version == 0:
            self._connection.execute("PRAGMA journal_mode = WAL")
            items_schema.create(self._connection)
        items_schema.migrate(self._connection)

    def close(self) -> None:
        """Closes every connection; a read that is under way ends first."""
        self._closed = True
        with self._lock:
            self._connection.close()
        while self._readers:
            self._readers.pop().close()

    def renew(self) -> None:
        """Gives the store another identity, so that no snapshot made until now is taken for its own."""
        self.id = uuid.uuid4().hex
        with self._transaction(counts=False) as (cursor, _):
            cursor.execute("UPDATE state SET store = ?", (self.id,))

    @property
    def sequence(self) -> int:
        """Number of the last committed transaction."""
        return int(self._read("SELECT sequence FROM state")[0][0])

    @property
    def erased(self) -> tuple[int, str | None]:
        """(sequence number, time): what was deleted up to there is in no file of the collection any more."""
        found = self._read("SELECT erased, erased_at FROM state")[0]
        return int(found[0]), found[1]

    def __len__(self) -> int:
        return int(self._read("SELECT COUNT(*) FROM items WHERE died IS NULL")[0][0])

    def upsert(self, items: Sequence[Item]) -> tuple[int, int]:
        """Writes all items or none; returns (sequence number, how many ids existed before). Raises `DataError`."""
        records = [self._record(item) for item in items]
        ids = [record[0] for record in records]
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise DataError(f"The id {twice!r} stands twice in one batch. Give every item an id of its own.")
        with self._transaction() as (cursor, sequence):
            replaced = self._bury(cursor, ids, sequence)
            cursor.executemany(
                "INSERT INTO items (id, label, text, metadata, vector, sequence) VALUES (?, ?, ?, ?, ?, ?)",
                ((*record, sequence) for record in records),
            )
        return sequence, replaced

    def delete(self, ids: Sequence[str]) -> tuple[int, int]:
        """Removes the items that exist; returns (sequence number, how many there were)."""
        with self._transaction() as (cursor, sequence):
            count = self._bury(cursor, ids, sequence)
        return sequence, count

    def deaths(self, upto: int) -> int:
        """How many dead rows of up to that sequence number wait for `purge`."""
        return int(self._read("SELECT COUNT(*) FROM items WHERE died <= ?", upto)[0][0])

    @property
    def purged(self) -> int:
        """Rows that died up to this sequence number are gone from the tables."""
        return int(self._read("SELECT purged FROM state")[0][0])

    def purge(self, upto: int) -> None:
        """Takes the rows that died up to that sequence number out of the tables, their bytes overwritten."""
        with self._transaction(counts=False) as (cursor, _):
            if cursor.execute("DELETE FROM items WHERE died <= ?", (upto,)).rowcount:
                cursor.execute("UPDATE state SET purged = ?", (upto,))

    def scrub(self, upto: int) -> bool:
        """Takes what was purged out of the files too, and notes when. False while a reader elsewhere prevents it."""
        with self._lock:
            free, pages = (self._one(f"PRAGMA {count}") for count in ("freelist_count", "page_count"))
            if free and (free > pages // 4 or self._one("SELECT erased FROM state") == items_schema.NEVER):
                self._guard(lambda: self._connection.execute("VACUUM"))
            if self._one("PRAGMA wal_checkpoint(TRUNCATE)"):
                return False
        with self._transaction(counts=False) as (cursor, _):
            now = datetime.now(UTC).isoformat(timespec="seconds")
            cursor.execute("UPDATE state SET erased = MAX(erased, ?), erased_at = ?", (upto, now))
        return True

    def check(self) -> list[str]:
        """SQLite's check of every page of the file: what is wrong, or nothing."""
        return [f"{self.path}: {fault}." for (fault,) in self._read("PRAGMA integrity_check") if fault != "ok"]

    def copy_to(self, path: Path) -> None:
        """Writes all of the store, of one moment, to a new file. Raises `CollectionError`."""
        with self._reader() as connection, closing(sqlite3.connect(path)) as target:
            connection.backup(target)

    def everything(self) -> Changes:
        """All live items, of one moment."""
        with self._reader() as connection:
            now = connection.execute("SELECT sequence FROM state").fetchone()[0]
            return Changes(now, *self._vectors(connection, "died IS NULL", {}), np.empty(0, np.int64))

    def vectors(self) -> tuple[NDArray[np.int64], list[str | None], NDArray[np.float32]]:
        """All live items in row order: rows (n,), labels, vectors (n, d)."""
        found = self.everything()
        return found.born, found.labels, found.vectors

    def labels(self) -> dict[int, str | None]:
        """Label of every live row."""
        return dict(self._read("SELECT row, label FROM items WHERE died IS NULL"))

    def labels_at(self, sequence: int) -> dict[int, str | None] | None:
        """Label of every row that was alive after that transaction; None where this cannot be known any more."""
        with self._reader() as connection:
            now, purged = connection.execute("SELECT sequence, purged FROM state").fetchone()
            if not purged <= sequence <= now:
                return None
            found = connection.execute(f"SELECT row, label FROM items WHERE {LIVE_AT} ORDER BY row", {"at": sequence})
            return dict(found.fetchall())

    def changes(self, since: int) -> Changes | None:
        """What happened after the transaction `since`; None where this cannot be known any more: start anew."""
        with self._reader() as connection:
            now, purged = connection.execute("SELECT sequence, purged FROM state").fetchone()
            if not purged <= since <= now:
                return None
            born = self._vectors(connection, "sequence > :since AND died IS NULL", {"since": since})
            died = connection.execute("SELECT row FROM items WHERE died > :s AND sequence <= :s", {"s": since})
            return Changes(now, *born, np.array([row for (row,) in died], np.int64))

    def rows_where(self, condition: Filter, at: int | None = None) -> NDArray[np.int64] | None:
        """Ascending rows that pass the filter and were alive after transaction `at` (None: now).

        None where that cannot be known any more.
        """
        with self._reader() as connection:
            now, purged = connection.execute("SELECT sequence, purged FROM state").fetchone()
            at = now if at is None else at
            if not purged <= at <= now:
                return None
            statement = f"SELECT row FROM items WHERE {LIVE_AT} AND {condition.sql} ORDER BY row"
            found = connection.execute(statement, {"at": at, **condition.values})
            return np.array([row for (row,) in found], np.int64)

    def get(self, rows: Iterable[int]) -> dict[int, Item]:
        """The items of these rows, dead ones too until they are purged, without their vectors: `vector` is empty."""
        found = self._read(
            "SELECT row, id, label, text, metadata FROM items WHERE row IN (SELECT value FROM json_each(?))",
            _numbers(rows),
        )
        return {
            row: Item(name, label, text, _EMPTY_VECTOR, json.loads(metadata))
            for row, name, label, text, metadata in found
        }

    def item(self, name: str, *, vector: bool = False) -> Item | None:
        """The live item with this id; its `vector` is empty unless asked for."""
        try:
            found = self._read("SELECT label, text, metadata, vector FROM items WHERE id = ? AND died IS NULL", name)
        except UnicodeEncodeError:
            return None  # no id holds half a character
        if not found:
            return None
        label, text, metadata, content = found[0]
        return Item(name, label, text, np.frombuffer(content, "<f4") if vector else _EMPTY_VECTOR, json.loads(metadata))

    def vectors_of(self, rows: Iterable[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of these rows those that are there, in row order: rows (n,), vectors (n, d)."""
        with self._reader() as connection:
            found = self._vectors(connection, "row IN (SELECT value FROM json_each(:rows))", {"rows": _numbers(rows)})
        return found[0], found[2]

    def texts(self, rows: Iterable[int]) -> dict[int, str | None]:
        """Text of each of these rows that is there."""
        return dict(
            self._read("SELECT row, text FROM items WHERE row IN (SELECT value FROM json_each(?))", _numbers(rows))
        )

    def keep_calibration_queries(self, queries: KeptQueries) -> None:
        """Stores the queries that a calibration rests on and that are no items, in place of earlier ones."""
        columns = (queries.labels, queries.known.tolist(), map(_blob, queries.vectors))
        with self._transaction(counts=False) as (cursor, _):
            cursor.execute("DELETE FROM calibration_queries")
            cursor.executemany(
                "INSERT INTO calibration_queries (label, known, vector) VALUES (?, ?, ?)", zip(*columns, strict=True)
            )

    def calibration_queries(self) -> KeptQueries:
        """What `keep_calibration_queries` kept."""
        found = self._read("SELECT label, known, vector FROM calibration_queries ORDER BY number")
        return KeptQueries(
            [label for label, _, _ in found],
            np.array([known for _, known, _ in found], np.bool_),
            self._matrix(vector for _, _, vector in found),
        )

    def add_feedback(self, vector: NDArray[np.float32], label: str | None, query_id: str | None = None) -> int:
        """Notes what a query's right answer was (None: nothing in the gallery); returns the note's number."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._transaction(counts=False) as (cursor, _):
            cursor.execute(
                "INSERT INTO feedback (query_id, label, vector, at) VALUES (?, ?, ?, ?)",
                (query_id, label, _blob(vector), now),
            )
            return int(cursor.lastrowid or 0)

    def feedback(self) -> Feedback:
        """All notes, in the order they came."""
        found = self._read("SELECT number, label, vector FROM feedback ORDER BY number")
        return Feedback(
            np.array([number for number, _, _ in found], np.int64),
            [label for _, label, _ in found],
            self._matrix(vector for _, _, vector in found),
        )

    def _vectors(
        self, connection: sqlite3.Connection, condition: str, values: dict[str, Any]
    ) -> tuple[NDArray[np.int64], list[str | None], NDArray[np.float32]]:
        # filled one by one: a list of all blobs beside the matrix would take the memory twice
        count = connection.execute(f"SELECT COUNT(*) FROM items WHERE {condition}", values).fetchone()[0]
        rows, vectors = np.empty(count, np.int64), np.empty((count, self.dimension), np.float32)
        labels: list[str | None] = []
        found = connection.execute(f"SELECT row, label, vector FROM items WHERE {condition} ORDER BY row", values)
        for at, (row, label, content) in enumerate(found):
            if len(content) != 4 * self.dimension:
                raise Damaged(f"{self.path}: row {row} holds {len(content)} bytes, expected {4 * self.dimension}.")
            rows[at], vectors[at] = row, np.frombuffer(content, "<f4")
            labels.append(label)
        return rows, labels, vectors

    def _matrix(self, blobs: Iterable[bytes]) -> NDArray[np.float32]:
        return np.frombuffer(b"".join(blobs), "<f4").reshape(-1, self.dimension).astype(np.float32)

    def _record(self, item: Item) -> tuple[str, str | None, str | None, str, bytes]:
        vector = np.ascontiguousarray(item.vector, dtype="<f4")
        if vector.shape != (self.dimension,):
            raise DataError(
                f"Item {item.id[:40]!r}: a vector of shape {vector.shape}, expected ({self.dimension},). Encode "
                "it with this collection's encoder."
            )
        if not np.isfinite(vector).all() or abs(float(np.linalg.norm(vector)) - 1) > 1e-3:
            raise DataError(f"Item {item.id[:40]!r}: the vector is not finite or not of norm 1. Encode the item again.")
        try:
            metadata = json.dumps(item.metadata, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"Item {item.id[:40]!r}: the metadata is not JSON ({error}). Use plain JSON values."
            ) from error
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
                f"An id must have 1 to {MAX_ID_BYTES} bytes and no NUL, got {item.id[:40]!r} of "
                f"{len(item.id.encode())}. Choose another one."
            )
        return item.id, item.label, item.text, metadata, vector.tobytes()

    @staticmethod
    def _bury(cursor: sqlite3.Cursor, ids: Sequence[str], sequence: int) -> int:
        cursor.execute(
            "UPDATE items SET died = ? WHERE died IS NULL AND id IN (SELECT value FROM json_each(?))",
            (sequence, json.dumps(list(ids))),
        )
        return cursor.rowcount

    def _one(self, statement: str) -> int:
        return int(self._guard(lambda: self._connection.execute(statement).fetchone()[0]))

    def _read(self, statement: str, *values: Any) -> list[Any]:
        with self._reader() as connection:
            found: list[Any] = connection.execute(statement, values).fetchall()
            return found

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction of its own: everything read through it is of one moment."""
        try:
            connection = self._readers.pop()
        except IndexError:
            connection = self._guard(self._connect)
        try:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._failed(error) from error
            raise
        self._readers.append(connection)
        if self._closed:
            self.close()

    @contextmanager
    def _transaction(self, *, counts: bool = True) -> Iterator[tuple[sqlite3.Cursor, int]]:
        """One that takes the next sequence number, unless it `counts` not, for changing no item."""
        with self._lock:
            cursor = self._guard(lambda: self._connection.execute("BEGIN IMMEDIATE"))
            try:
                sequence = cursor.execute(
                    "UPDATE state SET sequence = sequence + ? RETURNING sequence", (int(counts),)
                ).fetchone()[0]
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

    def _unusable(self, error: sqlite3.Error) -> CollectionError:
        return _kind(error)(
            f"{self.path}: the item store cannot be opened ({error}). Check that the folder is writable, or restore it "
            "from a backup."
        )

    def _failed(self, error: sqlite3.Error) -> CollectionError:
        return _kind(error)(
            f"{self.path}: {error}. Nothing was written. Free disk space or repair permissions, then try again; if the "
            "file is damaged, restore it from a backup."
        )


def _kind(error: sqlite3.Error) -> type[CollectionError]:
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_FULL or code in (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE):
        return DiskFull  # a file that may not grow (quota, limit) is an I/O error to SQLite
    return {
        sqlite3.SQLITE_READONLY: ReadOnly,
        sqlite3.SQLITE_CORRUPT: Damaged,
        sqlite3.SQLITE_NOTADB: Damaged,
    }.get(code & 0xFF, CollectionError)


def _numbers(rows: Iterable[int]) -> str:
    return json.dumps([int(row) for row in rows])


def _blob(vector: NDArray[np.floating]) -> bytes:
    return np.ascontiguousarray(vector, "<f4").tobytes()


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
