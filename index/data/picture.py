"""Where the bytes of one picture are: a file, or a member of a zip. They are read when needed."""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path

from index.data.images import LIMITS, read_bytes
from index.errors import DataError


@dataclass(frozen=True, slots=True)
class Picture:
    """Where a picture's bytes are: the file `path`, or the member `member` of the zip `path`; `name` is its id."""

    path: Path
    name: str
    member: str | None = None

    def read(self) -> bytes:
        """The bytes of the file. Raises `DataError`, without its name."""
        if self.member is None:
            return read_bytes(self.path)
        try:
            with _opened(self.path, self.path.stat().st_mtime_ns).open(self.member) as file:
                return file.read(LIMITS.bytes + 1)
        except Exception as error:  # of zipfile, of zlib, lzma and bz2, of the disk: each has its own
            raise DataError(f"cannot be unpacked ({error}). Make the zip again.") from error

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}!{self.member}"


@functools.lru_cache(maxsize=4)
def _opened(path: Path, changed: int) -> zipfile.ZipFile:
    """The zip, kept open: its directory is read once, not once a picture. `changed` makes a new file a new zip."""
    return open_zip(path)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Names are in UTF-8, as macOS and Linux write them, mostly without saying so: Python would take them for DOS's.

    Raises what `zipfile` does, and `UnicodeDecodeError` for other names.
    """
    return zipfile.ZipFile(path, metadata_encoding="utf-8")
