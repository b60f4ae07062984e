"""Snapshots: immutable, checksummed states of a collection, switched atomically.

`snapshots/<sequence>-<digest>/` holds the engine's files, `calibration.json` and `manifest.json` with size and SHA-256
of each. It is written beside its place, fsynced and renamed; `CURRENT` then names it. Every byte is hashed before a
native loader sees it: 29 % of mutated FAISS files load without complaint and answer wrongly. The manifest covers
`collection.json` too, and is signed where a key is set (`index.storage.signing`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from index.errors import CollectionError, DiskFull, ReadOnly
from index.storage import signing

_FORMAT = 1
_MANIFEST = "manifest.json"
_SIGNATURE = "manifest.sig"
_COLLECTION = "collection.json"
_CURRENT = "CURRENT"
_KEPT = 2
MAPPED = 64 << 20
_TEMPORARY = ".writing-"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


Leaving = Callable[[Path], None]
"""Is told of a snapshot's folder before it is removed, to remove what lies elsewhere."""


def _nothing(snapshot: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A verified snapshot: its name, what its manifest says, and its files.

    A file is its bytes, or from `MAPPED` bytes on its path, so that an engine can map it and processes share one copy.
    Snapshots are only ever removed or replaced whole, never written in place, so what is mapped stays as verified.
    """

    name: str
    manifest: dict[str, Any]
    files: dict[str, bytes | Path]

    @property
    def sequence(self) -> int:
        return int(self.manifest["sequence"])

    def content(self, name: str) -> bytes:
        """The bytes of a file, none where the snapshot has no such file."""
        file = self.files.get(name, b"")
        return file.read_bytes() if isinstance(file, Path) else file


def write_snapshot(
    root: Path,
    *,
    sequence: int,
    engine: str,
    encoder: str,
    files: dict[str, bytes],
    about: dict[str, Any] | None = None,
    leaving: Leaving = _nothing,
) -> str:
    """Writes and switches to a new snapshot under `root`; returns its name. Keeps the last two.

    `about` is added to the manifest, with the digest of `collection.json` as it lies unless it holds one. `leaving` is
    told of every snapshot before it is removed. Raises `DiskFull` or another `CollectionError`, and leaves nothing half
    written.
    """
    with storing(root, "snapshot"):
        return _write(
            root, {"sequence": sequence, "engine": engine, "encoder": encoder, **(about or {})}, files, leaving
        )


@contextmanager
def storing(root: Path, what: str) -> Iterator[None]:
    """Turns the system's errors of writing `what` below `root` into `DiskFull`, `ReadOnly` or `CollectionError`."""
    try:
        yield
    except OSError as error:
        kind = DiskFull if error.errno in NO_ROOM else ReadOnly if error.errno in _NO_RIGHT else CollectionError
        raise kind(
            f"{root}: the {what} could not be written ({error.strerror}). What was there before is still there; "
            "writing works again once there is room and permission."
        ) from error


def _write(root: Path, about: dict[str, Any], files: dict[str, bytes], leaving: Leaving) -> str:
    root.mkdir(parents=True, exist_ok=True)
    settings = root.parent / _COLLECTION
    manifest = {
        "format": _FORMAT,
        **about,
        **({"collection": digest_of(settings)} if settings.is_file() and "collection" not in about else {}),
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "libraries": {name: version(name) for name in ("faiss-cpu", "numpy")},
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in sorted(files.items())
        },
    }
    text = json.dumps(manifest, indent=2).encode()
    name = f"{about['sequence']:012d}-{hashlib.sha256(text).hexdigest()[:8]}"
    signature = {_SIGNATURE: signing.seal(text).encode()} if signing.signing() else {}
    temporary = root / f"{_TEMPORARY}{name}"
    temporary.mkdir()
    try:
        for file, content in {**files, _MANIFEST: text, **signature}.items():
            _write_durably(temporary / file, content)
        _sync(temporary)
        temporary.rename(root / name)
        _sync(root)  # the snapshot must be there before anything names it
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _switch(root, name)
    _prune(root, name, leaving)
    return name


def read_snapshot(root: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest snapshot whose every byte is as written, and what was wrong with newer ones (None: there is none)."""
    faults: list[str] = []
    for name in _candidates(root, faults):
        try:
            return _verify(root / name), faults
        except CollectionError as error:
            faults.append(str(error))
    return None, faults


def refuse_newer(root: Path) -> None:
    """Raises `CollectionError` where a newer surematch wrote a snapshot, or there is no telling: a write would put it
    aside for ever."""
    for path in (root / name / _MANIFEST for name in _names(root)):
        try:
            written_by = int(json.loads(path.read_bytes())["format"])
        except PermissionError as error:
            raise _barred(path, error) from error
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # damaged: it gives way to another
        if written_by > _FORMAT:
            raise CollectionError(f"{path}: written by a newer surematch (format {written_by}). Upgrade to write.")


def refuse_altered(root: Path) -> None:
    """Raises `CollectionError` where `collection.json` is not the one the current snapshot was made by: it is written
    once, when a collection is built, and compaction would make everything anew as it says now."""
    folder, settings = root / (current_name(root) or ""), root.parent / _COLLECTION
    try:
        text = (folder / _MANIFEST).read_bytes()
        expected = json.loads(text)["collection"]
        found = digest_of(settings)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # damaged, or of before it was noted
    if expected != found and _is_named_by(text, folder):
        raise CollectionError(
            f"{settings}: is damaged, or was changed: its SHA-256 is not the one in {folder.name}/{_MANIFEST}. Nothing "
            "is written, for calibration and index would be made as it says. Restore the file from a backup, or build "
            "the collection again."
        )


def refuse_unsigned(root: Path) -> None:
    """Raises `CollectionError` where a key is set and no signed manifest is of `collection.json` as it lies.

    That names the encoder by its digest: before this is known, no loader may see the encoder.
    """
    if not signing.signing():
        return
    faults: list[str] = []
    for name in _candidates(root, faults):
        try:
            _manifest(root / name)
            return
        except CollectionError as error:
            faults.append(str(error))
    raise CollectionError(
        f"{' '.join(faults)} As {signing.KEY} is set, what was not signed is not loaded. Restore a backup."
    )


def sign(root: Path) -> None:
    """Signs the current snapshot as it lies, once its checksums are verified. Raises `CollectionError`, `DiskFull`."""
    folder = root / (current_name(root) or "CURRENT")
    _verify(folder, signed=False)
    with storing(root, "signature"):
        replace_durably(folder / _SIGNATURE, signing.seal((folder / _MANIFEST).read_bytes()).encode())


def current_name(root: Path) -> str | None:
    """The snapshot that `CURRENT` names, unread and unverified; None when there is no telling."""
    try:
        name = (root / _CURRENT).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if name.isprintable() and Path(name).name == name and name else None


def created(root: Path, name: str) -> str:
    """When the snapshot of this name was written, as its manifest says; "" when that cannot be read."""
    try:
        return str(json.loads((root / name / _MANIFEST).read_bytes())["created"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def alike(root: Path, name: str) -> list[str]:
    """The other snapshots of the same write with the same files, by their manifests: copies that stand in for it."""
    write = name.partition("-")[0]
    files = {other: _listed(root / other) for other in _names(root) if other.startswith(f"{write}-")}
    return sorted(other for other in files if other != name and files[other] == files.get(name))


def _listed(folder: Path) -> Any:
    """The files of a snapshot as its manifest lists them; the folder's own name where it lists none."""
    try:
        return json.loads((folder / _MANIFEST).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return folder.name


def point_to(root: Path, name: str) -> None:
    """Makes `name` the snapshot that is read first."""
    _switch(root, name)


def clean(root: Path, older_than: int = 0, leaving: Leaving = _nothing) -> None:
    """Removes snapshots of a sequence number before `older_than`, and what a killed writer left half written.

    For the writer only. Raises `CollectionError` when a file cannot be removed.
    """
    if not root.is_dir():
        return
    try:
        for path in root.iterdir():
            number = path.name.partition("-")[0]
            if path.is_dir() and (path.name.startswith(_TEMPORARY) or (number.isdigit() and int(number) < older_than)):
                leaving(path)
                shutil.rmtree(path)
            elif path.name.startswith(f".{_CURRENT}-"):
                path.unlink()
        _sync(root)
    except OSError as error:
        raise CollectionError(
            f"{root}: {error.filename or 'what a killed writer left'} cannot be removed ({error.strerror}). Make the "
            "folder and all in it writable, then compact again."
        ) from error


def _candidates(root: Path, faults: list[str]) -> list[str]:
    """The snapshots' names, the current one first, then the newest."""
    try:
        names = sorted(_names(root), reverse=True)
    except CollectionError as error:
        faults.append(str(error))
        return []
    current = current_name(root)
    if current is None or current not in names:
        faults.append(f"{root / _CURRENT}: {_why_unnamed(root)}")
        return names
    return [current, *(name for name in names if name != current)]


def _names(root: Path) -> list[str]:
    """Of all snapshots, in any order. Raises `CollectionError` for a folder that cannot be listed, if there is one."""
    try:
        return [path.name for path in root.iterdir() if path.match("[0-9]*-*") and path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _barred(error.filename or root, error) from error


def _barred(path: Path | str, error: OSError) -> CollectionError:
    return CollectionError(f"{path}: cannot be read ({error.strerror}). Repair its permissions, or restore it.")


def _why_unnamed(root: Path) -> str:
    try:
        (root / _CURRENT).read_bytes()
    except PermissionError as error:
        return f"cannot be read ({error.strerror}). Repair its permissions."
    except OSError:
        pass
    return "names no snapshot that exists."


def _verify(folder: Path, *, signed: bool = True) -> Snapshot:
    path = folder / _MANIFEST
    manifest, listed = _manifest(folder, signed=signed)
    files = {}
    for name, (size, digest) in listed.items():
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise CollectionError(f"{path}: lists {name!r}, which is not a plain file name.")
        files[name] = _read_checked(folder / name, size, digest)
    return Snapshot(folder.name, manifest, files)


def _manifest(folder: Path, *, signed: bool = True) -> tuple[dict[str, Any], dict[str, tuple[int, str]]]:
    """What the manifest of a snapshot says, verified, and the bytes and the SHA-256 of each file that it lists."""
    path = folder / _MANIFEST
    try:
        text = path.read_bytes()
        if not _is_named_by(text, folder):
            raise CollectionError(f"{path}: is damaged: it does not match the digest in its folder's name.")
        if signed:
            signing.check(path, text, folder / _SIGNATURE)
        manifest = json.loads(text)
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        written_by = int(manifest["format"])
        int(manifest["sequence"])
        settings = folder.parent.parent / _COLLECTION
        if "collection" in manifest and manifest["collection"] != digest_of(settings):
            raise CollectionError(f"{settings}: is damaged: its SHA-256 is not the one in {folder.name}/{_MANIFEST}.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CollectionError(f"{path}: not a readable manifest ({error}).") from error
    if written_by > _FORMAT:
        raise CollectionError(f"{path}: written by a newer surematch (format {written_by}). Upgrade to read it.")
    return manifest, listed


def _is_named_by(manifest: bytes, folder: Path) -> bool:
    return folder.name.endswith(f"-{hashlib.sha256(manifest).hexdigest()[:8]}")


def _read_checked(path: Path, size: int, digest: str) -> bytes | Path:
    try:
        if path.stat().st_size != size:
            raise CollectionError(f"{path}: has {path.stat().st_size} bytes, its manifest says {size}.")
        content = path if size >= MAPPED else path.read_bytes()
        found = digest_of(path) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise CollectionError(f"{path}: cannot be read ({error.strerror}).") from error
    if found != digest:
        raise CollectionError(f"{path}: is damaged: its SHA-256 is not the one in the manifest.")
    return content


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _switch(root: Path, name: str) -> None:
    replace_durably(root / _CURRENT, f"{name}\n".encode())


def replace_durably(path: Path, content: bytes) -> None:
    """Makes `content` the file's, all of it or, should anything fail, none: on disk when it returns."""
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        _write_durably(beside, content)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _prune(root: Path, current: str, leaving: Leaving) -> None:
    names = sorted(name for name in _names(root) if name != current)
    for name in names[: max(0, len(names) - (_KEPT - 1))]:
        leaving(root / name)
        _discard(root / name)


def _discard(folder: Path) -> None:
    """Removes a snapshot; one that is half removed no longer looks like one."""
    hidden = folder.with_name(_TEMPORARY + folder.name)
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Creates the folder unless it is there; its name is on disk when it returns."""
    if not path.is_dir():
        path.mkdir()
        _sync(path.parent)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
