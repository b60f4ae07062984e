"""The embedded engine: FAISS. `flat` searches exhaustively (inner product of unit vectors = cosine)."""

from __future__ import annotations

import faiss
import numpy as np

from index.engine import Rows, Scores, Vectors
from index.errors import CollectionError

_INDEX_FILE = "vectors.faiss"
_ROWS_FILE = "rows.i64"


class FaissFlat:
    """Exact search. FAISS positions are mapped to row numbers here, so no FAISS id map is needed."""

    kind = "faiss-flat"
    exact = True

    def __init__(self, index: faiss.IndexFlatIP, rows: Rows) -> None:
        self._index = index
        self._rows = rows

    @classmethod
    def build(cls, vectors: Vectors, rows: Rows) -> FaissFlat:
        """Index of unit vectors (n, d) with their row numbers (n,). Raises ValueError on bad shapes or values."""
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or rows.shape != (len(vectors),) or not np.isfinite(vectors).all():
            raise ValueError(f"vectors {vectors.shape} must be finite, with one row number each (got {rows.shape})")
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return cls(index, rows)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        return int(self._index.d)

    @property
    def rows(self) -> Rows:
        return self._rows

    def search(self, queries: Vectors, k: int) -> tuple[Scores, Rows]:
        # FAISS checks these with asserts, which vanish under `python -O` and leave out-of-bounds reads
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ValueError(f"queries must be (n, {self.dimension}), got {queries.shape}")
        if not np.isfinite(queries).all():
            raise ValueError("queries must be finite")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        k = min(k, len(self))
        if k == 0 or len(queries) == 0:
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        scores, positions = self._index.search(queries, k)
        return scores, self._rows[positions]

    def dump(self) -> dict[str, bytes]:
        return {
            _INDEX_FILE: faiss.serialize_index(self._index).tobytes(),
            _ROWS_FILE: self._rows.astype("<i8").tobytes(),
        }

    @classmethod
    def load(cls, files: dict[str, bytes]) -> FaissFlat:
        """The engine from `dump`'s bytes, whose checksums the caller has verified. Raises `CollectionError`."""
        try:
            index = faiss.deserialize_index(np.frombuffer(files[_INDEX_FILE], np.uint8))
            rows = np.frombuffer(files[_ROWS_FILE], "<i8").astype(np.int64)
        except (KeyError, ValueError, RuntimeError, MemoryError) as error:
            raise CollectionError(f"{_INDEX_FILE}, {_ROWS_FILE}: not a readable FAISS index ({error}).") from error
        if not isinstance(index, faiss.IndexFlatIP) or index.ntotal != len(rows):
            raise CollectionError(
                f"{_INDEX_FILE}: holds {type(index).__name__} of {index.ntotal} vectors, expected IndexFlatIP of "
                f"{len(rows)}."
            )
        return cls(index, rows)
