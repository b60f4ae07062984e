"""Finding: what one state of a collection holds near the queries, and the items that an answer needs of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.calibration.evidence import TOP_K
from index.engines.engine import Rows, Selection
from index.errors import Damaged, DataError
from index.items.consent import Expiry
from index.items.item import StoredItem
from index.items.store import ItemStore
from index.search.asked import Asked
from index.search.found import Exact, Found, Shown
from index.search.passing import Passing
from index.storage.live import LiveState
from index.storage.state import State

_TRIES = 10


class Finder:
    """Finds in the state that is live; safe to use from several threads."""

    def __init__(self, live: LiveState, store: ItemStore) -> None:
        self.passing = Passing(store)
        self._live = live
        self._store = store
        self._expiry = Expiry(store)

    def found(self, queries: NDArray[np.float32], asked: Asked) -> tuple[Found, State]:
        """What one state finds for unit queries (n, d), and which one. Raises `DataError` where there are no items.

        Should its items have been erased meanwhile, a newer state answers.
        """
        state = self._live.state
        for _ in range(_TRIES):
            if not len(state):
                raise DataError("This collection holds no items, so there is nothing to search. Index some rows first.")
            found = self._found_in(state, queries, asked)
            if found is not None:
                return found, state
            state = self._live.state if self._live.state is not state else self._live.newer(state)
        raise Damaged(f"{self._store.path}: items that the index knows are missing. Restore it from a backup.")

    def answerable(self) -> list[str]:
        """See `Collection.answerable`."""
        state = self._live.state
        rows = self._unended(state, None)
        names = state.gallery.names
        if rows is None:
            return names
        return [names[code] for code in np.unique(state.gallery.codes_of(rows)) if code < len(names)]

    def findable(self, ids: Sequence[str]) -> list[StoredItem]:
        """See `Collection.findable`."""
        ended = set(self._expiry.ended(self._store.sequence).tolist())
        found = {item.id: item for row, item in self._store.live(ids).items() if row not in ended}
        return [found[id] for id in ids if id in found]

    def _unended(self, state: State, rows: Rows | None) -> Rows | None:
        """Those of the rows, None being all, whose consent has not ended."""
        ended = self._expiry.ended(state.sequence)
        if not len(ended):
            return rows
        rows = state.gallery.rows if rows is None else rows
        return rows[Selection(excluded=ended).mask(rows)]

    def _found_in(self, state: State, queries: NDArray[np.float32], asked: Asked) -> Found | None:
        """With the items to be shown, or, to explain, all that make the evidence. None: some have been erased."""
        passing = None if asked.filter is None else self.passing.rows(asked.filter, state)
        if asked.filter is not None and passing is None:
            return None
        allowed = self._unended(state, passing)
        scores, rows = state.search(queries, TOP_K)
        codes = state.gallery.codes_of(rows)
        shown = None if allowed is None else _shown(state, queries, allowed)
        wanted = _wanted(state, rows, codes, TOP_K if asked.explain else 0 if shown else asked.k)
        if shown is not None:
            wanted |= _wanted(state, shown.rows, shown.codes, TOP_K if asked.explain else asked.k)
        items = self._store.get(wanted, state.read)
        if len(items) < len(wanted):
            return None
        return Found(queries, scores, rows, codes, items, state.gallery, _exact(state), shown)


def _exact(state: State) -> Exact:
    if not state.engine.exact:
        return "no"
    return "all" if len(state) <= TOP_K else "top"


def _shown(state: State, queries: NDArray[np.float32], allowed: Rows) -> Shown:
    scores, rows = state.search(queries, TOP_K, allowed)
    codes_of = state.gallery.codes_of
    some = np.zeros(len(state.gallery.names) + len(state), np.bool_)  # marked, which takes less than to sort them
    some[codes_of(allowed)] = True
    return Shown(scores, rows, codes_of(rows), np.flatnonzero(some))


def _wanted(state: State, rows: Rows, codes: NDArray[np.int64], k: int) -> set[int]:
    """Rows whose items an answer needs: the hits to be shown, and, wherever they stand, those named by their id."""
    return {*rows[:, :k].ravel().tolist(), *rows[codes >= len(state.gallery.names)].tolist()}
