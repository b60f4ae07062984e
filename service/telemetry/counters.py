"""The folder of the workers' counters: in memory where it can be, and gone with the service, however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SHARED = "/dev/shm"
"""Memory as a folder, on Linux."""
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""In the environment: where `prometheus_client` finds the folder, and that there is one."""
PREFIX, UNLOCKED = "surematch-counters-", "surematch-new-counters-"


@contextmanager
def counters_folder() -> Iterator[str]:
    """A folder that is there for as long as it is needed. What services that were killed have left is removed first."""
    # files that are written through memory: on a full disk that is the end of the process
    place = SHARED if "TMPDIR" not in os.environ and os.access(SHARED, os.W_OK) else tempfile.gettempdir()
    for left in Path(place).glob(f"{PREFIX}*"):
        with suppress(OSError):  # gone by now, in use, or not ours
            _remove_left(left)
    made = Path(tempfile.mkdtemp(prefix=UNLOCKED, dir=place))
    folder = made.with_name(made.name.replace(UNLOCKED, PREFIX))
    handle = os.open(made, os.O_RDONLY)
    try:
        with suppress(OSError):  # where there are no locks, nobody removes it
            fcntl.flock(handle, fcntl.LOCK_EX)  # the kernel lets go of it when the process dies
        made.rename(folder)  # not before: others take what is not locked for left
        yield str(folder)
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_uid == os.getuid():
            shutil.rmtree(folder)
    finally:
        os.close(handle)
