"""Intervals of means: percentile bootstrap (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13), and
exact ones of rates (Clopper & Pearson 1934), for what is all alike stays so however often it is drawn again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 1000
LEVEL = 0.95
SAME = 1e-12
"""How far apart means may lie by rounding alone."""


def interval(
    values: ArrayLike, groups: NDArray[np.int64] | None = None, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of the mean of `values` (n,), or None where fewer than two things could be drawn.

    Without `groups` single values are drawn again: how sure the mean is for more queries of the same classes. With
    `groups` (n,) whole groups are drawn, with all their values: how sure it is for other classes, which differ far more
    than their queries do. Flags that are queries, or alike in all groups, have the exact interval of as many trials;
    other values that do not differ have none.
    """
    flags = np.asarray(values).dtype == np.bool_
    flat = np.asarray(values, dtype=np.float64)
    sums: NDArray[Any] = flat
    counts: NDArray[Any] = np.ones(len(flat))
    if groups is not None:
        codes = np.unique(groups, return_inverse=True)[1]
        sums = np.bincount(codes, weights=flat)
        counts = np.bincount(codes).astype(np.float64)
    if len(sums) < 2:
        return None
    if flags and (groups is None or not np.ptp(flat)):
        return _exact(float(flat.mean()), len(sums))
    if np.ptp(sums / counts) < SAME:
        return None
    generator = np.random.default_rng(seed)
    found = np.empty(draws)
    for at in range(draws):
        drawn = generator.integers(len(sums), size=len(sums))
        found[at] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _exact(share: float, trials: int) -> tuple[float, float]:
    from scipy.special import betaincinv

    hits, tail = round(share * trials), (1 - LEVEL) / 2
    low = betaincinv(hits, trials - hits + 1, tail) if hits else 0.0
    high = betaincinv(hits + 1, trials - hits, 1 - tail) if hits < trials else 1.0
    return float(low), float(high)
