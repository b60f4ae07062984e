"""The folder of the workers' counters: in memory where it can be, and gone with the service, however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SHARED = "/dev/shm"
"""Memory as a folder, on Linux."""
PREFIX = "surematch-counters-"
NEW = 60.0
"""Seconds in which a folder may not be locked yet."""


@contextmanager
def counters_folder() -> Iterator[str]:
    """A folder that is there for as long as it is needed. What services that were killed have left is removed first."""
    # files that are written through memory: on a full disk that is the end of the process
    place = SHARED if "TMPDIR" not in os.environ and os.access(SHARED, os.W_OK) else tempfile.gettempdir()
    for folder in Path(place).glob(f"{PREFIX}*"):
        with suppress(OSError):  # gone by now, in use, or not ours
            _remove_left(folder)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=place) as made:
        handle = os.open(made, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # the kernel lets go of it when the process dies
            yield made
        finally:
            os.close(handle)


def _remove_left(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(handle)
        if status.st_uid == os.getuid() and time.time() - status.st_mtime > NEW:
            shutil.rmtree(folder)
    finally:
        os.close(handle)
