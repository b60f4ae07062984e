"""What every vector engine does. Engines are immutable once built: updates make a new one."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]
Scores = NDArray[np.float32]


class Engine(Protocol):
    """Nearest neighbours by cosine over unit vectors, each known by its row number in the item store."""

    kind: str
    exact: bool
    """Whether search is exhaustive, so that certificates over the whole gallery hold."""

    def __len__(self) -> int: ...

    @property
    def dimension(self) -> int: ...

    @property
    def rows(self) -> Rows:
        """Row number of every vector, (size,)."""
        ...

    def search(self, queries: Vectors, k: int) -> tuple[Scores, Rows]:
        """Scores (n, k') descending and rows (n, k'), k' = min(k, size), for unit queries (n, d)."""
        ...

    def dump(self) -> dict[str, bytes]:
        """File name to content; `load` of the same class takes it back."""
        ...
