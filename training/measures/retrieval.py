"""Retrieval metrics on vectors: recall@k, MAP@R, R-precision and nearest class mean, exact, in blocks of fixed memory.

Vectors are (n, d) float32 unit rows, so that scores are cosines; classes are (n,) integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Classes = NDArray[np.int64]
Flags = NDArray[np.bool_]

DEPTHS = (1, 5, 10)
"""The k of recall@k."""
BLOCK = 512
"""Most queries scored at once."""
BLOCK_SCORES = 2**24
"""Most scores held at once, (block, gallery) float32: 64 MiB. Ranking them takes several times that, most where
classes are as large as the gallery."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """What each query finds; arrays over the queries that have at least one gallery item of their class.

    Attributes:
        query: (q,) positions of these queries.
        recall: (q, len(DEPTHS)) whether the best k hits hold one of the query's class.
        average_precision: (q,) AP@R; its mean is MAP@R.
        r_precision: (q,) share of the best R hits that are of the class.
        nearest: (q,) position of the best hit in the gallery.
    """

    query: Classes
    recall: Flags
    average_precision: NDArray[np.float64]
    r_precision: NDArray[np.float64]
    nearest: Classes


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Means over queries that have at least one gallery item of their class (`queries` counts them)."""

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    map_at_r: float
    r_precision: float
    queries: int


def retrieval(
    queries: Vectors, query_classes: Classes, gallery: Vectors | None = None, gallery_classes: Classes | None = None
) -> Retrieval:
    """The means of `rank`; NaN without a query that has anything to find."""
    return means(rank(queries, query_classes, gallery, gallery_classes))


def means(ranking: Ranking) -> Retrieval:
    """Each measure's mean over the queries; NaN where there are none."""
    count = len(ranking.query)
    if not count:
        nan = float("nan")
        return Retrieval(nan, nan, nan, nan, nan, 0)
    at_1, at_5, at_10 = ranking.recall.mean(axis=0).tolist()
    return Retrieval(
        at_1, at_5, at_10, float(ranking.average_precision.mean()), float(ranking.r_precision.mean()), count
    )


def rank(
    queries: Vectors, query_classes: Classes, gallery: Vectors | None = None, gallery_classes: Classes | None = None
) -> Ranking:
    """What `queries` find in `gallery`, or, without one, each query among all the others.

    MAP@R (Musgrave, Belongie & Lim, "A Metric Learning Reality Check", 2020): with R gallery items of the query's
    class, the mean over ranks i <= R of precision@i where the item at rank i is of the class, else 0. R-precision is
    precision@R.
    """
    alone = gallery is None or gallery_classes is None
    if gallery is None or gallery_classes is None:
        gallery, gallery_classes = queries, query_classes
    sizes = np.bincount(gallery_classes, minlength=int(query_classes.max(initial=0)) + 1) - int(alone)
    parts: list[Ranking] = []
    for block in blocks(len(queries), len(gallery)):
        relevant = sizes[query_classes[block]]
        asked = np.flatnonzero(relevant > 0)
        if not len(asked):
            continue
        at, relevant = asked + block.start, relevant[asked]
        scores = queries[at] @ gallery.T
        if alone:
            scores[np.arange(len(at)), at] = -np.inf
        deepest = min(max(int(relevant.max()), DEPTHS[-1]), len(gallery) - int(alone))
        best = np.argpartition(-scores, deepest - 1, axis=1)[:, :deepest]
        order = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable"), 1)
        right = gallery_classes[order] == query_classes[at, None]
        ranks = np.arange(1, deepest + 1)
        counted = right & (ranks <= relevant[:, None])
        precision = np.cumsum(right, axis=1) / ranks
        parts.append(
            Ranking(
                query=at,
                recall=np.stack([right[:, :k].any(axis=1) for k in DEPTHS], axis=1),
                average_precision=(counted * precision).sum(axis=1) / relevant,
                r_precision=counted.sum(axis=1) / relevant,
                nearest=order[:, 0],
            )
        )
    empty = np.zeros(0)
    none = Ranking(empty.astype(np.int64), np.zeros((0, len(DEPTHS)), bool), empty, empty, empty.astype(np.int64))
    fields = ("query", "recall", "average_precision", "r_precision", "nearest")
    return Ranking(**{name: np.concatenate([getattr(part, name) for part in (none, *parts)]) for name in fields})


def nearest_class_mean(queries: Vectors, query_classes: Classes, gallery: Vectors, gallery_classes: Classes) -> float:
    """Accuracy of `classes_by_mean`; a class absent from the gallery counts as wrong."""
    return float((classes_by_mean(queries, gallery, gallery_classes) == query_classes).mean())


def classes_by_mean(queries: Vectors, gallery: Vectors, gallery_classes: Classes) -> Classes:
    """(q,) the class whose normalised mean vector in the gallery is closest to each query."""
    present, _, sums = _class_sums(gallery, gallery_classes)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    centres = (sums / np.maximum(lengths, 1e-12)).astype(np.float32)  # vectors may cancel out, or be nothing
    answers = [(queries[block] @ centres.T).argmax(axis=1) for block in blocks(len(queries), len(present))]
    found: Classes = present[np.concatenate([np.zeros(0, dtype=np.int64), *answers])]
    return found


def classes_by_mean_of_others(vectors: Vectors, classes: Classes) -> Classes:
    """(n,) the class whose normalised mean is closest to each vector, its own class's mean without the vector itself.

    A vector that is alone in its class has no mean of its own class to find.
    """
    present, codes, sums = _class_sums(vectors, classes)
    lengths = np.linalg.norm(sums, axis=1)
    centres = (sums / np.maximum(lengths, 1e-12)[:, None]).astype(np.float32)
    answers: list[Classes] = [np.zeros(0, dtype=np.int64)]
    for block in blocks(len(vectors), len(present)):
        scores = vectors[block] @ centres.T
        own = codes[block]
        rest = sums[own] - vectors[block]
        length = np.linalg.norm(rest, axis=1)
        inside = np.where(length > 1e-6, (rest * vectors[block]).sum(axis=1) / np.maximum(length, 1e-12), -np.inf)
        scores[np.arange(len(scores)), own] = inside
        answers.append(scores.argmax(axis=1))
    found: Classes = present[np.concatenate(answers)]
    return found


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows so short that rows times `width` stays within `BLOCK_SCORES`."""
    size = max(1, min(BLOCK, BLOCK_SCORES // max(width, 1)))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _class_sums(vectors: Vectors, classes: Classes) -> tuple[Classes, Classes, NDArray[np.float64]]:
    """The distinct classes (C,), each vector's place among them (n,), and the sums (C, d) of their vectors."""
    present, codes = np.unique(classes, return_inverse=True)
    sums = np.zeros((len(present), vectors.shape[1]), dtype=np.float64)
    np.add.at(sums, codes, vectors)
    return present, codes, sums
