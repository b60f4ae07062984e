"""Percentile bootstrap intervals (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 1000
LEVEL = 0.95


def interval(
    values: ArrayLike, groups: NDArray[np.int64] | None = None, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of the mean of `values` (n,), or None where fewer than two things could be drawn.

    Without `groups` single values are drawn again: how sure the mean is for more queries of the same classes. With
    `groups` (n,) whole groups are drawn, with all their values: how sure it is for other classes, which differ far more
    than their queries do.
    """
    flat = np.asarray(values, dtype=np.float64)
    sums: NDArray[Any] = flat
    counts: NDArray[Any] = np.ones(len(flat))
    if groups is not None:
        codes = np.unique(groups, return_inverse=True)[1]
        sums = np.bincount(codes, weights=flat)
        counts = np.bincount(codes).astype(np.float64)
    if len(sums) < 2:
        return None
    generator = np.random.default_rng(seed)
    found = np.empty(draws)
    for at in range(draws):
        drawn = generator.integers(len(sums), size=len(sums))
        found[at] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
