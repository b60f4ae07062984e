"""A disk that is full, as the libraries that write to it say it: each in its own way."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from index.errors import DiskFull
from index.storage.snapshot import NO_ROOM

NONE_LEFT = 2**20
"""Bytes free where something could not be written that make the reason plain."""


@contextmanager
def room_at(out: Path, how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Raises `DiskFull` where an error in the block says that a disk is full; `how_to_go_on` follows "Make some"."""
    try:
        yield
    except Exception as error:
        if not _says_full(error):
            raise
        raise DiskFull(f"{out}: there is no room left on the disk ({error}). Make some{how_to_go_on()}.") from error


@contextmanager
def torch_saves_to(folder: Path) -> Iterator[None]:
    """Raises `OSError` where torch cannot write for want of room, which it says with whatever came of it."""
    try:
        yield
    except RuntimeError as error:
        if shutil.disk_usage(folder).free >= NONE_LEFT:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _says_full(error: Exception) -> bool:
    """Words are all there is of safetensors, and of tokenizers, which raises a bare `Exception`."""
    known = isinstance(error, OSError | SafetensorError) or type(error) is Exception
    return known and any(os.strerror(number) in str(error) for number in NO_ROOM)
