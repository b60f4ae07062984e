"""The engines of large galleries, which look at a part of it or at vectors in fewer bits."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from index.engines.engine import Rows, Scores, Vectors
from index.engines.faiss_engine import FaissEngine
from index.engines.faiss_file import flat_vectors
from index.engines.native_faiss import faiss

_SEED = 1234


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
        return flat_vectors(self._index)[positions]


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
        return flat_vectors(self._index)[positions]


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
