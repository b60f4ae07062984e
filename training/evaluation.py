"""Retrieval metrics on vectors: recall@k, MAP@R and nearest class mean, exact and blocked so that memory stays small.

Vectors are (n, d) float32 unit rows, so that scores are cosines; classes are (n,) integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Classes = NDArray[np.int64]

BLOCK = 512
"""Queries scored at once; a block of scores is (BLOCK, gallery) float32."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Means over queries that have at least one gallery item of their class (`queries` counts them)."""

    recall_at_1: float
    map_at_r: float
    queries: int


def retrieval(
    queries: Vectors, query_classes: Classes, gallery: Vectors | None = None, gallery_classes: Classes | None = None
) -> Retrieval:
    """Recall@1 and MAP@R of `queries` against `gallery`, or, without one, of each query against all the others.

    MAP@R (Musgrave, Belongie & Lim, "A Metric Learning Reality Check", 2020): with R gallery items of the query's
    class, the mean over ranks i <= R of precision@i where the item at rank i is of the class, else 0.
    """
    leave_self_out = gallery is None or gallery_classes is None
    if gallery is None or gallery_classes is None:
        gallery, gallery_classes = queries, query_classes
    sizes = np.bincount(gallery_classes, minlength=int(query_classes.max(initial=0)) + 1) - int(leave_self_out)
    hits, average_precisions = [], []
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        scores = queries[block] @ gallery.T
        if leave_self_out:
            scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -np.inf
        relevant = sizes[query_classes[block]]
        deepest = min(int(relevant.max(initial=0)), scores.shape[1])
        if deepest == 0:
            continue
        best = np.argpartition(-scores, deepest - 1, axis=1)[:, :deepest]
        order = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable"), 1)
        right = gallery_classes[order] == query_classes[block, None]
        ranks = np.arange(1, deepest + 1)
        counted = right & (ranks <= relevant[:, None])
        precision = np.cumsum(right, axis=1) / ranks
        answerable = relevant > 0
        hits.append(right[answerable, 0])
        average_precisions.append((counted * precision).sum(axis=1)[answerable] / relevant[answerable])
    if not hits:
        return Retrieval(float("nan"), float("nan"), 0)
    found = np.concatenate(hits)
    return Retrieval(float(found.mean()), float(np.concatenate(average_precisions).mean()), len(found))


def nearest_class_mean(queries: Vectors, query_classes: Classes, gallery: Vectors, gallery_classes: Classes) -> float:
    """Accuracy of the class whose normalised mean vector is closest; classes absent from the gallery count as wrong."""
    present, codes = np.unique(gallery_classes, return_inverse=True)
    sums = np.zeros((len(present), gallery.shape[1]), dtype=np.float64)
    np.add.at(sums, codes, gallery)
    means = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return float((present[(queries @ means.T).argmax(axis=1)] == query_classes).mean())
