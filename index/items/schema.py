"""The tables of `items.sqlite`, and how older ones become them.

A row is born with one transaction's sequence number and dies with another's; a dead row stays until compaction erases
it, so that a reader of an older state still finds the items it answers with. Rows are never reused.
"""

from __future__ import annotations

import sqlite3
import uuid

VERSION = 5
NEVER = -1
"""`erased` of a store whose earlier deletions were not overwritten."""
LIVE_AT = "sequence <= :at AND (died IS NULL OR died > :at)"
"""SQL condition for the items that existed after transaction :at."""

_ITEMS = """
-- checksum is of label and vector, NULL in rows from before version 3
-- content is of a picture's digest, NULL for texts and in rows from before version 4
CREATE TABLE items (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    label TEXT,
    text TEXT,
    metadata TEXT NOT NULL,
    vector BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    died INTEGER,
    checksum INTEGER,
    content INTEGER
);
"""
_TOMBSTONES = """
-- rows that are erased: for processes that follow from a state in which they were alive
CREATE TABLE tombstones (row INTEGER PRIMARY KEY, sequence INTEGER NOT NULL, died INTEGER NOT NULL);
CREATE INDEX tombstones_died ON tombstones (died);
"""
_FIRST_ROWS = """
-- of labels that have items, the first row that is erased: they have been there since then at the latest
CREATE TABLE first_rows (label TEXT PRIMARY KEY, row INTEGER NOT NULL) WITHOUT ROWID;
"""
# made after old rows were copied, so that each is sorted once
_REST = f"""{_FIRST_ROWS}
CREATE UNIQUE INDEX items_by_id ON items (id) WHERE died IS NULL;
CREATE INDEX items_by_sequence ON items (sequence);
CREATE INDEX items_dead ON items (died) WHERE died IS NOT NULL;
CREATE TABLE state (
    store TEXT NOT NULL,          -- whose snapshots these are: another store's are refused
    sequence INTEGER NOT NULL,    -- of the last transaction
    purged INTEGER NOT NULL,      -- rows that died up to this transaction are gone from the tables
    erased INTEGER NOT NULL,      -- ... and from every file of the collection
    erased_at TEXT,
    forgotten INTEGER NOT NULL DEFAULT 0    -- deaths up to this transaction are not among the tombstones any more
);
-- queries given for the calibration that are no items, so that it can be fitted again
CREATE TABLE calibration_queries (
    number INTEGER PRIMARY KEY,
    label TEXT,
    known INTEGER NOT NULL,       -- whether the label was in the gallery when the query was given, or has come since
    vector BLOB NOT NULL
);
-- what users said the right answer was (label NULL: none of the gallery)
CREATE TABLE feedback (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    query_id TEXT,
    label TEXT,
    vector BLOB NOT NULL,
    at TEXT NOT NULL,
    last_row INTEGER NOT NULL DEFAULT 0     -- the last item there was then, of older notes as of version 5
);
"""
_SINCE_4 = f"""{_FIRST_ROWS}
ALTER TABLE feedback ADD COLUMN last_row INTEGER NOT NULL DEFAULT 0;
UPDATE feedback SET last_row = (SELECT COALESCE(MAX(row), 0) FROM items);
"""


def create(connection: sqlite3.Connection) -> None:
    """Makes the tables of an empty database, unless another process was faster."""
    connection.execute("BEGIN IMMEDIATE")
    if _version(connection) == 0:
        _run(connection, _ITEMS + _REST + _TOMBSTONES)
        _first_state(connection, 0, 0)
    connection.execute("COMMIT")


def migrate(connection: sqlite3.Connection) -> None:
    """Brings a store of an older version to this one in one transaction: all of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    if _version(connection) == 1:
        sequence = connection.execute("SELECT sequence FROM state").fetchone()[0]
        used = connection.execute("SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = 'items'").fetchone()
        _run(
            connection,
            "ALTER TABLE items RENAME TO old_items; DROP INDEX items_by_sequence; DROP TABLE state;" + _ITEMS,
        )
        connection.execute(
            "INSERT INTO items SELECT row, id, label, text, metadata, vector, sequence, NULL, NULL, NULL FROM old_items"
        )
        _run(connection, "DROP TABLE old_items; DROP TABLE tombstones;" + _REST + _TOMBSTONES)
        # a row number once used stays used, even where its item was the last one and is gone
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'items'")
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('items', ?)", used)
        # what version 1 deleted may still lie in free pages of the file
        _first_state(connection, sequence, NEVER)
    elif _version(connection) == 2:
        _run(
            connection,
            "ALTER TABLE items ADD COLUMN checksum INTEGER; ALTER TABLE items ADD COLUMN content INTEGER;"
            "ALTER TABLE state ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;"
            # version 2 overwrote deletions, but left copies that rows leave behind when they move between pages
            f"UPDATE state SET forgotten = purged, erased = CASE purged WHEN 0 THEN erased ELSE {NEVER} END;"
            + _TOMBSTONES
            + _SINCE_4
            + f"PRAGMA user_version = {VERSION}",
        )
    elif _version(connection) == 3:
        _run(connection, f"ALTER TABLE items ADD COLUMN content INTEGER;{_SINCE_4}PRAGMA user_version = {VERSION}")
    elif _version(connection) == 4:
        _run(connection, f"{_SINCE_4}PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _first_state(connection: sqlite3.Connection, sequence: int, erased: int) -> None:
    connection.execute(
        "INSERT INTO state VALUES (?, ?, ?, ?, NULL, ?)", (uuid.uuid4().hex, sequence, sequence, erased, sequence)
    )
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _run(connection: sqlite3.Connection, statements: str) -> None:
    """`executescript` would commit the transaction that these belong to."""
    for statement in filter(str.strip, statements.split(";")):
        connection.execute(statement)
