"""The embedded engines: FAISS. `flat` searches exhaustively (inner product of unit vectors = cosine).

FAISS positions are mapped to row numbers here, so no FAISS id map is needed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from index.engines import eight_bits, exact, faiss_file, side_by_side
from index.engines.eight_bits import EightBits
from index.engines.engine import SMALL, Rows, Scores, Selection, Vectors, check_queries, check_vectors
from index.engines.native_faiss import faiss
from index.errors import CollectionError

_INDEX_FILE = "vectors.faiss"
_ROWS_FILE = "rows.i64"
_ENGINE_FILE = "engine.json"
_FEW = 10_000
"""Up to this many passing rows, or a tenth of the gallery, are compared one by one: exact, and soon done."""
_PRODUCT_FROM = 12
"""Queries from which a product of matrices is sooner done than loops over a small gallery."""
_SHARE = 64
"""Of a gallery at most this part is asked for in 8 bits, whose bounds are sorted out one by one."""
_MOSTLY = 0.9
"""Share of a gallery that must pass a filter for the best of all to be searched for those that pass."""
_LOOPS = faiss.SearchParameters(sel=faiss.IDSelectorAll())
"""FAISS's search without products: with a selector it compares one vector after the other, the sooner done for a few
queries, one alone included."""
_TRAINED = 64
_SEED = 1234
log = logging.getLogger("surematch.index")


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
        return _flat_vectors(self._index)

    def _search_parameters(self, k: int, share: float, **selector: Any) -> Any:
        return faiss.SearchParameters(**selector)

    def _vectors(self, positions: Rows) -> Vectors:
        return self._all()[positions]


class FaissHNSW(FaissEngine):
    """A navigable graph (Malkov & Yashunin 2018): a high recall at a high speed, slow to build."""

    kind = "hnsw"
    quick = True
    index_type = faiss.IndexHNSWFlat
    links = 32
    defaults: ClassVar = {"ef_search": 64}
    steps = tuple({"ef_search": ef} for ef in (32, 64, 128, 256, 512, 1024))

    @classmethod
    def _empty(cls, vectors: Vectors) -> Any:
        index = faiss.IndexHNSWFlat(vectors.shape[1], cls.links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 100
        return index

    @classmethod
    def memory(cls, size: int, dimension: int) -> int:
        return size * (4 * dimension + 8 * cls.links + 16)

    def _search_parameters(self, k: int, share: float, **selector: Any) -> Any:
        # a beam as wide as k misses some of its last hits (recall@100 .992 against .996 at twice the time), which weigh
        # least in the evidence; the first ones it finds as well as the beam that was tuned for them
        wanted = max(self.parameters["ef_search"], k)
        return faiss.SearchParametersHNSW(efSearch=int(wanted / share), **selector)

    def _vectors(self, positions: Rows) -> Vectors:
        return _flat_vectors(self._index)[positions]


class FaissIVF(FaissEngine):
    """Inverted lists around centroids (Jégou et al. 2011) of whole vectors."""

    kind = "ivf"
    quick = True
    index_type = faiss.IndexIVFFlat
    defaults: ClassVar = {"nprobe": 16}
    steps = tuple({"nprobe": nprobe} for nprobe in (8, 16, 32, 64, 128, 256, 512, 1024))

    @classmethod
    def _empty(cls, vectors: Vectors) -> Any:
        quantizer = faiss.IndexFlatIP(vectors.shape[1])
        index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], _lists(len(vectors)), faiss.METRIC_INNER_PRODUCT)
        _own(index, quantizer)
        return index

    @classmethod
    def memory(cls, size: int, dimension: int) -> int:
        return size * (4 * dimension + 16) + 4 * dimension * _lists(size)

    def _search_parameters(self, k: int, share: float, **selector: Any) -> Any:
        return faiss.SearchParametersIVF(nprobe=int(self.parameters["nprobe"] / share), **selector)

    def _compare(self, queries: Vectors, k: int, passing: NDArray[np.bool_]) -> tuple[Scores, Rows]:
        every_list = faiss.SearchParametersIVF(nprobe=self._index.nlist, **self._selector(passing))
        return self._found(queries, k, every_list)


class FaissIVFPQ(FaissEngine):
    """Inverted lists of 4-bit product codes, scanned in registers (André et al. 2017), the best re-scored exactly.

    Scores are exact cosines. The whole vectors are looked at only to re-score, so they may stay on disk, mapped.
    """

    kind = "ivf-pq"
    quick = True
    index_type = faiss.IndexRefineFlat
    defaults: ClassVar = {"nprobe": 16, "rescore": 8}
    steps = tuple(
        {"nprobe": nprobe, "rescore": rescore}
        for nprobe, rescore in ((8, 4), (16, 8), (32, 8), (64, 16), (128, 16), (256, 32), (512, 32), (1024, 64))
    )

    @classmethod
    def _empty(cls, vectors: Vectors) -> Any:
        dimension = vectors.shape[1]
        quantizer = faiss.IndexFlatIP(dimension)
        codes = faiss.IndexIVFPQFastScan(
            quantizer, dimension, _lists(len(vectors)), cls._parts(dimension), 4, faiss.METRIC_INNER_PRODUCT
        )
        _own(codes, quantizer)
        codes.pq.cp.min_points_per_centroid = 1
        codes.pq.cp.seed = _SEED
        index = faiss.IndexRefineFlat(codes)
        codes.this.disown()
        index.own_fields = True
        return index

    @staticmethod
    def _parts(dimension: int) -> int:
        """Pieces a vector is cut into: the divisor of its dimension nearest to a quarter of it."""
        divisors = [parts for parts in range(1, dimension + 1) if dimension % parts == 0]
        return min(divisors, key=lambda parts: abs(parts - dimension / 4))

    @classmethod
    def memory(cls, size: int, dimension: int) -> int:
        return size * (cls._parts(dimension) // 2 + 24) + 4 * dimension * _lists(size)

    def _search_parameters(self, k: int, share: float, **selector: Any) -> Any:
        lists = faiss.SearchParametersIVF(nprobe=int(self.parameters["nprobe"] / share), **selector)
        # fewer hits need as many candidates as the ten with which recall was measured
        factor = self.parameters["rescore"] * max(1.0, 10 / k)
        return faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=lists)

    def _vectors(self, positions: Rows) -> Vectors:
        return _flat_vectors(self._index)[positions]


class FaissSQ8(FaissEngine):
    """Every vector compared at 8 bits a dimension: a quarter of the memory; scores are those of the rounded vectors."""

    kind = "sq8"
    index_type = faiss.IndexScalarQuantizer

    @classmethod
    def _empty(cls, vectors: Vectors) -> Any:
        return faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)

    @classmethod
    def memory(cls, size: int, dimension: int) -> int:
        return size * (dimension + 8)

    def _search_parameters(self, k: int, share: float, **selector: Any) -> Any:
        return faiss.SearchParameters(**selector)


def _lists(size: int) -> int:
    """Inverted lists for `size` vectors: about four times the root, and enough vectors each to train on."""
    return int(np.clip(4 * np.sqrt(size), 1, max(1, size // 39)))


def _own(index: Any, quantizer: Any) -> None:
    """Gives the quantizer to the index, so that Python does not free it, and sets how its centroids are trained."""
    quantizer.this.disown()
    index.own_fields = True
    index.cp.min_points_per_centroid = 1  # FAISS would warn on standard error
    index.cp.max_points_per_centroid = 64
    index.cp.seed = _SEED


def _flat_vectors(index: Any) -> Vectors:
    """The whole vectors (size, d) that an index holds, where FAISS keeps them, without a copy."""
    flat = faiss_file.flat_part(index)
    assert flat is not None
    vectors: Vectors = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    return vectors
