"""API keys: who may search, write and administer. A file holds their hashes; a key itself is shown once, when made.

A key is `sm_<id>_<secret>`, the secret 32 random bytes. Against 2^256 guesses a plain SHA-256 is enough (slow hashes
protect passwords people choose), and it keeps a check at a microsecond, where scrypt would be a way to overload us.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import shlex
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Literal, get_args

from index.errors import SettingsError

Scope = Literal["search", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
FORMAT = 1
MAX_KEY = 200
MAX_FILE = 2**20
CHECK_EVERY = 1.0
"""Seconds after which a changed keys file is noticed, so that a removed key is refused without a restart."""

_KEY = re.compile(r"sm_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
log = logging.getLogger("surematch.service")


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key: `sha256` is of the whole key."""

    id: str
    name: str
    scopes: tuple[str, ...]
    sha256: str
    created: str


def read(path: Path) -> dict[str, Key]:
    """The keys of a file by id. Raises `SettingsError` for one that is missing, damaged or open to other users."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o022:
                raise SettingsError(
                    f"{path}: other users may change this file of keys. Run: chmod 600 {shlex.quote(str(path))}"
                )
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise SettingsError(
            f"{path}: the keys cannot be read ({error.strerror}). Make one: surematch keys add NAME --file "
            f"{shlex.quote(str(path))}"
        ) from error
    try:
        if len(raw) > MAX_FILE:
            raise ValueError(f"more than {MAX_FILE:,} bytes")
        table = json.loads(raw)
        if table["format"] != FORMAT:
            raise ValueError(f"format {table['format']!r}, expected {FORMAT}")
        return {key.id: key for key in map(_key, table["keys"])}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SettingsError(f"{path}: not a file of keys ({error}). Restore it, or make new keys.") from error


def _key(entry: dict[str, object]) -> Key:
    key = Key(**{**entry, "scopes": tuple(entry["scopes"])})  # type: ignore[arg-type]
    if not set(key.scopes) <= set(SCOPES) or not key.scopes:
        raise ValueError(f"key {key.id}: scopes {list(key.scopes)}, expected some of {', '.join(SCOPES)}")
    if not (re.fullmatch(r"[0-9a-f]{64}", key.sha256) and re.fullmatch(r"[0-9a-f]{16}", key.id)):
        raise ValueError(f"key {key.id!r}: the id or the hash is damaged")
    return key


def add(path: Path, name: str, scopes: Collection[str]) -> str:
    """Make a key, keep its hash in the file (made when it is missing), and return the key: it is not kept."""
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{name!r} cannot name a key: use 1 to 64 letters, digits, dots, dashes or underscores.")
    identity = secrets.token_hex(8)
    made = f"sm_{identity}_{secrets.token_urlsafe(32)}"
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ordered = tuple(scope for scope in SCOPES if scope in scopes)
    with _alone(path):
        keys = read(path) if path.exists() else {}
        if any(key.name == name for key in keys.values()):
            raise SettingsError(
                f"{path}: there is a key named {name} already. Remove it first, or choose another name."
            )
        _write(path, keys | {identity: Key(identity, name, ordered, _hash(made), created)})
    return made


def remove(path: Path, name: str) -> None:
    """Forget the key of this name. A running service refuses it within `CHECK_EVERY` seconds."""
    read(path)  # raises where there is none, before a lock is left beside it
    with _alone(path):
        keys = read(path)
        kept = {identity: key for identity, key in keys.items() if key.name != name}
        if len(kept) == len(keys):
            known = ", ".join(key.name for key in keys.values()) or "none"
            raise SettingsError(f"{path}: there is no key named {name}. There is: {known}.")
        _write(path, kept)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits for whoever else changes the file: between its reading and its writing nobody may, or a key were lost.

    The lock is on a file beside it, which stays: the file itself is replaced. The kernel lets go of it when we die.
    """
    try:
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(f"{path}: the keys cannot be written ({error.strerror}).") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write(path: Path, keys: dict[str, Key]) -> None:
    """Replace the file whole; readable by its owner only."""
    table = {"format": FORMAT, "keys": [asdict(key) for key in keys.values()]}
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(table, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise SettingsError(f"{path}: the keys cannot be written ({error.strerror}).") from error
    finally:
        with suppress(OSError):  # what could not be written need not be removed
            beside.unlink()


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """The keys of a running service; follows changes of the file. Safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._stamp()  # first: what is written while it is read is read again
        self._keys = read(path)
        self._checked = time.monotonic()
        self._said = ""
        self._lock = Lock()

    def find(self, given: str) -> Key | None:
        """The key that was given, or None. Takes the same time for a wrong secret wherever it differs."""
        self._follow()
        parts = _KEY.fullmatch(given) if len(given) <= MAX_KEY else None
        key = self._keys.get(parts[1]) if parts else None
        same = hmac.compare_digest(_hash(given if parts else ""), key.sha256 if key else "0" * 64)
        return key if same else None

    def _follow(self) -> None:
        if time.monotonic() - self._checked < CHECK_EVERY:
            return
        with self._lock:
            self._checked = time.monotonic()
            stamp = self._stamp()
            if stamp == self._seen:
                return
            try:
                self._keys = read(self.path)
            except SettingsError as error:  # the keys known so far stay valid; a half-copied file locks nobody out
                if self._said != str(error):  # it is tried again all the time: what is wrong may not be the file
                    log.error("the keys stay as they were: %s", error)
                self._said = str(error)
            else:
                self._seen, self._said = stamp, ""

    def _stamp(self) -> tuple[int, int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
