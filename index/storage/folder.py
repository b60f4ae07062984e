"""What a collection's folder is made of, and `collection.json`: the first file read and the last one trusted.

collection.json            name, format, encoder fingerprint and dimension
encoder/                   the encoder's folder, so that a collection can be copied or mounted alone
items.sqlite               the truth
snapshots/                 checksummed states of engine + calibration
calibrations/              every calibration there was, and which one was chosen
writer.lock                held by the one process that writes
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from index.encoders.by_name import load_encoder
from index.encoders.encoder import Encoder, WithoutRuntime
from index.encoders.files import MODULES, fingerprint
from index.errors import CollectionError, RuntimeMissing
from index.storage.place import beside

FORMAT = 1
CONFIG, ENCODER, ITEMS, SNAPSHOTS = "collection.json", "encoder", "items.sqlite", "snapshots"


def checked_encoder(path: Path, config: dict[str, Any]) -> Encoder:
    """The collection's encoder, which need not be able to run, once its files are those the collection was built with.

    Raises `CollectionError` when it is another one, and has then loaded nothing of it.
    """
    try:
        found = fingerprint(path / ENCODER)
        if found != config["encoder"]:
            raise CollectionError(
                f"{path / ENCODER}: this encoder ({found[:12]}) is not the one the collection was built "
                f"with ({config['encoder'][:12]}), so its vectors would mean nothing here. Restore that encoder, or "
                "build the collection again with `surematch index`."
            )
        encoder = load_encoder(path / ENCODER)
    except RuntimeMissing as error:
        encoder = WithoutRuntime(path / ENCODER, config["dimension"], str(error))
    except OSError as error:
        raise CollectionError(f"{path / ENCODER}: cannot be read ({error}). Check its permissions.") from error
    if encoder.dimension != config["dimension"]:
        raise CollectionError(
            f"{path / CONFIG}: says {config['dimension']} dimensions, the encoder makes {encoder.dimension}. "
            "Restore the file from a backup, or build the collection again."
        )
    return encoder


def read_config(path: Path) -> dict[str, Any]:
    """`collection.json` of the collection at `path`, checked. Raises `CollectionError`."""
    file, replaced = path / CONFIG, beside(path, "old")
    try:
        found = file.is_file()
        kept = not found and (replaced / CONFIG).is_file()
    except OSError as error:
        raise CollectionError(f"{file}: cannot be read ({error.strerror}). Check its folder's permissions.") from error
    if kept:
        raise CollectionError(
            f"{path}: was being replaced when the process died. The collection lies in {replaced}: put it back with "
            f"{shlex.join(['mv', str(replaced), str(path)])}"
        )
    if not found:
        raise CollectionError(f"{path}: {_what_else(path)}")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        newer = int(config["format"]) > FORMAT
        if not (isinstance(config["name"], str) and isinstance(config["encoder"], str)):
            raise ValueError("name or encoder is no text")
        if not isinstance(config["dimension"], int) or config["dimension"] < 1:
            raise ValueError(f"dimension is {config['dimension']!r}")
    except PermissionError as error:
        raise CollectionError(f"{file}: cannot be read ({error.strerror}). Check its permissions.") from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CollectionError(f"{file}: not readable ({error}). Restore it from a backup, or build again.") from error
    if newer:
        raise CollectionError(f"{file}: written by a newer surematch (format {config['format']}). Upgrade to open it.")
    return config


def _what_else(path: Path) -> str:
    """What lies where a collection should, and what to do."""
    quoted = shlex.quote(str(path))
    if not path.exists():
        return (
            f"not a collection: nothing is there. Check the path; it is taken from {Path.cwd()}. Build one with: "
            f"surematch index MODEL DATA --out {quoted}"
        )
    if (path / MODULES).is_file():
        return f"an encoder, not a collection. Index items with it: surematch index {quoted} DATA --out COLLECTION"
    return f"not a collection (it has no {CONFIG}). `surematch index MODEL DATA --out COLLECTION` builds one."
