"""Queries that are kept beside the items: those a calibration rests on, and those whose right answer users told."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.items.database import Database
from index.items.item import Feedback, KeptQueries


class QueryStore(Database):
    """The queries in the file of a collection, each with its vector."""

    def __init__(self, path: Path, dimension: int, *, create: bool = True) -> None:
        """Opens the store, or creates it unless `create` is false.

        Raises `CollectionError` when `path` is not a store of this version, `Damaged` when it should be and is missing.
        """
        super().__init__(path, create=create)
        self.dimension = dimension

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

    def note_queries_of_labels_that_came(self) -> None:
        """From now on kept queries are of a `known` label when an item has it, or had it and is not purged yet."""
        with self._transaction(counts=False) as (cursor, _):
            came = "label IN (SELECT label FROM items)"
            cursor.execute(f"UPDATE calibration_queries SET known = 1 WHERE NOT known AND label IS NOT NULL AND {came}")

    def forget_queries_of_labels_that_left(self) -> None:
        """Deletes kept queries and feedback whose label was in the gallery and has no item any more."""
        self.note_queries_of_labels_that_came()
        there = "label IN (SELECT label FROM items WHERE died IS NULL AND label IS NOT NULL)"
        with self._transaction(counts=False) as (cursor, _):
            cursor.execute(f"DELETE FROM calibration_queries WHERE known AND NOT {there}")
            cursor.execute(f"DELETE FROM feedback WHERE label IS NOT NULL AND NOT {there}")

    def add_feedback(self, vector: NDArray[np.float32], label: str | None, query_id: str | None = None) -> int:
        """Notes what a query's right answer was (None: nothing in the gallery); returns the note's number."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._transaction(counts=False) as (cursor, _):
            cursor.execute(
                "INSERT INTO feedback (query_id, label, vector, at, last_row) "
                "SELECT ?, ?, ?, ?, COALESCE(MAX(row), 0) FROM items",
                (query_id, label, _blob(vector), now),
            )
            return int(cursor.lastrowid or 0)

    @property
    def last_row(self) -> int:
        """The highest row number there is, 0 without items."""
        return int(self._read("SELECT COALESCE(MAX(row), 0) FROM items")[0][0])

    @property
    def last_feedback(self) -> int:
        """Number of the last note of feedback there ever was, 0 before the first."""
        return int(self._read("SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = 'feedback'")[0][0])

    def feedback(self, upto: int | None = None) -> Feedback:
        """All notes, or those up to that number, in the order they came."""
        last = self.last_feedback if upto is None else upto
        read = "SELECT number, label, vector, last_row FROM feedback WHERE number <= ? ORDER BY number"
        found = self._read(read, last)
        return Feedback(
            np.array([number for number, _, _, _ in found], np.int64),
            [label for _, label, _, _ in found],
            self._matrix(vector for _, _, vector, _ in found),
            np.array([last for _, _, _, last in found], np.int64),
        )

    def first_rows(self) -> dict[str, int]:
        """Of labels with rows that are dead or erased the first of those: they have been there that long at least."""
        dead = "SELECT label, row FROM items WHERE died IS NOT NULL AND label IS NOT NULL"
        found = self._read(f"SELECT label, MIN(row) FROM ({dead} UNION ALL SELECT * FROM first_rows) GROUP BY label")
        return dict(found)

    def _matrix(self, blobs: Iterable[bytes]) -> NDArray[np.float32]:
        return np.frombuffer(b"".join(blobs), "<f4").reshape(-1, self.dimension).astype(np.float32)


def keep_first_rows(cursor: sqlite3.Cursor, upto: int) -> None:
    """Notes for `QueryStore.first_rows` what the rows that died up to there, and are about to go, say of labels."""
    # what is replaced again and again stays as old as it is; of labels that have gone nothing may be left
    cursor.execute(
        "INSERT OR IGNORE INTO first_rows SELECT label, MIN(row) FROM items WHERE died <= ? AND label IS NOT NULL "
        "AND EXISTS (SELECT 1 FROM feedback) GROUP BY label",
        (upto,),
    )
    there = "SELECT label FROM items WHERE died IS NULL AND label IS NOT NULL"
    cursor.execute(f"DELETE FROM first_rows WHERE label NOT IN ({there})")


def _blob(vector: NDArray[np.floating]) -> bytes:
    return np.ascontiguousarray(vector, "<f4").tobytes()
