"""The vectors of recent query texts: people ask the same things again, and encoding is the dearest step."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

OVERHEAD = 300
"""Bytes of an entry besides its text and numbers: the dictionary's slot, the string's and the array's headers."""


class VectorCache:
    """Least recently used texts go first once `limit` bytes are held; 0 holds none. Use it from one thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def get(self, text: str) -> NDArray[np.float32] | None:
        vector = self._vectors.get(text)
        if vector is not None:
            self._vectors.move_to_end(text)
        return vector

    def put(self, text: str, vector: NDArray[np.float32]) -> None:
        """Keep a copy: a view would keep its whole batch alive."""
        size = _size(text, vector)
        if size > self.limit or text in self._vectors:
            return
        self._vectors[text] = vector.copy()
        self.held += size
        while self.held > self.limit:
            self.held -= _size(*self._vectors.popitem(last=False))

    def __len__(self) -> int:
        return len(self._vectors)


def _size(text: str, vector: NDArray[np.float32]) -> int:
    return 4 * len(text) + vector.nbytes + OVERHEAD
