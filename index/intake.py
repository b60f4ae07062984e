"""The first pass over the rows of a gallery: is every one usable, and which data is this?

Encoding may take hours, so faults are found before it starts. Memory stays flat: eight bytes a row for its id and eight
for its text, whatever the rows hold.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.calibration.sources import Progress
from index.data.label import whole_number
from index.data.rows import Row, cell_text, text_key
from index.errors import DataError
from index.items.consent import check_consent
from index.items.item import check_id, checked_metadata

_REPORTED = 10_000


@dataclass(frozen=True, slots=True)
class Intake:
    """What was seen: how many rows, each one's `text_key` (n,) uint64, and the data's identity by file."""

    count: int
    keys: NDArray[np.uint64]
    files: dict[str, dict[str, Any]]


def take_in(rows: Iterable[Row], id_column: str | None, progress: Progress, *, items: bool = True) -> Intake:
    """Reads all rows once. Raises `DataError` for no rows.

    And, for rows that become `items`, for one without an id, one whose id was used before, and one of which something
    cannot be stored, or kept to (`index.items.consent`).
    """
    ids, keys = array("Q"), array("Q")
    digests: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for row in rows:
        if items:
            ids.append(_id_key(_checked(row, id_column)))
        keys.append(text_key(row.text))
        digest = digests.setdefault(row.file, hashlib.sha256())
        digest.update(repr((row.line, row.text, row.label, row.extra)).encode("utf-8", "surrogatepass"))
        counts[row.file] = counts.get(row.file, 0) + 1
        if len(keys) % _REPORTED == 0:
            progress("checking rows", len(keys), len(keys))
    if not keys:
        raise DataError("There are no rows to index. Give at least one file with labelled texts.")
    if items:
        _refuse_twins(rows, id_column, np.frombuffer(ids, np.uint64))
    files = {file: {"rows": counts[file], "sha256": digests[file].hexdigest()} for file in counts}
    return Intake(len(keys), np.frombuffer(keys, np.uint64), files)


def _checked(row: Row, id_column: str | None) -> str:
    """The id of a row that can become an item. Raises `DataError`."""
    name, metadata = item_id(row, id_column), metadata_of(row, id_column)
    try:
        checked_metadata(name, row.label, row.text, metadata)
        check_consent(metadata)
    except DataError as error:
        raise DataError(f"{row.file}: line {row.line}: {error}") from error
    return name


def item_id(row: Row, id_column: str | None) -> str:
    """The item's id: from its column, else its file's name and line. Raises `DataError` for one that cannot be used."""
    name = _name(row, id_column)
    try:
        check_id(name)
    except DataError as error:
        raise DataError(f"{row.file}: line {row.line}: {error}") from error
    return name


def metadata_of(row: Row, id_column: str | None) -> dict[str, Any]:
    """The row's further columns as an item's metadata; dates and times become ISO 8601 texts.

    Raises `DataError` naming the column whose value JSON does not have.
    """
    found = {}
    for name, value in row.extra.items():
        if name == id_column:
            continue
        if isinstance(value, date | time):  # datetime is a date
            value = value.isoformat()
        elif value is not None and not isinstance(value, str | int):
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise DataError(
                    f"{row.file}: line {row.line}: column '{name}' holds {str(value)[:40]} ({type(value).__name__}), "
                    f"which JSON cannot keep ({error}). Make it a text or a number, or leave the column out."
                ) from error
        found[name] = value
    return found


def _name(row: Row, id_column: str | None) -> str:
    if id_column is None:
        return f"{Path(row.file).name}:{row.line}" if row.image is None else row.image.name
    if id_column not in row.extra:
        raise DataError(
            f"{row.file}: line {row.line} has no column '{id_column}' beside the text and the label. Name the "
            "right one with --id COLUMN."
        )
    name = cell_text(whole_number(row.extra[id_column]), Path(row.file), row.line, id_column)
    if not name:
        raise DataError(f"{row.file}: line {row.line}: the column '{id_column}' holds no id. Give every row one.")
    return name


def _id_key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _refuse_twins(rows: Iterable[Row], id_column: str | None, keys: NDArray[np.uint64]) -> None:
    """Raises `DataError` naming both places of the first repeated id; reads again only where two keys agree."""
    ordered = np.sort(keys)
    suspect = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not suspect:
        return
    seen: dict[str, tuple[str, int]] = {}
    for row in rows:
        name = item_id(row, id_column)
        if _id_key(name) not in suspect:
            continue
        if name in seen:
            file, line = seen[name]
            raise DataError(
                f"{row.file}: line {row.line}: the id {name!r} was already used at {file} line {line}. "
                "Give every row an id of its own and name the column with --id COLUMN."
            )
        seen[name] = (row.file, row.line)
