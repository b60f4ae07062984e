"""What passes a filter, kept for the next search: the same filter comes again and again (a tenant, a language).

To look through all items takes far longer than a search among them. Items are never changed in place, and new ones get
higher row numbers, so after a write only these are looked through.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from index.engines.engine import Rows, Selection
from index.items.filters import Filter
from index.items.store import ItemStore
from index.storage.state import State

MOST_BYTES, ENTRY = 64 << 20, 512
"""What is kept of all filters together, and what one costs beside its text and its row numbers."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """Rows that passed in the state of transaction `sequence`, whose highest row was `last`."""

    sequence: int
    last: int
    rows: Rows


class Passing:
    """The rows of a store that pass filters; safe to use from several threads."""

    def __init__(self, store: ItemStore, most_bytes: int = MOST_BYTES) -> None:
        self._store = store
        self._most = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, condition: Filter, state: State) -> Rows | None:
        """Ascending rows of the state's items that pass; None where that cannot be known any more."""
        key = repr((condition.sql, condition.values))  # equal are 1, 1.0 and True, but not as they are written
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
        if kept is not None and kept.sequence == state.sequence:
            return kept.rows
        if kept is None or kept.sequence > state.sequence:
            rows = self._store.rows_where(condition, state.sequence)
        else:
            rows = self._store.rows_where(condition, state.sequence, after=kept.last)
            if rows is not None:
                rows = np.concatenate([kept.rows, rows])
                rows = rows[Selection(allowed=state.gallery.rows).mask(rows)]
        if rows is not None and (kept is None or kept.sequence < state.sequence):
            rows.setflags(write=False)
            self._keep(key, _Kept(state.sequence, int(state.gallery.rows[-1]), rows))
        return rows

    def _keep(self, key: str, found: _Kept) -> None:
        with self._lock:
            if (before := self._kept.pop(key, None)) is not None:
                self._bytes -= _cost(key, before)
            self._kept[key] = found
            self._bytes += _cost(key, found)
            while self._bytes > self._most:
                self._bytes -= _cost(*self._kept.popitem(last=False))


def _cost(key: str, kept: _Kept) -> int:
    return ENTRY + len(key) + kept.rows.nbytes
