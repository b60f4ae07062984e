"""One training at a time into a place: an flock in its run folder, which the kernel lets go when its holder dies."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from index.errors import SettingsError

LOCK = "lock"


class RunLock:
    """Held from construction to `release`; makes the run folder where there is none.

    Who removes the folder holds the lock and unlinks its file last, so that nobody's new run is removed with it.
    """

    def __init__(self, folder: Path, out: Path) -> None:
        """Raises `SettingsError` with the process that trains into `out` already."""
        self._handle = _locked(folder, out)
        while not _is_at(self._handle, folder / LOCK):  # a training just ended, and removed what we waited at
            os.close(self._handle)
            self._handle = _locked(folder, out)
        with suppress(OSError):  # on a full disk the holder goes unnamed, the lock holds all the same
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._handle)


def check_alone(folder: Path, out: Path) -> None:
    """Raises `SettingsError` while another process holds the lock in `folder`. Makes nothing there."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nobody trains, or it will be seen when the lock is taken
        return
    _lock(handle, fcntl.LOCK_SH, out)
    os.close(handle)


def _locked(folder: Path, out: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another training ended and removed the folder
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            _lock(handle, fcntl.LOCK_EX, out)
            return handle


def _lock(handle: int, how: int, out: Path) -> None:
    """Closes `handle` and raises `SettingsError` where another process holds the lock."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise SettingsError(
            f"Process {holder} is training {out} now. Wait for it, or name another folder with --out."
        ) from error
    except OSError:
        pass  # some network file systems know no locks; what lies at `out` in the end is left alone there, too


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
