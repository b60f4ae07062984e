"""The items of a collection in SQLite: the truth from which every index can be rebuilt.

Rows are immutable: replacing an item writes a new row and marks the old one dead, so a row number names one vector
for ever. `sequence` grows with every transaction; an acknowledged write is on disk (WAL, synchronous=FULL). Reads have
connections of their own and wait for no write.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.data.rows import text_key
from index.errors import Damaged, DataError
from index.items.filters import Filter
from index.items.item import MAX_ID_BYTES as MAX_ID_BYTES
from index.items.item import Changes as Changes
from index.items.item import Feedback as Feedback
from index.items.item import Item as Item
from index.items.item import KeptQueries as KeptQueries
from index.items.item import Record, StoredItem, checksum, is_same, record
from index.items.kept_queries import QueryStore, keep_first_rows
from index.items.read_items import ReadItems
from index.items.schema import LIVE_AT

TOMBSTONES = 100_000
"""Row numbers of erased items that are kept, so that processes which follow need not load everything anew."""
NO_CONTENT = 0
"""Stands for the `text_key` of an item of which nothing but the vector is known."""
NAMED = 10
"""Damaged items that a check names; of more it says how many."""
_EMPTY_VECTOR = np.empty(0, np.float32)


class ItemStore(QueryStore):
    """Items on disk: written in single transactions, read at one moment each."""

    @property
    def id(self) -> str:
        """Whose snapshots are those of these items. Read each time: another process may `renew` it."""
        return str(self._read("SELECT store FROM state")[0][0])

    def renew(self) -> None:
        """Gives the store another identity, so that no snapshot made until now is taken for its own."""
        with self._transaction(counts=False) as (cursor, _):
            cursor.execute("UPDATE state SET store = ?", (uuid.uuid4().hex,))

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
        """Writes all items or none; returns (sequence number, how many ids existed before). Raises `DataError`.

        An item that stands there as it is written keeps its row, so that importing everything again changes nothing.
        """
        records = [record(item, self.dimension) for item in items]
        ids = [columns[0] for columns in records]
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise DataError(f"The id {twice!r} stands twice in one batch. Give every item an id of its own.")
        with self._transaction() as (cursor, sequence):
            same = self._same(cursor, records)
            replaced = self._bury(cursor, [id for id in ids if id not in same], sequence)
            cursor.executemany(
                "INSERT INTO items (id, label, text, metadata, vector, checksum, content, sequence) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                ((*columns, sequence) for columns in records if columns[0] not in same),
            )
            cursor.executemany(
                "UPDATE items SET content = ? WHERE id = ? AND died IS NULL AND content IS NULL",
                ((columns[-1], columns[0]) for columns in records if columns[0] in same and columns[-1] is not None),
            )
        return sequence, replaced + len(same)

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
        """Takes the rows that died up to that sequence number out of the tables, their bytes overwritten.

        Of the last `TOMBSTONES` the bare numbers stay, which say nothing of the items.
        """
        with self._transaction(counts=False) as (cursor, _):
            cursor.execute("INSERT INTO tombstones SELECT row, sequence, died FROM items WHERE died <= ?", (upto,))
            keep_first_rows(cursor, upto)
            if cursor.execute("DELETE FROM items WHERE died <= ?", (upto,)).rowcount:
                cursor.execute("UPDATE state SET purged = ?", (upto,))
                newest_first = "SELECT died FROM tombstones ORDER BY died DESC LIMIT 1 OFFSET ?"
                for (died,) in cursor.execute(newest_first, (TOMBSTONES,)).fetchall():
                    cursor.execute("DELETE FROM tombstones WHERE died <= ?", (died,))
                    cursor.execute("UPDATE state SET forgotten = ?", (died,))

    def scrub(self, upto: int) -> bool:
        """Takes what was purged out of the files too, and notes when. False while a reader elsewhere prevents it.

        The file is written anew: SQLite overwrites what it deletes, but not the copies that pages keep of rows which
        once moved from one page to another (found by deleting and looking: a row in some hundreds stayed).
        """
        with self._lock:
            if self._one("SELECT purged > erased FROM state"):
                self._guard(lambda: self._connection.execute("VACUUM"))
            if self._one("PRAGMA wal_checkpoint(TRUNCATE)"):
                return False
        with self._transaction(counts=False) as (cursor, _):
            now = datetime.now(UTC).isoformat(timespec="seconds")
            cursor.execute("UPDATE state SET erased = MAX(erased, ?), erased_at = ?", (upto, now))
        return True

    def check(self) -> list[str]:
        """What is wrong by SQLite's check of every page of the file and by every live item's checksum, or nothing.

        Of damaged items the first `NAMED` are named. One row is held at a time, however many there are.
        """
        faults = [f"{self.path}: {fault}." for (fault,) in self._read("PRAGMA integrity_check") if fault != "ok"]
        damaged = 0
        # bytes, not texts: those of a damaged one may be no characters, and could not be read
        kinds = "typeof(vector) = 'blob' AND typeof(label) IN ('text', 'null')"
        columns = f"row, CAST(id AS BLOB), CAST(label AS BLOB), CAST(vector AS BLOB), checksum, {kinds}"
        with self._reader() as connection:
            for row, name, label, content, noted, sound in connection.execute(
                f"SELECT {columns} FROM items WHERE died IS NULL ORDER BY row"
            ):
                if sound and self._is_whole(None if label is None else label.decode(errors="replace"), content, noted):
                    continue
                damaged += 1
                if damaged <= NAMED:
                    faults.append(self._not_as_written(name.decode(errors="replace"), row) + ".")
        if damaged > NAMED:
            faults.append(f"{damaged - NAMED:,} more items are damaged in the same way.")
        return faults

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
            now, forgotten = connection.execute("SELECT sequence, forgotten FROM state").fetchone()
            if not forgotten <= since <= now:
                return None
            # in the order of an index: in that of the rows SQLite would read the whole table. It is the same order
            condition = "sequence > :since AND died IS NULL"
            born = self._vectors(connection, condition, {"since": since}, order="sequence, row")
            died = connection.execute(
                "SELECT row FROM items WHERE died > :s AND sequence <= :s UNION ALL "
                "SELECT row FROM tombstones WHERE died > :s AND sequence <= :s",
                {"s": since},
            )
            return Changes(now, *born, np.array([row for (row,) in died], np.int64))

    def rows_where(self, condition: Filter, at: int | None = None, after: int = 0) -> NDArray[np.int64] | None:
        """Ascending rows above `after` that pass the filter and were alive after transaction `at` (None: now).

        None where that cannot be known any more.
        """
        with self._reader() as connection:
            now, purged = connection.execute("SELECT sequence, purged FROM state").fetchone()
            at = now if at is None else at
            if not purged <= at <= now:
                return None
            statement = f"SELECT row FROM items WHERE row > :after AND {LIVE_AT} AND {condition.sql} ORDER BY row"
            found = connection.execute(statement, {"at": at, "after": after, **condition.values})
            return np.array([row for (row,) in found], np.int64)

    def get(self, rows: Iterable[int], read: ReadItems | None = None) -> dict[int, StoredItem]:
        """The items of these rows, dead ones too until they are purged.

        What stands in `read` is not read again, and what is read is left there.
        """
        rows = set(rows)
        purged = 0 if read is None else self.purged
        found = {} if read is None else read.of(rows, purged)
        if len(found) < len(rows):
            more = self._read(
                "SELECT row, id, label, text, metadata FROM items WHERE row IN (SELECT value FROM json_each(?))",
                _numbers(rows.difference(found)),
            )
            of_row = {row: StoredItem(*columns) for row, *columns in more}
            if read is not None:
                read.keep(of_row, purged)
            found.update(of_row)
        return found

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

    def live(self, ids: Sequence[str]) -> dict[int, StoredItem]:
        """The live items with these ids, by their rows."""
        found = self._read(
            "SELECT row, id, label, text, metadata FROM items "
            "WHERE died IS NULL AND id IN (SELECT value FROM json_each(?))",
            json.dumps(list(ids)),
        )
        return {row: StoredItem(*columns) for row, *columns in found}

    def texts_at(self, paths: Sequence[str], mark: str, after: int) -> list[tuple[Any, ...]]:
        """Row and, as text or None, what stands at each JSON path of its metadata: of the rows above `after` in whose
        metadata the text `mark` occurs, which spares reading the others as JSON."""
        columns = "".join(", CAST(json_extract(metadata, ?) AS TEXT)" for _ in paths)
        return self._read(
            f"SELECT row{columns} FROM items WHERE row > ? AND instr(metadata, ?) ORDER BY row", *paths, after, mark
        )

    def vectors_of(self, rows: Iterable[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of these rows those that are there, in row order: rows (n,), vectors (n, d)."""
        with self._reader() as connection:
            found = self._vectors(connection, "row IN (SELECT value FROM json_each(:rows))", {"rows": _numbers(rows)})
        return found[0], found[2]

    def keys(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """`text_key` of what each of these rows was made of, a text or a picture's digest; `NO_CONTENT` where it is not
        known."""
        found = self._read(
            "SELECT row, text, content FROM items WHERE row IN (SELECT value FROM json_each(?))", _numbers(rows)
        )
        of_row = {row: NO_CONTENT if content is None else content % (1 << 64) for row, _, content in found}
        of_row |= {row: text_key(text) for row, text, _ in found if text is not None}
        return np.array([of_row.get(row, NO_CONTENT) for row in rows.tolist()], np.uint64)

    def _vectors(
        self, connection: sqlite3.Connection, condition: str, values: dict[str, Any], order: str = "row"
    ) -> tuple[NDArray[np.int64], list[str | None], NDArray[np.float32]]:
        # filled one by one: a list of all blobs beside the matrix would take the memory twice
        count = connection.execute(f"SELECT COUNT(*) FROM items WHERE {condition}", values).fetchone()[0]
        rows, vectors = np.empty(count, np.int64), np.empty((count, self.dimension), np.float32)
        labels: list[str | None] = []
        columns = f"SELECT row, label, vector, checksum FROM items WHERE {condition} ORDER BY {order}"
        for at, (row, label, content, noted) in enumerate(connection.execute(columns, values)):
            if not self._is_whole(label, content, noted):
                (name,) = connection.execute("SELECT id FROM items WHERE row = ?", (row,)).fetchone()
                raise Damaged(
                    f"{self._not_as_written(name, row)}. Delete or write that item again, or restore the file from a "
                    "backup."
                )
            rows[at], vectors[at] = row, np.frombuffer(content, "<f4")
            labels.append(label)
        return rows, labels, vectors

    def _is_whole(self, label: str | None, vector: bytes, noted: int | None) -> bool:
        """Whether label and vector are those whose checksum was `noted`; rows of version 2 have none."""
        of_kind = isinstance(vector, bytes) and isinstance(label, str | None)  # SQLite keeps what it is given
        return of_kind and len(vector) == 4 * self.dimension and noted in (None, checksum(label, vector))

    def _not_as_written(self, name: str, row: int) -> str:
        return f"{self.path}: the vector or the label of {name!r} (row {row}) is not what was written"

    @staticmethod
    def _same(cursor: sqlite3.Cursor, records: Sequence[Record]) -> set[str]:
        """Ids of the records that stand there already, undamaged; vectors may differ by rounding."""
        given = {columns[0]: columns for columns in records}
        found = cursor.execute(
            "SELECT id, label, text, metadata, vector, checksum, content FROM items "
            "WHERE died IS NULL AND id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(given)),),
        )
        return {columns[0] for columns in found if is_same(columns, given[columns[0]])}

    @staticmethod
    def _bury(cursor: sqlite3.Cursor, ids: Sequence[str], sequence: int) -> int:
        cursor.execute(
            "UPDATE items SET died = ? WHERE died IS NULL AND id IN (SELECT value FROM json_each(?))",
            (sequence, json.dumps(list(ids))),
        )
        return cursor.rowcount


def _numbers(rows: Iterable[int]) -> str:
    return json.dumps([int(row) for row in rows])
