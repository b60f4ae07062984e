"""Copies of a live collection: consistent without stopping its writer, verified before they are called done.

The items are copied by SQLite's backup API, at one moment; the snapshot is one that the copied items still know.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shlex
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from index.calibration.sources import Progress
from index.collection import Collection
from index.engines.milvus_engine import share
from index.errors import CollectionError, Damaged, DiskFull, SettingsError
from index.items.store import ItemStore
from index.storage import versions
from index.storage.folder import CONFIG, ENCODER, ITEMS, SNAPSHOTS, read_config
from index.storage.snapshot import NO_ROOM, current_name, point_to, read_snapshot

_TRIES = 5
_COPIED = (CONFIG, ENCODER, ITEMS, SNAPSHOTS, versions.CALIBRATIONS)
_MEND = "A damaged item that opening need not read can be deleted or added again; then compact."


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy holds: items, the last write in it, and whether its probabilities came along."""

    items: int
    sequence: int
    snapshot: str
    calibrated: bool


def copy_collection(source: Path, destination: Path, progress: Progress) -> Copied:
    """Copies the collection `source`, which may be written to meanwhile, to the new folder `destination`.

    Raises `SettingsError` where something lies there, `CollectionError` when the source is none, `Damaged` when the
    source or the copy does not hold what it should, `DiskFull`; then nothing is left at the destination.
    """
    config = read_config(source)
    if destination.exists():
        raise SettingsError(f"{destination}: already exists. Choose another place, or move it away first.")
    if destination.resolve().is_relative_to(source.resolve()):
        raise SettingsError(f"{destination}: lies in the collection that it would be a copy of. Choose another place.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder = destination.parent / f".{destination.name}-copying-{secrets.token_hex(4)}"
        folder.mkdir()
        held = _held(folder)
    except OSError as error:
        raise CollectionError(f"{destination}: cannot be created ({error.strerror}). Choose another place.") from error
    try:
        _sweep(destination.parent)
        progress("copying", 0, 4)
        shutil.copytree(source / ENCODER, folder / ENCODER)
        shutil.copyfile(source / CONFIG, folder / CONFIG)
        progress("copying", 1, 4)
        _copy_state(source, folder, int(config["dimension"]))
        progress("copying", 2, 4)
        _writable(folder)
        copied = _verified(folder, source, int(config["dimension"]))
        progress("copying", 3, 4)
        _sync(folder)
        folder.rename(destination)
        progress("copying", 4, 4)
        return copied
    except Damaged as error:
        if isinstance(error.__cause__, sqlite3.Error):  # which advises to restore a back-up: it may be what is copied
            _refuse([f"{source / ITEMS}: {error.__cause__}."], folder, source)
        raise
    except OSError as error:
        no_room, said = error.errno in NO_ROOM, error.strerror or str(error)
        if isinstance(error, shutil.Error):  # of copytree: a list of (from, to, why)
            said = str(error.args[0][0][2])
            no_room = any(os.strerror(number) in said for number in NO_ROOM)
        kind = DiskFull if no_room else CollectionError
        if Path(str(error.filename or "")).is_relative_to(source):
            raise kind(f"{error.filename}: cannot be read ({said}). Check its permissions.") from error
        raise kind(f"{destination}: the copy could not be written ({said}). Nothing was left there.") from error
    finally:
        if folder.exists():
            _remove(folder)
        os.close(held)


def _held(folder: Path) -> int:
    """A lock on a folder that is being filled, the kernel's: it ends with the process, whoever kills it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with suppress(OSError):  # of a file system without locks, where nothing is swept either
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _sweep(parent: Path) -> None:
    """Removes what killed copies have left here: whole copies, of people who may have been deleted since."""
    for folder in parent.glob(".*-copying-????????"):
        with suppress(OSError):
            if not all(file.name.startswith(_COPIED) for file in folder.iterdir()):
                continue  # somebody else's, by whatever chance of names
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who copies holds it
                _remove(folder)
            finally:
                os.close(handle)


def _remove(folder: Path) -> None:
    _writable(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _copy_state(source: Path, folder: Path, dimension: int) -> None:
    """Items and a snapshot that belong together: a compaction in between erases what the snapshot knew, so again."""
    with closing(ItemStore(source / ITEMS, dimension, create=False)) as store:
        for _ in range(_TRIES):
            for left in (folder / SNAPSHOTS, folder / ITEMS):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            name = current_name(source / SNAPSHOTS)
            if name is None and (source / SNAPSHOTS).exists():
                list((source / SNAPSHOTS).iterdir())  # what may not be read would look like what is not there
            if name is None and (newest := read_snapshot(source / SNAPSHOTS)[0]) is not None:
                name = newest.name  # as whoever opens the collection finds it
            try:
                if name is not None:
                    shutil.copytree(source / SNAPSHOTS / name, folder / SNAPSHOTS / name)
                    share(folder / SNAPSHOTS / name)
                    point_to(folder / SNAPSHOTS, name)
            except (FileNotFoundError, shutil.Error):
                if (source / SNAPSHOTS / str(name)).is_dir():
                    raise
                continue  # removed by a compaction while it was copied
            versions.copy(source, folder)
            store.copy_to(folder / ITEMS)
            found, _ = read_snapshot(folder / SNAPSHOTS)
            with closing(ItemStore(folder / ITEMS, dimension, create=False)) as copy:
                if found is not None and copy.purged <= found.sequence <= copy.sequence:
                    return
    raise Damaged(
        f"{source / SNAPSHOTS}: no intact snapshot goes with the items. Repair the collection first: surematch compact "
        f"{shlex.quote(str(source))}"
    )


def _writable(folder: Path) -> None:
    """Copies keep the rights of what they were made from, which may be a back-up that is protected against writing."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | (0o700 if path.is_dir() else 0o600))


def _verified(folder: Path, source: Path, dimension: int) -> Copied:
    """Raises `Damaged` when the copy is not sound as a collection: what it was made of is not either."""
    with closing(ItemStore(folder / ITEMS, dimension, create=False)) as store:
        if faults := store.check():  # before it is opened, which fails with less to go by
            _refuse([*faults, _MEND], folder, source)
    opened = Collection.open(folder)
    try:
        _refuse(opened.warnings, folder, source)
        return Copied(opened.size, opened.sequence, opened.snapshot_id, opened.uncalibrated() is None)
    finally:
        opened.close()


def _refuse(faults: list[str], folder: Path, source: Path) -> None:
    """Raises `Damaged` for faults of the copy in `folder`, told of its source: the copy will be gone."""
    if faults:
        told = " ".join(faults).replace(str(folder), str(source))
        raise Damaged(
            f"What is to be copied is not sound: {told} Mend it there and copy it again, or take an older back-up. "
            "Nothing was left at the destination."
        )


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
