"""Exact search of a batch of queries by FAISS, every thread in its own part of the vectors.

FAISS gives a batch to BLAS with all its threads, which divide the few queries among themselves: two threads multiply
six of twelve queries each, which takes them longer than all twelve take one. Here each thread has all of the queries
and a part of the vectors, and the best of the parts are the best (`make bench-index`: flat, batch 12).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from index.engines import exact
from index.engines.engine import Rows, Scores, Vectors
from index.engines.native_faiss import faiss

MANY, EVEN = 64, 16
"""From so many queries on, and for multiples of so many, FAISS's own division is as good."""
LEAST = 4096
"""Vectors that are worth a thread."""
_KERNEL = 4
"""Queries that BLAS multiplies at a time: fewer take as long, and 31 longer than 32."""
_LINE = 16
"""Vectors whose length is whole cache lines, whatever their dimension."""


def pays(queries: int) -> bool:
    """Whether so many queries are found sooner than by FAISS alone."""
    return queries < MANY and queries % EVEN != 0


def top(queries: Vectors, vectors: Vectors, k: int) -> tuple[Scores, Rows]:
    """Scores (n, k) descending and positions (n, k) of the k best of `vectors` (m, d) for `queries` (n, d), k <= m.

    Which of equal scores come first is not defined.
    """
    n, size = len(queries), len(vectors)
    parts = max(1, min(faiss.omp_get_max_threads(), size // max(k, LEAST)))
    length = -(-size // parts)
    length += -length % _LINE
    starts = range(0, size, length)
    filled = np.concatenate([queries, np.zeros((-n % _KERNEL, queries.shape[1]), np.float32)])

    def search(start: int) -> tuple[Scores, Rows]:
        part = vectors[start : start + length]
        scores, positions = np.empty((len(filled), k), np.float32), np.empty((len(filled), k), np.int64)
        faiss.knn_inner_product(
            faiss.swig_ptr(filled), faiss.swig_ptr(part), part.shape[1], len(filled), len(part), k,
            faiss.swig_ptr(scores), faiss.swig_ptr(positions),
        )  # fmt: skip
        return scores[:n], positions[:n] + start

    found = [search(0)] if parts == 1 else list(_threads(len(starts)).map(search, starts))
    scores, positions = (np.concatenate(columns, axis=1) for columns in zip(*found, strict=True))
    scores, best = exact.largest(scores, k)
    return scores, np.take_along_axis(positions, best, 1)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads in which BLAS and OpenMP have one thread each: the setting is a thread's own."""
    return ThreadPoolExecutor(count, "exact", initializer=faiss.omp_set_num_threads, initargs=(1,))


os.register_at_fork(after_in_child=_threads.cache_clear)  # threads do not survive a fork
