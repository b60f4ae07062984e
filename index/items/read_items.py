"""Items that were read before, so that what is asked for often is read from the disk once."""

from __future__ import annotations

import sys
import threading

from index.items.item import StoredItem

READ_BYTES = 2**25
"""Of texts of items that were read before: a hundred thousand short ones."""


class ReadItems:
    """Items that were read before: id, label, text and metadata as they stand in the store, which a row has for ever.

    Belongs to one state of a collection and goes with it, so that nothing of a deleted item stays in memory; and
    forgets everything once rows were purged from the store, so that none of these is shown. Safe in several threads.
    """

    def __init__(self, limit: int = READ_BYTES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held: dict[int, StoredItem] = {}
        self._size = self._purged = 0

    def of(self, rows: set[int], purged: int) -> dict[int, StoredItem]:
        """Those of the rows that are here, of a store that is `purged` up to there."""
        with self._lock:
            if purged > self._purged:
                self._held, self._size, self._purged = {}, 0, purged
            held = self._held if purged == self._purged else {}
        return {row: columns for row in rows if (columns := held.get(row)) is not None}

    def keep(self, found: dict[int, StoredItem], purged: int) -> None:
        """All of it, unless more was purged since the store was found to be `purged` up to there, before it was read.

        What was here before is let go when it would be too much.
        """
        size = sum(sys.getsizeof(value) for columns in found.values() for value in columns)
        with self._lock:
            if purged != self._purged or size > self._limit:
                return
            if self._size + size > self._limit:
                self._held, self._size = {}, 0
            self._held |= found
            self._size += size
