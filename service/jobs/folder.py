"""What lies in the folder of one job: the notes about it, read here, and what its process made, removed here.

job.json                  the job as it stands, replaced whole
log.txt                   what its process said, result.json what it answered, progress.json how far it is
out                       the model or collection it makes; gone once it has failed or was cancelled
.out-*                    a copy or a build of it that has begun
out.run                   checkpoints of a training
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from types import TracebackType

JOB = "job.json"
NOTES = frozenset({JOB, "log.txt", "result.json", "progress.json", ".running"})
RUN = "out.run"
TAIL = 64 * 1024
log = logging.getLogger("surematch.service")


def said(folder: Path) -> bytes:
    """The end of what its process said."""
    try:
        with (folder / "log.txt").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read()
    except OSError:
        return b""


def progress(folder: Path) -> dict[str, str | int] | None:
    """How far its process says it is, None before it says so."""
    try:
        told = json.loads((folder / "progress.json").read_bytes())
        return {"what": str(told["what"]), "done": int(told["done"]), "of": int(told["of"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def finished(folder: Path, copies: bool) -> bool:
    """Whether an attempt had come to its end when it was interrupted: `out` appears whole, by a rename. Of a job that
    `copies` it is a copy first, so there the answer must have been given, too."""
    if not (folder / "out").is_dir():
        return False
    if not copies:
        return True
    try:
        return "sequence" in json.loads((folder / "result.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def clear(folder: Path, *, keep_run: bool = False) -> None:
    """Removes what its process made or began, which may be a copy of a collection with the people in it; with
    `keep_run` not the checkpoints, which may be days of work. What cannot be removed is logged."""
    for path in _made(folder):
        if path.name == RUN and keep_run:
            continue
        try:
            _gone(path)
        except OSError as error:
            log.error("what a job left cannot be removed, so it stays until the job is deleted: %s", error)


def remove(folder: Path) -> None:
    """Removes all of it, the notes last, so that what is cut short can be asked for again. Raises `OSError`."""
    notes = [folder / name for name in sorted(NOTES) if name != JOB]
    for path in (*_made(folder), *notes, folder / JOB, folder):
        _gone(path)


def _made(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.name not in NOTES]
    except FileNotFoundError:
        return []


def _gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_unless_missing)
    else:
        path.unlink(missing_ok=True)


def _unless_missing(_: object, __: str, error: tuple[type[BaseException], BaseException, TracebackType]) -> None:
    """What is not there any more need not be removed: a version that is not served any longer takes its SQLite log
    along as it is closed, a moment after the next one serves."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]
