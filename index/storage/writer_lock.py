"""One writer a collection: an flock on a file, which the kernel lets go when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from index.errors import ReadOnly, WriterBusy

LOCK = "writer.lock"


class WriterLock:
    """Held from construction to `release`. The file stays: it only names who held it last."""

    def __init__(self, collection: Path) -> None:
        """Raises `WriterBusy` with the holder's process number, `ReadOnly` where the folder cannot be written to."""
        path = collection / LOCK
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ReadOnly(
                f"{collection}: cannot be opened for writing ({error.strerror}). Make the folder writable, or open it "
                "for reading only."
            ) from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._handle)
            raise WriterBusy(
                f"{collection}: process {holder} is writing to it, and there is one writer at a time. Send the write "
                "there, or stop that process."
            ) from error
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass  # on a full disk the holder goes unnamed, the lock holds all the same

    def release(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
