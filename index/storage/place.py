"""A folder built beside its place: it takes that place whole or not at all, and can be continued after a crash.

`.NAME-building` holds what is being made and `build.json`, which says of what. It is removed when the input is at
fault, and kept when the process is interrupted or killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from index.errors import CollectionError, DiskFull, ReadOnly, SettingsError, WorkerError
from index.storage.snapshot import NO_ROOM

STATE = "build.json"


class BuildBegun(CollectionError):
    """An interrupted build lies there, and it was not said, or is not possible, to continue it. It stays."""


_PASSING = (OSError, WorkerError, BuildBegun, DiskFull, ReadOnly, SettingsError)
"""What may be over at the next try, so that what was encoded is kept for it."""


@contextmanager
def building(out: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """The folder next to `out` that takes its place on success.

    `check` says whether `out` may be replaced, once what a killed replacement left has been put back. A build that has
    begun and fails for want of room, rights or a setting is kept. Raises `CollectionError` where it cannot be created
    or written, `DiskFull`, or when another process is building `out`.
    """
    created = [parent for parent in out.parents if not parent.exists()]
    folder, old = beside(out, "building"), beside(out, "old")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise CollectionError(f"{out}: cannot be created ({error.strerror}). Choose another --out.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process dies
        except BlockingIOError as error:
            raise CollectionError(
                f"{out}: another process is building it. Wait for it, or choose another --out."
            ) from error
        _finish_replacement(out, old)
        check()
        try:
            yield folder
            _replace(out, folder, old)
        except Exception as error:
            begun = (folder / STATE).is_file() and isinstance(error, _PASSING)
            if not begun:
                shutil.rmtree(folder, ignore_errors=True)
                for parent in created:
                    with suppress(OSError):
                        parent.rmdir()
            if isinstance(error, OSError):
                kind = DiskFull if error.errno in NO_ROOM else CollectionError
                rest = " What was done so far is kept: continue with --resume." if begun else ""
                raise kind(f"{out}: could not be written ({error}).{rest}") from error
            raise
    finally:
        os.close(lock)


def can_resume(out: Path) -> bool:
    """Whether a build of `out` was interrupted and can be continued."""
    return (beside(out, "building") / STATE).is_file()


def beside(path: Path, what: str) -> Path:
    """The hidden folder for `what` that stands next to `path`, be that ".", which has no name of its own."""
    whole = path if path.name else path.resolve()
    return whole.parent / f".{whole.name}-{what}"


def resolved(folder: Path) -> Path:
    """Where it lies, all links followed. Raises `CollectionError` when one leads back to itself."""
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:
        raise CollectionError(f"{folder}: the link leads back to itself. Point it at a collection's folder.") from error


def prepare(folder: Path, inputs: dict[str, Any], resume: bool | None) -> bool:
    """Empties `folder` for a new build from `inputs`, or, to resume, checks that it was begun from the same.

    Returns whether there is something to continue. Raises `BuildBegun` naming the inputs that differ, and, with
    `resume` None, for any interrupted build.
    """
    begun = _state(folder)
    if begun is not None and resume is None:
        raise BuildBegun(
            f"{folder}: holds an interrupted build of this collection. Continue it with --resume, or start over with "
            "--no-resume."
        )
    if begun is not None and resume:
        if begun != inputs:
            raise BuildBegun(
                f"{folder}: the interrupted build was begun from something else: {_differences(begun, inputs)}. Give "
                "what it was begun with, or start over with --no-resume."
            )
        return True
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return False


def begin(folder: Path, inputs: dict[str, Any]) -> None:
    """Marks `folder` as begun from `inputs`, so that it can be resumed."""
    part = folder / f"{STATE}.part"
    part.write_text(json.dumps(inputs, indent=2), encoding="utf-8")
    part.replace(folder / STATE)


def _state(folder: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) else None


def _differences(begun: dict[str, Any], inputs: dict[str, Any], name: str = "") -> str:
    said = []
    for key in [*begun, *(key for key in inputs if key not in begun)]:
        before, now = begun.get(key), inputs.get(key)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            said.append(_differences(before, now, f"{name}{key} "))
        else:
            said.append(f"{name}{key} was {_short(before)}, now {_short(now)}")
    return "; ".join(said)


def _short(value: object) -> str:
    shown = "absent" if value is None else str(value)
    return shown if len(shown) <= 60 else shown[:12] + "..."


def _finish_replacement(out: Path, old: Path) -> None:
    """What a kill in the middle of `_replace` left: the old collection goes back, or goes."""
    if old.exists():
        shutil.rmtree(old) if out.exists() else old.rename(out)


def _replace(out: Path, folder: Path, old: Path) -> None:
    if not out.exists():
        folder.rename(out)
        return
    out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)
