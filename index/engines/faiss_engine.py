"""The embedded engines: FAISS, over inner products of unit vectors, which are cosines. Here is what all kinds share.

FAISS positions are mapped to row numbers here, so no FAISS id map is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from index.engines import exact, faiss_file
from index.engines.engine import Rows, Scores, Selection, Vectors, check_queries, check_vectors
from index.engines.native_faiss import faiss
from index.errors import CollectionError

_INDEX_FILE = "vectors.faiss"
_ROWS_FILE = "rows.i64"
_ENGINE_FILE = "engine.json"
_FEW = 10_000
"""Up to this many passing rows, or a tenth of the gallery, are compared one by one: exact, and soon done."""
_TRAINED = 64


class FaissEngine:
    """What the kinds share. `parameters` set how much of the index a search looks at, and are tuned after building."""

    kind: ClassVar[str]
    exact: ClassVar[bool] = False
    quick: ClassVar[bool] = False
    defaults: ClassVar[dict[str, int]] = {}
    """Search parameters and their values before tuning."""
    steps: ClassVar[tuple[dict[str, int], ...]] = ()
    """Search parameters worth trying, from the fastest to the most thorough."""
    index_type: ClassVar[Any]

    def __init__(self, index: Any, rows: Rows, parameters: Mapping[str, int], recall: float | None) -> None:
        self._index = index
        self._rows = rows
        self._size, self._dimension = int(index.ntotal), int(index.d)
        self._unfiltered: dict[int, Any] = {}  # FAISS's parameters by k: making them takes as long as some searches
        self.parameters = {**self.defaults, **parameters}
        self.recall = 1.0 if self.exact else recall

    @classmethod
    def build(cls, vectors: Vectors, rows: Rows, **parameters: int) -> Self:
        """Index of unit vectors (n, d) with their ascending row numbers (n,).

        `parameters` are those of `defaults`. Raises ValueError on bad shapes or values, TypeError on unknown names.
        """
        if unknown := set(parameters) - set(cls.defaults):
            raise TypeError(f"{cls.kind} has no parameter {', '.join(sorted(unknown))}")
        vectors = check_vectors(vectors, rows)
        index = cls._empty(vectors)
        if len(vectors):
            # codebooks need some vectors to start from: a small gallery stands several times
            index.train(np.resize(vectors, (max(len(vectors), _TRAINED), vectors.shape[1])))
            index.add(vectors)
        return cls(index, rows, parameters, None)

    @classmethod
    def _empty(cls, vectors: Vectors) -> Any:
        """An index ready to be trained for these vectors."""
        raise NotImplementedError

    @classmethod
    def memory(cls, size: int, dimension: int) -> int:
        """Estimated bytes that searching `size` vectors keeps busy (what is only mapped and seldom read excepted)."""
        raise NotImplementedError

    def with_parameters(self, parameters: Mapping[str, int], recall: float | None) -> Self:
        """The same index searched with other parameters, and the recall@10 measured with them."""
        return type(self)(self._index, self._rows, {**self.parameters, **parameters}, recall)

    def prepare(self) -> None:
        """Nothing, where the first search is as fast as all."""

    def __len__(self) -> int:
        return self._size

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def rows(self) -> Rows:
        return self._rows

    def search(self, queries: Vectors, k: int, selection: Selection | None = None) -> tuple[Scores, Rows]:
        queries = check_queries(queries, k, self._dimension)
        passing = None if selection is None else selection.mask(self._rows)
        count = self._size if passing is None else int(np.count_nonzero(passing))
        k = min(k, count)
        if k == 0 or len(queries) == 0:
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        if count == self._size:
            passing = None
        if passing is not None and count <= max(_FEW, self._size // 10):
            scores, positions = self._compare(queries, k, passing)
        else:
            scores, positions = self._search(queries, k, passing)
        return scores, self._rows.take(positions)

    def _search(self, queries: Vectors, k: int, passing: NDArray[np.bool_] | None) -> tuple[Scores, Rows]:
        if passing is None:
            parameters = self._unfiltered.get(k)
            if parameters is None:
                parameters = self._unfiltered[k] = self._search_parameters(k, 1.0)
        else:
            # what passes is spread among what does not: as many of it are met only by looking at more
            share = np.count_nonzero(passing) / self._size
            parameters = self._search_parameters(k, share, **self._selector(passing))
        scores, positions = self._found(queries, k, parameters)
        if positions.min() < 0:  # the part that was looked at holds fewer than k: look at everything
            short = np.flatnonzero((positions < 0).any(axis=1))
            everything = np.ones(self._size, np.bool_) if passing is None else passing
            scores[short], positions[short] = self._compare(queries[short], k, everything)
        return scores, positions

    def _found(self, queries: Vectors, k: int, parameters: Any) -> tuple[Scores, Rows]:
        """FAISS's own search of queries that `check_queries` passed: positions are -1 where it found too few.

        This is what FAISS's Python method does but for its checks, which are ours already and do not vanish with -O.
        """
        scores, positions = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        pointer = faiss.swig_ptr
        self._index.search_c(len(queries), pointer(queries), k, pointer(scores), pointer(positions), parameters)
        return scores, positions

    def _search_parameters(self, k: int, share: float, **selector: Any) -> Any:
        """FAISS's parameters for k hits where this share of the vectors passes."""
        raise NotImplementedError

    def _compare(self, queries: Vectors, k: int, passing: NDArray[np.bool_]) -> tuple[Scores, Rows]:
        """The k best by comparing with every passing vector (as the index holds it)."""
        chosen = np.flatnonzero(passing)
        scores, positions = exact.top(queries, self._vectors(chosen), k)
        return scores, chosen[positions]

    def _vectors(self, positions: Rows) -> Vectors:
        """Vectors (m, d) at these positions, as the index holds them."""
        found: Vectors = self._index.reconstruct_batch(positions)
        return found

    def _selector(self, passing: NDArray[np.bool_] | None) -> dict[str, Any]:
        """The argument `sel` of FAISS's search parameters; nothing when all pass."""
        if passing is None:
            return {}
        bits = np.packbits(passing, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(passing), faiss.swig_ptr(bits))
        selector.bits = bits  # FAISS keeps only a pointer
        return {"sel": selector}

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "exact": self.exact,
            "parameters": dict(self.parameters),
            "recall_at_10": self.recall,
            "memory_bytes": self.memory(len(self), self.dimension),
        }

    def dump(self) -> dict[str, bytes]:
        content, padding = faiss_file.write(self._index)
        settings = {
            "kind": self.kind,
            "parameters": self.parameters,
            "recall_at_10": self.recall,
            "padding": padding,
        }
        return {
            _INDEX_FILE: content,
            _ROWS_FILE: self._rows.astype("<i8").tobytes(),
            _ENGINE_FILE: json.dumps(settings, allow_nan=False).encode(),
        }

    @classmethod
    def load(cls, files: Mapping[str, bytes | Path]) -> Self:
        """The engine from `dump`'s files, whose checksums the caller has verified; a `Path` is mapped.

        Raises `CollectionError`.
        """
        try:
            # the first snapshots held a flat index and no settings
            settings = json.loads(_content(files.get(_ENGINE_FILE, b"{}")))
            index = faiss_file.read(files[_INDEX_FILE], int(settings.get("padding", 0)))
            rows = np.frombuffer(_content(files[_ROWS_FILE]), "<i8").astype(np.int64)
            parameters = {str(name): int(value) for name, value in settings.get("parameters", {}).items()}
            recall = None if settings.get("recall_at_10") is None else float(settings["recall_at_10"])
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
            raise CollectionError(f"{_INDEX_FILE}, {_ROWS_FILE}: not a readable FAISS index ({error}).") from error
        if not isinstance(index, cls.index_type) or index.ntotal != len(rows):
            raise CollectionError(
                f"{_INDEX_FILE}: holds {type(index).__name__} of {index.ntotal} vectors, expected "
                f"{cls.index_type.__name__} of {len(rows)}."
            )
        if not index.is_trained and index.ntotal:
            raise CollectionError(f"{_INDEX_FILE}: its index was never trained. Build the collection again.")
        if set(parameters) - set(cls.defaults) or min(parameters.values(), default=1) < 1 or (np.diff(rows) <= 0).any():
            raise CollectionError(f"{_ENGINE_FILE}, {_ROWS_FILE}: not those of a {cls.kind} index.")
        return cls(index, rows, parameters, recall)


def _content(file: bytes | Path) -> bytes:
    return file.read_bytes() if isinstance(file, Path) else file
