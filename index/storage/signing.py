"""An optional signature: with it, whoever lacks the key can change no file of a snapshot unnoticed.

Checksums find damage, but whoever may write to the folder can write new ones. `SUREMATCH_SIGNING_KEY` names a file with
a secret; snapshots and calibrations are then signed with it (HMAC-SHA256, RFC 2104), and only signed ones are used.
The items themselves are not signed: they change with every write.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from index.errors import CollectionError, SettingsError

KEY = "SUREMATCH_SIGNING_KEY"
_LEAST = 32


def signing() -> bool:
    """Whether a key is set, so that nothing unsigned may be used."""
    return bool(os.environ.get(KEY))


def seal(content: bytes) -> str:
    """In hex, the HMAC-SHA256 of the content under the key; its plain SHA-256 where no key is set.

    Raises `SettingsError` for a key file that cannot be read or holds less than 32 bytes.
    """
    if not signing():
        return hashlib.sha256(content).hexdigest()
    return hmac.new(_key(), content, "sha256").hexdigest()


def check(path: Path, content: bytes, signature: Path) -> None:
    """Raises `CollectionError` naming `path` when a key is set and `signature` does not hold the seal of `content`."""
    if not signing():
        return
    try:
        found = signature.read_bytes()
    except OSError as error:
        raise CollectionError(
            f"{path}: is not signed ({signature.name}: {error.strerror}), and {KEY} is set. If you trust the folder as "
            "it lies: surematch compact COLLECTION --sign"
        ) from error
    if not hmac.compare_digest(found, seal(content).encode()):
        raise CollectionError(
            f"{path}: its signature is not that of the key in {KEY}. Restore it from a backup, or set the "
            "key it was signed with. If you changed the key and trust the folder: surematch compact COLLECTION --sign"
        )


def _key() -> bytes:
    path = Path(os.environ[KEY])
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"{KEY}: {path} cannot be read ({error.strerror}). Name a file with a secret.") from error
    if len(key) < _LEAST:
        raise SettingsError(
            f"{KEY}: {path} holds {len(key)} bytes, expected at least {_LEAST}. Make one: openssl rand -hex 32 > {path}"
        )
    return key
