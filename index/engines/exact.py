"""Exact top-k by blocked matrix products: for a query alone or a filter, and the measure of every other engine.

FAISS compares a single query on one core; numpy's BLAS uses all. Selection costs little: the k-th largest of the maxima
over groups of columns bounds the k-th best score from below, so only the groups above it are looked at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index.engines.engine import Rows, Scores, Vectors

_GROUP = 32
_BLOCK_BYTES = 64 << 20


def top(queries: Vectors, vectors: Vectors, k: int, passing: NDArray[np.bool_] | None = None) -> tuple[Scores, Rows]:
    """Scores (n, k) descending and positions (n, k) of the k best of `vectors` (m, d) for `queries` (n, d).

    `passing` (m,) marks the vectors that may be found. There must be k of them.
    """
    n, k = len(queries), min(k, len(vectors))
    scores = np.empty((n, k), np.float32)
    positions = np.empty((n, k), np.int64)
    block = max(1, _BLOCK_BYTES // (4 * max(len(vectors), 1)))
    for start in range(0, n, block):
        part = slice(start, min(start + block, n))
        cosines = queries[part] @ vectors.T
        if passing is not None:
            cosines[:, ~passing] = -np.inf
        scores[part], positions[part] = largest(cosines, k)
    return scores, positions


def largest(scores: Scores, k: int) -> tuple[Scores, Rows]:
    """The k largest of every row of `scores` (n, m), descending, the earlier position first among equals."""
    n, m = scores.shape
    groups = m // _GROUP
    if groups <= 2 * k:
        return best(scores, np.broadcast_to(np.arange(m), (n, m)), k)
    whole = groups * _GROUP
    maxima = scores[:, :whole].reshape(n, groups, _GROUP).max(axis=2)
    near = np.sort(np.argpartition(-maxima, k - 1, axis=1)[:, :k], axis=1)
    inside = (near[:, :, None] * _GROUP + np.arange(_GROUP)).reshape(n, -1)
    tail = np.broadcast_to(np.arange(whole, m), (n, m - whole))
    positions = np.concatenate([inside, tail], axis=1)
    return best(np.take_along_axis(scores, positions, 1), positions, k)


def best(scores: Scores, positions: Rows, k: int) -> tuple[Scores, Rows]:
    """The k largest of every row of `scores` (n, m), descending, with their `positions` (n, m), the smaller of these
    first among equals."""
    near = np.argpartition(-scores, k - 1, axis=1)[:, :k] if k < scores.shape[1] else np.argsort(-scores, axis=1)
    scores, positions = np.take_along_axis(scores, near, 1), np.take_along_axis(positions, near, 1)
    order = np.lexsort((positions, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)
