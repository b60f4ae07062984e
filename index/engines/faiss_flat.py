"""The engine of small galleries: FAISS's exhaustive search, and what is sooner done than it for the same answers."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.engines import eight_bits, exact, side_by_side
from index.engines.eight_bits import EightBits
from index.engines.engine import SMALL, Rows, Scores, Vectors
from index.engines.faiss_engine import FaissEngine
from index.engines.faiss_file import flat_vectors
from index.engines.native_faiss import faiss

_PRODUCT_FROM = 12
"""Queries from which a product of matrices is sooner done than loops over a small gallery."""
_SHARE = 64
"""Of a gallery at most this part is asked for in 8 bits, whose bounds are sorted out one by one."""
_MOSTLY = 0.9
"""Share of a gallery that must pass a filter for the best of all to be searched for those that pass."""
_LOOPS = faiss.SearchParameters(sel=faiss.IDSelectorAll())
"""FAISS's search without products: with a selector it compares one vector after the other, the sooner done for a few
queries, one alone included."""
log = logging.getLogger("surematch.index")


class FaissFlat(FaissEngine):
    """Exact search over all vectors: the default of small galleries."""

    kind = "flat"
    exact = True
    index_type = faiss.IndexFlatIP
    _eight_bits: EightBits | None = None

    def prepare(self) -> None:
        """Holds a large gallery once more, in 8 bits, where this processor then searches faster.

        Where that cannot be done every vector is compared in full, as before.
        """
        held = self._eight_bits is not None and self._eight_bits.alive
        if held or not SMALL < self._size * self.dimension <= eight_bits.LARGEST or not eight_bits.usable():
            return
        try:
            self._eight_bits = EightBits(self._all())
        except Exception as error:  # no memory, or a fault of ONNX Runtime: nothing that searching needs
            log.warning("%d vectors are searched without 8 bits: %s", self._size, error)

    @classmethod
    def _empty(cls, vectors: Vectors) -> Any:
        return faiss.IndexFlatIP(vectors.shape[1])

    @classmethod
    def memory(cls, size: int, dimension: int) -> int:
        return size * (4 * dimension + 8)

    def describe(self) -> dict[str, Any]:
        more = self._eight_bits.nbytes if self._eight_bits is not None else 0
        told = super().describe()
        return {**told, "memory_bytes": told["memory_bytes"] + more}

    def _search(self, queries: Vectors, k: int, passing: NDArray[np.bool_] | None) -> tuple[Scores, Rows]:
        """A prepared gallery is searched in 8 bits, of which some queries may be left to be compared in full."""
        quick = self._eight_bits
        if quick is None or not quick.alive or k > self._size // _SHARE:
            return self._compared(queries, k, passing)
        if passing is not None and np.count_nonzero(passing) < _MOSTLY * self._size:
            return self._compared(queries, k, passing)
        return self._proven(quick, queries, k, passing)

    def _proven(
        self, quick: EightBits, queries: Vectors, k: int, passing: NDArray[np.bool_] | None
    ) -> tuple[Scores, Rows]:
        scores, positions, proven = quick.top(queries, k, passing)
        if not proven.all():
            rest = np.flatnonzero(~proven)
            scores[rest], positions[rest] = self._compared(queries[rest], k, passing)
        return scores, positions

    def _compared(self, queries: Vectors, k: int, passing: NDArray[np.bool_] | None) -> tuple[Scores, Rows]:
        """A batch goes to FAISS, whose product and selection share the cache. A query alone, or what a filter lets
        pass, goes to numpy, which uses all cores for one query. A small gallery is searched before either pays."""
        small = self._size * self.dimension <= SMALL
        if small and passing is None and len(queries) < _PRODUCT_FROM:
            return self._found(queries, k, _LOOPS)
        if passing is not None or len(queries) == 1:
            return super()._search(queries, k, passing) if small else exact.top(queries, self._all(), k, passing)
        if side_by_side.pays(len(queries)):
            return side_by_side.top(queries, self._all(), k)
        return super()._search(queries, k, None)

    def _all(self) -> Vectors:
        return flat_vectors(self._index)

    def _search_parameters(self, k: int, share: float, **selector: Any) -> Any:
        return faiss.SearchParameters(**selector)

    def _vectors(self, positions: Rows) -> Vectors:
        return self._all()[positions]
