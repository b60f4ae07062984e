"""Where a verb may write: checked before any work is done, so that no result is lost and no input."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from index.errors import SettingsError


def check_output(flag: str, path: Path | None, kind: str, inputs: Iterable[Path]) -> None:
    """Raises `SettingsError` where the file `path` of `flag` cannot be written, or is one of the `inputs` or in one."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"the folder {path.parent} does not exist"
        raise SettingsError(f"{flag} {path}: {what}. Name {kind} in an existing folder.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SettingsError(f"{flag} {path}: cannot be written. Name {kind} in a folder that you may write to.")
    for given in inputs:
        if path.resolve().is_relative_to(given.resolve()):
            same = path.resolve() == given.resolve()
            where = "is read or written by this command too" if same else f"lies in {given}, which this command reads"
            raise SettingsError(f"{flag} {path}: {where}. Name another file.")
