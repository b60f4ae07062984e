"""Intervals of means: percentile bootstrap (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13), and
exact ones of rates (Clopper & Pearson 1934), for what is all alike stays so however often it is drawn again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 1000
LEVEL = 0.95
LEAST_GROUPS = 5
SAME = 1e-12
"""How far apart means may lie by rounding alone."""


def interval(
    values: ArrayLike, groups: NDArray[np.int64] | None = None, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of the mean of `values` (n,), or None where fewer than two things could be drawn.

    Without `groups` single values are drawn again: how sure the mean is for more queries of the same classes. With
    `groups` (n,) whole groups are drawn, with all their values: how sure it is for other classes, which differ far more
    than their queries do. Of fewer groups than `LEAST_GROUPS` there is none, and the ends of few are moved apart as
    Student's t is wider than the normal curve: resamples of few vary less than new ones would. Flags that are queries,
    or alike in all groups, have the exact interval of as many trials; other values that do not differ have none.
    """
    flags = np.asarray(values).dtype == np.bool_
    flat = np.asarray(values, dtype=np.float64)
    sums: NDArray[Any] = flat
    counts: NDArray[Any] = np.ones(len(flat))
    if groups is not None:
        codes = np.unique(groups, return_inverse=True)[1]
        sums = np.bincount(codes, weights=flat)
        counts = np.bincount(codes).astype(np.float64)
    if len(sums) < (2 if groups is None else LEAST_GROUPS):
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
    if groups is not None:
        mean, wider = flat.mean(), _wider(len(sums))
        low, high = mean - wider * (mean - low), mean + wider * (high - mean)
    return float(max(low, flat.min())), float(min(high, flat.max()))


def _wider(groups: int) -> float:
    """By how much the interval of so many things is wider than what their resamples show."""
    from scipy.special import ndtri, stdtrit

    tail = (1 + LEVEL) / 2
    return float(stdtrit(groups - 1, tail) / ndtri(tail) * np.sqrt(groups / (groups - 1)))


def _exact(share: float, trials: int) -> tuple[float, float]:
    from scipy.special import betaincinv

    hits, tail = round(share * trials), (1 - LEVEL) / 2
    low = betaincinv(hits, trials - hits + 1, tail) if hits else 0.0
    high = betaincinv(hits + 1, trials - hits, 1 - tail) if hits < trials else 1.0
    return float(low), float(high)
