"""Consent that ends: items whose metadata say until when they may be used are not found afterwards.

    {"consent": {"reference": "form 17", "purpose": "door to the lab", "expires": "2027-06-30"}}

All members are optional. `expires` is a date (its first moment, UTC) or a time with its zone, ISO 8601. From then on
the item matches nothing, in every process that reads the collection; it is erased when it is deleted.

Tables have no objects: their columns `consent.reference`, `consent.purpose` and `consent.expires` say the same, where
an empty cell says nothing, and a time without a zone is in UTC.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError
from index.items.store import ItemStore

FIELD, EXPIRES = "consent", "expires"
MEMBERS = frozenset({"reference", "purpose", EXPIRES})
PREFIX = f"{FIELD}."
"""How the names of flattened members begin."""
_OBJECT, _FLAT = f"$.{FIELD}", f'$."{PREFIX}{EXPIRES}"'
_EXAMPLE = f'{{"{EXPIRES}": "2027-06-30"}}, or in a table the column {PREFIX}{EXPIRES}'


def check_consent(metadata: dict[str, Any]) -> None:
    """Raises `DataError` for consent that is not as above: what is not understood cannot be kept to."""
    named = {name: value for name, value in metadata.items() if isinstance(name, str)}  # others are refused later
    flat = {name.removeprefix(PREFIX): value for name, value in named.items() if name.startswith(PREFIX)}
    nested = metadata.get(FIELD)
    if _is_empty(nested):
        nested = {}
    if not isinstance(nested, dict):
        raise DataError(
            f"consent: got {str(nested)[:40]!r} ({type(nested).__name__}), which cannot be kept to. Write an object, "
            f"{_EXAMPLE}; or give a field that is not about consent another name."
        )
    flat = {name: value for name, value in flat.items() if not _is_empty(value)}
    if twice := sorted(nested.keys() & flat.keys()):
        raise DataError(f"consent: says {twice[0]} twice, in an object and as {PREFIX}{twice[0]}. Keep one of the two.")
    _check_members(nested)
    _check_members(flat, in_table=True)


def _check_members(consent: dict[str, Any], *, in_table: bool = False) -> None:
    unknown = sorted(set(consent) - MEMBERS)
    if unknown or not all(isinstance(value, str) for value in consent.values()):
        raise DataError(
            f"consent: has the members {', '.join(consent)}, expected reference, purpose and expires, each a text."
        )
    if EXPIRES in consent and _moment(consent[EXPIRES], in_table=in_table) is None:
        raise DataError(
            f"consent.expires: got {consent[EXPIRES][:40]!r}, expected a date, 2027-06-30, or a time with its zone, "
            "2027-06-30T12:00:00Z."
        )


class Expiry:
    """Rows of a store whose consent has ended; safe to use from several threads."""

    def __init__(self, store: ItemStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._sequence = -1
        self._last_row = 0
        self._rows = np.empty(0, np.int64)
        self._until = np.empty(0)

    def ended(self, sequence: int, now: float | None = None) -> NDArray[np.int64]:
        """Rows, ascending, of items written up to transaction `sequence` that have ended at `now` (seconds, Unix time).

        What cannot be read as a time has ended.
        """
        with self._lock:
            if sequence > self._sequence:
                last = self._store.last_row  # before it is read: what comes meanwhile is read again
                found = self._store.texts_at((_OBJECT, _FLAT), f'"{FIELD}', self._last_row)
                until = {row: min(ends) for row, *said in found if (ends := list(_ends(*said)))}
                self._rows = np.append(self._rows, list(until)).astype(np.int64)
                self._until = np.append(self._until, list(until.values()))
                self._last_row = max(last, found[-1][0] if found else 0)
                self._sequence = sequence
            if not len(self._rows):
                return self._rows
            return self._rows[self._until <= (datetime.now(UTC).timestamp() if now is None else now)]


def _ends(said: str | None, flat: str | None) -> Iterator[float]:
    """When consent ends, as a field `consent` and a flattened one say; the earliest counts.

    Stores from before texts and lists were refused may hold them: an object in them counts as one that stands alone.
    """
    for one in _objects(said):
        if (end := one.get(EXPIRES)) is not None:
            yield _ending(str(end))
    if not _is_empty(flat):
        yield _ending(str(flat), in_table=True)


def _objects(said: str | None) -> list[dict[str, Any]]:
    """The objects that a text holds as JSON, alone or in a list."""
    try:
        found = json.loads(said or "null")
    except (ValueError, RecursionError):
        return []
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]


def _is_empty(cell: Any) -> bool:
    """Whether a table says nothing there."""
    return cell is None or cell == ""


def _ending(text: str, *, in_table: bool = False) -> float:
    """Unix time; what cannot be read has ended."""
    moment = _moment(text, in_table=in_table)
    return -np.inf if moment is None else moment


def _moment(text: str, *, in_table: bool = False) -> float | None:
    """Unix time of a date or of a time with its zone, None for anything else.

    Tables have times without a zone, which they mean in UTC: pandas writes a column of dates as such times.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        in_utc = in_table or len(text) == len("2027-06-30")
        return moment.replace(tzinfo=UTC).timestamp() if in_utc else None
    return moment.timestamp()
