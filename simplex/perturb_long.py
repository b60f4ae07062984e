"""Perturb-max over one long row: millions of scores, a few thousand points, no array of scores x grid.

Smooth noise goes through Chebyshev nodes (`simplex.condensed`), everything else through the distinct scores. Of bounded
noise only the best scores matter: the others lie more than its width below the maximum, or where no maximum can be
(e^G < 1e-19). Its panels end at the edges of the density that those scores make, at most `points` / 6 of them, and
shrink geometrically towards the top, where millions of ties put all of e^G into a sliver.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from simplex.arrays import namespace, top
from simplex.condensed import Condensed
from simplex.noise import Noise

LONG = 50_000
"""Scores in a row from which this module is used."""
_FAR = 100.0
"""Noise of unbounded range reaches no further than this, up to a probability of e^-100."""
_GONE = -45.0
_ORDER = 6
_AT_ONCE = 1 << 22


class LongRow:
    """The integrals of `simplex.perturb` for one row x (n,) of float64, not all -inf."""

    def __init__(self, x: Any, law: Noise, points: int | None) -> None:
        self._xp, self._law, self._best = namespace(x), law, top(x, namespace(x))
        self._x = x = x - self._best  # a large offset would leave few digits for the grid
        self._near = x > -(law.high - law.low if law.bounded else _FAR)
        if law.bounded:
            self._near = x >= _lowest(x[self._near], law)
        near = x[self._near]
        self._condensed = Condensed.of_cells(near) if law.analytic else Condensed.of_values(near)
        self._counts = self._condensed.spread(0 * near + 1)
        edges = self._edges(points or 1024 * _ORDER) if law.bounded else self._even(points or 1024)
        nodes, weights = np.polynomial.legendre.leggauss(_ORDER if law.bounded else 1)
        half = (edges[1:, None] - edges[:-1, None]) / 2
        self._s = (edges[:-1, None] + half * (self._constant(nodes) + 1)).reshape(-1)
        self._ds = (half * self._constant(weights)).reshape(-1)
        self._end = edges[-1]

    def probabilities(self) -> Any:
        """p (n,), summing to 1."""
        p = self._everywhere(self._condensed.read(sum(mass @ h for mass, h in self._integrand())))
        p = self._xp.clip(p, 0, None)
        return p / p.sum()

    def product(self, v: Any) -> Any:
        """(J v)_i = integral e^G h_i (v_i sum_j h_j - sum_j h_j v_j) ds, (n,), without forming J."""
        spread = self._condensed.spread(v[self._near])
        ones, weighted = 0.0, 0.0
        for mass, h in self._integrand():
            ones = ones + (mass * (h @ self._counts)) @ h
            weighted = weighted + (mass * (h @ spread)) @ h
        read = self._condensed.read
        return self._everywhere(v[self._near] * read(ones) - read(weighted))

    def potential(self) -> Any:
        """E max(x + e), a number: the end of the grid, where e^G is 1, less the integral of e^G."""
        return self._best[0] + self._end - sum(mass.sum() for mass, _ in self._integrand())

    def _everywhere(self, near: Any) -> Any:
        full = self._xp.zeros_like(self._x)
        full[self._near] = near
        return full

    def _integrand(self) -> Iterator[tuple[Any, Any]]:
        """e^G(s) ds, (K,), and h(s - point), (K, m), for some points of the grid at a time."""
        xp, points = self._xp, self._condensed.points
        step = max(1, _AT_ONCE // len(points))
        for start in range(0, len(self._s), step):
            u = self._s[start : start + step, None] - points
            log_cdf = self._law.log_cdf(u)
            h = xp.where(log_cdf == -math.inf, 0, xp.exp(self._law.log_pdf(u) - log_cdf))
            yield xp.exp(log_cdf @ self._counts) * self._ds[start : start + step], h

    def _even(self, points: int) -> Any:
        """The ends of equal steps between where e^G vanishes, found by bisection, and where it is 1."""
        low, upper = self._law.low, self._law.high
        high = upper + math.log(len(self._x))
        for _ in range(12):
            middle = (low + upper) / 2
            gone = self._law.log_cdf(middle - self._condensed.points) @ self._counts < _GONE
            low, upper = (middle, upper) if gone else (low, middle)
        return low + (high - low) * self._constant(np.arange(points + 1) / points)

    def _edges(self, points: int) -> Any:
        """Where the density of the maximum has edges, and geometric steps towards its top; ascending."""
        xp, (low, high) = self._xp, (self._law.low, self._law.high)
        scores = self._condensed.points
        ranks = np.unique(np.linspace(0, len(scores) - 1, max(2, points // _ORDER)).round().astype(int))
        steps = high - (high - low) * self._constant(2.0 ** (-np.arange(81) / 2))
        return xp.unique(xp.concatenate([scores[ranks] + high, steps]))

    def _constant(self, values: Any) -> Any:
        return self._xp.asarray(values, dtype=self._x.dtype, device=self._x.device)


def _lowest(x: Any, law: Noise) -> Any:
    """The score from which down no noise makes a maximum: e^G is gone at its upper end."""
    values = Condensed.of_values(-x)
    scores, counts = -values.points, values.spread(0 * x + 1)
    kept = 64
    while kept < len(scores):
        if law.log_cdf(scores[kept] + law.high - scores[:kept]) @ counts[:kept] < _GONE:
            return scores[kept]
        kept *= 2
    return scores[-1]
