"""What every vector engine does. Engines are immutable once built: updates make a new one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]
Scores = NDArray[np.float32]
SMALL = 2**22
"""Numbers in a gallery that is compared with a query in about a millisecond."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows a search may return: those in `allowed` (None: all) that are not in `excluded`; any order."""

    allowed: Rows | None = None
    excluded: Rows | None = None

    def mask(self, rows: Rows) -> NDArray[np.bool_]:
        """(size,) bool: which of the ascending row numbers `rows` may be returned. Unknown rows are ignored."""
        if self.allowed is None:
            passing = np.ones(len(rows), np.bool_)
        else:
            passing = np.zeros(len(rows), np.bool_)
            passing[_positions(rows, self.allowed)] = True
        if self.excluded is not None:
            passing[_positions(rows, self.excluded)] = False
        return passing


def _positions(rows: Rows, wanted: Rows) -> Rows:
    """Positions in the ascending `rows` of those row numbers in `wanted` that are there."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:  # none is missing, so there is nothing to search
        at = wanted - rows[0]
        inside = (at >= 0) & (at < len(rows))
    else:
        at = np.searchsorted(rows, wanted)
        inside = at < len(rows)
        inside[inside] = rows[at[inside]] == wanted[inside]
    found: Rows = at[inside]
    return found


class Engine(Protocol):
    """Nearest neighbours by cosine over unit vectors, each known by its row number in the item store."""

    kind: ClassVar[str]
    exact: ClassVar[bool]
    """Whether search is exhaustive, so that certificates over the whole gallery hold."""
    quick: ClassVar[bool]
    """Whether a query takes a few milliseconds at most, however large the gallery."""

    def __len__(self) -> int: ...

    @property
    def dimension(self) -> int: ...

    @property
    def rows(self) -> Rows:
        """Row number of every vector, (size,), ascending."""
        ...

    def prepare(self) -> None:
        """Makes what speeds up all searches and takes longer than one: for whoever asks many times."""
        ...

    def search(self, queries: Vectors, k: int, selection: Selection | None = None) -> tuple[Scores, Rows]:
        """Scores (n, k') descending and rows (n, k') for unit queries (n, d).

        k' = min(k, number of rows that pass the selection): never fewer, whatever the engine. Raises ValueError for
        queries of another shape, values that are not finite, or k < 1.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Kind, parameters, bytes of memory and disk, and the recall@10 measured against exact search (None: not)."""
        ...

    def dump(self) -> dict[str, bytes]:
        """File name to content; `load` of the same class takes it back."""
        ...

    @classmethod
    def load(cls, files: Mapping[str, bytes | Path]) -> Self:
        """The engine from `dump`'s files, whose checksums the caller has verified.

        A `Path` is mapped instead of read, so that processes share one copy. Raises `CollectionError`.
        """
        ...


def check_vectors(vectors: Vectors, rows: Rows) -> Vectors:
    """The vectors (n, d), contiguous, once they and their row numbers (n,) are sound. Raises ValueError."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or rows.shape != (len(vectors),) or not np.isfinite(vectors).all():
        raise ValueError(f"vectors {vectors.shape} must be finite, with one row number each (got {rows.shape})")
    if (np.diff(rows) <= 0).any():
        raise ValueError("row numbers must ascend, each standing once")
    return vectors


def check_queries(queries: Vectors, k: int, dimension: int) -> Vectors:
    """The queries (n, d), contiguous, once they and k are sound. Raises ValueError.

    FAISS checks these with asserts, which vanish under `python -O` and leave out-of-bounds reads.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise ValueError(f"queries must be (n, {dimension}), got {queries.shape}")
    # where the sum of the squares is finite so are they all, and it costs a fraction of looking at each
    if not math.isfinite(np.vdot(queries, queries)) and not np.isfinite(queries).all():
        raise ValueError("queries must be finite")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return queries
