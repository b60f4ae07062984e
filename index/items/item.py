"""An item, what a store tells of its items, and what an item must be to be stored."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError

MAX_ID_BYTES = 512
MAX_LABEL = 4096
"""Characters of a label, and of whatever else a filter may name."""
MAX_DEPTH = 64
"""Levels that metadata may be nested."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in the gallery. `label` None: an item that stands for itself. `content`: `index.data.rows.text_key` of
    a picture's digest; a text is its own."""

    id: str
    label: str | None
    text: str | None
    vector: NDArray[np.float32]
    metadata: dict[str, Any] = field(default_factory=dict)
    content: int | None = None


class StoredItem(NamedTuple):
    """An item as it is stored, without its vector; `json` is its metadata."""

    id: str
    label: str | None
    text: str | None
    json: str

    @property
    def metadata(self) -> dict[str, Any]:
        """Anew each time: whoever gets it may change it."""
        return {} if self.json == "{}" else json.loads(self.json)


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened from one sequence number to `sequence`: rows born (and still alive) with labels and vectors (n, d),
    and rows that died."""

    sequence: int
    born: NDArray[np.int64]
    labels: list[str | None]
    vectors: NDArray[np.float32]
    died: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class KeptQueries:
    """Calibration queries that are no items: labels, whether each was ever `known` (n,), vectors (n, d)."""

    labels: list[str | None]
    known: NDArray[np.bool_]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Feedback:
    """What users said was right: numbers (n,) ascending, labels (None: none of the gallery's), query vectors (n, d),
    and the last row there was when they said so (n,)."""

    numbers: NDArray[np.int64]
    labels: list[str | None]
    vectors: NDArray[np.float32]
    last_rows: NDArray[np.int64]

    def distinct(self) -> Feedback:
        """One note a query vector: the last word on it counts, however often it was said."""
        last = {vector.tobytes(): at for at, vector in enumerate(self.vectors)}
        kept = sorted(last.values())
        labels = [self.labels[at] for at in kept]
        return Feedback(self.numbers[kept], labels, self.vectors[kept], self.last_rows[kept])


Record = tuple[str, str | None, str | None, str, bytes, int, int | None]
"""The columns of an item: id, label, text, metadata, vector, checksum, content."""
ROUNDING = 1e-6
"""What a number of a vector may change by when its text is encoded again in other company."""


def record(item: Item, dimension: int) -> Record:
    """The columns of an item to be stored. Raises `DataError` for what is unusable."""
    if np.iscomplexobj(item.vector):
        raise DataError(f"Item {item.id[:40]!r}: the vector is of complex numbers. Give real ones.")
    try:
        vector = np.ascontiguousarray(item.vector, dtype="<f4")
    except (TypeError, ValueError) as error:
        raise DataError(f"Item {item.id[:40]!r}: the vector is no array of numbers ({error}).") from error
    if vector.shape != (dimension,):
        raise DataError(
            f"Item {item.id[:40]!r}: a vector of shape {vector.shape}, expected ({dimension},). Encode "
            "it with this collection's encoder."
        )
    if not np.isfinite(vector).all() or abs(float(np.linalg.norm(vector)) - 1) > 1e-3:
        raise DataError(f"Item {item.id[:40]!r}: the vector is not finite or not of norm 1. Encode the item again.")
    metadata = checked_metadata(item.id, item.label, item.text, item.metadata)
    check_id(item.id)
    content = vector.tobytes()
    signed = None if item.content is None else item.content - (1 << 64) * (item.content >> 63)
    return item.id, item.label, item.text, metadata, content, checksum(item.label, content), signed


def checked_metadata(name: str, label: str | None, text: str | None, metadata: dict[str, Any]) -> str:
    """The metadata of the item called `name` as JSON. Raises `DataError` for what cannot be stored of any of them."""
    _check_names(metadata, name)
    if label == "":
        raise DataError(f"Item {name[:40]!r}: the label is empty. Name one, or leave it out (None).")
    if label is not None and ("\0" in label or len(label) > MAX_LABEL):
        raise DataError(
            f"Item {name[:40]!r}: the label has {len(label):,} characters, or NUL among them; a filter can name up to "
            f"{MAX_LABEL:,} without NUL. Choose a shorter one."
        )
    try:
        content = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"Item {name[:40]!r}: the metadata is not JSON ({error}). Use plain JSON values.") from error
    if "\\u0000" in content.replace(r"\\", ""):  # a NUL, not a backslash before such letters
        raise DataError(f"Item {name[:40]!r}: the metadata holds NUL, where a filter's text would end. Leave it out.")
    for what, value in (("id", name), ("label", label), ("text", text), ("metadata", content)):
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"Item {name[:40]!r}: the {what} holds half of a surrogate pair, which is not a character. "
                "Repair its encoding."
            ) from error
    return content


def is_same(stored: tuple[str, str | None, str | None, str, bytes, int | None, int | None], given: Record) -> bool:
    """Whether a stored item is what is written again, up to `ROUNDING` of its vector, and is not damaged."""
    label, vector, noted = stored[1], stored[4], stored[5]
    if stored[:4] != given[:4] or len(vector) != len(given[4]):
        return False
    if None not in (stored[6], given[6]) and stored[6] != given[6]:  # of some only the vector is known
        return False
    if noted not in (None, checksum(label, vector)):
        return False
    then, now = np.frombuffer(vector, "<f4"), np.frombuffer(given[4], "<f4")
    return bool(np.abs(then - now).max(initial=0.0) <= ROUNDING)


def _check_names(metadata: Any, item: str) -> None:
    """Raises `DataError` for a name that is no string (JSON would make one of it, the same for 1 and "1"), and for
    metadata too deep, or that contains itself."""
    inside, depth = [metadata], 0
    while inside:
        if depth > MAX_DEPTH:
            raise DataError(f"Item {item[:40]!r}: the metadata is nested more than {MAX_DEPTH} deep. Write it flatter.")
        for value in inside:
            if isinstance(value, dict) and (wrong := [name for name in value if not isinstance(name, str)]):
                raise DataError(f"Item {item[:40]!r}: the metadata name {wrong[0]!r} is not a string. Write it as one.")
        inside = [
            part
            for value in inside
            if isinstance(value, dict | list | tuple)
            for part in (value.values() if isinstance(value, dict) else value)
        ]
        depth += 1


def check_id(name: str) -> None:
    """Raises `DataError` for an id that cannot be stored."""
    size = len(name.encode("utf-8", "surrogatepass"))
    if "\0" in name or not 1 <= size <= MAX_ID_BYTES:
        raise DataError(
            f"An id must have 1 to {MAX_ID_BYTES} bytes and no NUL, got {name[:40]!r} of {size}. Choose another one."
        )


def checksum(label: str | None, vector: bytes) -> int:
    """CRC-32 over what an index is built from. It tells damage, not tampering."""
    return zlib.crc32(vector, 0 if label is None else zlib.crc32(label.encode()) ^ 1)
