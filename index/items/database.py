"""The SQLite file of a collection: one connection writes, under a lock, a pool of others reads and waits for no write.

WAL mode, synchronous=FULL: what was committed survives kill -9 and a power cut. Whatever SQLite reports is raised as
one of `index.errors`, naming the file.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from index.errors import CollectionError, Damaged, DiskFull, Displaced, ReadOnly
from index.items import schema

_AS_IT_LIES = "?mode=ro&immutable=1"
_RESTORE = "Restore the file from a backup, or build the collection again."


class _Connection(sqlite3.Connection):
    """`as_it_lay`: what the file was, for one that was opened as it lies, and sees no later write; None for others."""

    as_it_lay: tuple[int, ...] | None = None


class Database:
    """`items.sqlite`, in the form of `index.items.schema`."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Opens the file, or creates it unless `create` is false: an empty one in its place would hide the loss.

        Raises `CollectionError` when it is none of this version, `Damaged` when it should be there and is not.
        """
        self.path = path
        self._create = create
        if not create and not path.is_file():
            raise Damaged(f"{path}: the items are missing. {_RESTORE}")
        self._lock = threading.Lock()
        self._file: tuple[int, int] | None = None
        self._closed = False
        self._readers: list[_Connection] = []  # those that nobody uses now; append and pop are atomic
        try:
            self._connection = self._connect()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            self._prepare()
            self._file = _file_at(path)
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.Error):
                raise self._unusable(error) from error
            raise

    def _connect(self) -> _Connection:
        location, lay = _uri(self.path), _written(self.path)
        found = sqlite3.connect(
            location, uri=True, check_same_thread=False, isolation_level=None, timeout=30, factory=_Connection
        )
        try:
            found.as_it_lay = lay if _AS_IT_LIES in location else None
            found.execute("PRAGMA synchronous = FULL")
            found.execute("PRAGMA secure_delete = ON")
        except BaseException:
            found.close()
            raise
        return found

    def _prepare(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > schema.VERSION:
            raise CollectionError(
                f"{self.path}: written by a newer surematch (format {version}, this one reads "
                f"{schema.VERSION}). Upgrade."
            )
        if version == schema.VERSION:
            return
        if "mode=ro" in _uri(self.path):
            raise ReadOnly(
                f"{self.path}: written by an older surematch (format {version}) and in a folder that cannot be written "
                "to, so it cannot be brought up to date. Open the collection once where it is writable."
            )
        if version == 0 and not self._create:
            raise Damaged(f"{self.path}: the items are missing, the file is empty. {_RESTORE}")
        if version == 0:
            self._connection.execute("PRAGMA journal_mode = WAL")
            schema.create(self._connection)
        schema.migrate(self._connection)

    def close(self) -> None:
        """Closes every connection; a read that is under way ends first."""
        self._closed = True
        with self._lock:
            self._connection.close()
        while self._readers:
            self._readers.pop().close()

    def _one(self, statement: str) -> int:
        return int(self._guard(lambda: self._connection.execute(statement).fetchone()[0]))

    def _read(self, statement: str, *values: Any) -> list[Any]:
        with self._reader(one_statement=True) as connection:
            found: list[Any] = connection.execute(statement, values).fetchall()
            return found

    @contextmanager
    def _reader(self, *, one_statement: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction of its own (one statement is one by itself): all it reads is of one moment."""
        connection = self._idle() or self._guard(self._connect)
        try:
            if not one_statement:
                connection.execute("BEGIN")
            yield connection
            if not one_statement:
                connection.execute("COMMIT")
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                if self._misses(connection):  # a page of then beside one of now is no damage
                    raise CollectionError(
                        f"{self.path}: was written to while it was read as it lay. Try again."
                    ) from error
                raise self._failed(error) from error
            raise
        self._readers.append(connection)
        if self._closed:
            self.close()

    def _idle(self) -> _Connection | None:
        """One that nobody uses now, if there is any that does not miss what was written since it was opened."""
        while self._readers:
            try:
                found: _Connection = self._readers.pop()
            except IndexError:  # another thread was faster
                return None
            if not self._misses(found):
                return found
            found.close()
        return None

    def _misses(self, connection: _Connection) -> bool:
        """Whether it sees the file as it lay, and somebody has written to it since."""
        return connection.as_it_lay is not None and connection.as_it_lay != _written(self.path)

    def check_place(self, so: str) -> None:
        """Raises `Displaced` when the file at the path is not the one that was opened; `so` says what follows."""
        if _file_at(self.path) != self._file:
            raise Displaced(f"{self.path}: was moved, removed or replaced while it was open, so {so}.")

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
                self.check_place("nothing was written. Open the collection again: a service is started anew")
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
        kind = _kind(error)
        if kind is DiskFull:
            # as from a read-only folder it could be read without, were it sure that no writer comes meanwhile
            return DiskFull(
                f"{self.path}: cannot be opened, as the disk is full ({error}): even to read it SQLite makes "
                f"{self.path.name}-shm beside it, of 32 KiB. Make some room, then open it again; nothing has to be "
                "restored. A read-only mount of the folder is read without."
            )
        return kind(
            f"{self.path}: the item store cannot be opened ({error}). Check that the folder is writable, or restore it "
            "from a backup."
        )

    def _failed(self, error: sqlite3.Error) -> CollectionError:
        if self._closed:
            return CollectionError(f"{self.path}: was closed. Open the collection again.")
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


def _uri(path: Path) -> str:
    """In a read-only folder (a container's mount) SQLite can make no lock files: where a writer elsewhere has made them
    they serve us, too; else nobody writes, and the store is opened as it lies."""
    location = path.absolute().as_uri()
    if os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK)):
        return location
    log = path.with_name(path.name + "-wal")
    if log.exists() and path.with_name(path.name + "-shm").exists():
        return location + "?mode=ro"
    if log.exists() and log.stat().st_size:
        raise CollectionError(
            f"{log}: holds writes not yet in {path.name}, and the folder is read-only, so they would be missed. Open "
            "the collection once where it is writable (surematch search COLLECTION TEXT), then mount it again."
        )
    return location + _AS_IT_LIES


def _written(path: Path) -> tuple[int, ...]:
    """When the file was written to last, or is about to be: a writer makes its log first."""
    found = []
    for file in (path, path.with_name(path.name + "-wal")):
        with suppress(OSError):
            told = file.stat()
            found += [told.st_mtime_ns, told.st_size]
    return tuple(found)


def _file_at(path: Path) -> tuple[int, int] | None:
    """Which file lies there, whatever its name; None for none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
