"""Where an encoder is good and where it is not: which classes it confuses, each class, and classes by their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.measures.retrieval import Classes, Flags

EXAMPLES = 3
"""Pairs of texts shown for each confusion."""
SLICES = ((1, 4), (5, 9), (10, 19), (20, 49), (50, 99), (100, 999), (1000, None))
"""Classes by their rows, from and to; None: no end."""


def confusions(
    truth: Classes,
    answer: Classes,
    texts: Sequence[str],
    closest: Sequence[str],
    labels: Sequence[str],
    *,
    most: int = 12,
) -> list[dict[str, Any]]:
    """The most frequent confusions of one class with another, by share of the class's queries, then by name.

    Args:
        truth, answer: (q,) class of each query, and of what it found.
        texts, closest: (q,) the queries and what they found.
        labels: name of each class.
    """
    asked = np.bincount(truth, minlength=len(labels))
    wrong = np.flatnonzero(truth != answer)
    if not len(wrong):
        return []
    pairs, codes, counts = np.unique(
        np.stack([truth[wrong], answer[wrong]], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    order = sorted(range(len(pairs)), key=lambda at: (-counts[at], -counts[at] / asked[pairs[at, 0]], *pairs[at]))
    return [
        {
            "label": labels[pairs[at, 0]],
            "taken_for": labels[pairs[at, 1]],
            "queries": int(counts[at]),
            "of": int(asked[pairs[at, 0]]),
            "examples": [{"text": texts[i], "closest": closest[i]} for i in wrong[codes.ravel() == at][:EXAMPLES]],
        }
        for at in order[:most]
    ]


def per_class(
    truth: Classes,
    right: Flags,
    average_precision: NDArray[np.float64],
    trained: Classes,
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    """One entry a class that was asked for, the worst first: its training rows, queries, recall@1 and MAP@R.

    Args:
        truth, right, average_precision: (q,) class of each query, whether its best hit is of it, its AP@R.
        trained: (len(labels),) training rows of each class.
    """
    asked = np.bincount(truth, minlength=len(labels))
    found = np.bincount(truth, weights=right, minlength=len(labels)) / np.maximum(asked, 1)
    mean = np.bincount(truth, weights=average_precision, minlength=len(labels)) / np.maximum(asked, 1)
    order = sorted(np.flatnonzero(asked).tolist(), key=lambda at: (found[at], mean[at], labels[at]))
    return [
        {
            "label": labels[at],
            "rows": int(trained[at]),
            "queries": int(asked[at]),
            "recall_at_1": float(found[at]),
            "map_at_r": float(mean[at]),
        }
        for at in order
    ]


def by_size(
    truth: Classes, right: Flags, average_precision: NDArray[np.float64], trained: Classes
) -> list[dict[str, Any]]:
    """Recall@1 and MAP@R over the queries of small classes, of larger ones and so on, where there are any."""
    slices: list[dict[str, Any]] = []
    for least, most in SLICES:
        inside = (trained[truth] >= least) & (trained[truth] <= (most or np.inf))
        if inside.any():
            slices.append(
                {
                    "rows": f"{least}–{most}" if most else f"{least} or more",
                    "classes": len(np.unique(truth[inside])),
                    "queries": int(inside.sum()),
                    "recall_at_1": float(right[inside].mean()),
                    "map_at_r": float(average_precision[inside].mean()),
                }
            )
    return slices
