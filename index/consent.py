"""Consent that ends: items whose metadata say until when they may be used are not found afterwards.

    {"consent": {"reference": "form 17", "purpose": "door to the lab", "expires": "2027-06-30"}}

All members are optional. `expires` is a date (its first moment, UTC) or a time with its zone, ISO 8601. From then on
the item matches nothing, in every process that reads the collection; it is erased when it is deleted.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError
from index.items import ItemStore

FIELD, EXPIRES = "consent", "expires"
MEMBERS = frozenset({"reference", "purpose", EXPIRES})
PATH = f"$.{FIELD}.{EXPIRES}"


def check_consent(metadata: dict[str, Any]) -> None:
    """Raises `DataError` for a `consent` that is not as above: what is not understood cannot be kept to."""
    consent = metadata.get(FIELD)
    if not isinstance(consent, dict):
        return  # a field of the user's own that happens to have the name
    unknown = sorted(set(consent) - MEMBERS)
    if unknown or not all(isinstance(value, str) for value in consent.values()):
        raise DataError(
            f"consent: has the members {', '.join(consent)}, expected reference, purpose and expires, each a text."
        )
    if EXPIRES in consent and _moment(consent[EXPIRES]) is None:
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
                found = self._store.texts_at(PATH, self._last_row)
                until = [_moment(text) or -np.inf for _, text in found]
                self._rows = np.append(self._rows, [row for row, _ in found]).astype(np.int64)
                self._until = np.append(self._until, until)
                self._last_row = max(self._last_row, *(row for row, _ in found), 0) if found else self._last_row
                self._sequence = sequence
            if not len(self._rows):
                return self._rows
            return self._rows[self._until <= (datetime.now(UTC).timestamp() if now is None else now)]


def _moment(text: str) -> float | None:
    """Unix time of a date or of a time with its zone, None for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC).timestamp() if len(text) == len("2027-06-30") else None
    return moment.timestamp()
