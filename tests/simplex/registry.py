"""Every map of the room with an independent float64 (or wider) oracle for one row. A new map added here is tested."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import integrate, special

import simplex

WIDE = np.longdouble


def softmax_row(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(WIDE) - x.max().astype(WIDE))
    return e / e.sum()


def sparsemax_row(x: np.ndarray) -> np.ndarray:
    """The textbook algorithm: sort, cumulative sums, the last rank whose score exceeds its threshold."""
    x = x.astype(WIDE) - x.max().astype(WIDE)
    ordered = np.sort(x[x > -1])[::-1]
    thresholds = (np.cumsum(ordered) - 1) / np.arange(1, len(ordered) + 1)
    tau = thresholds[np.flatnonzero(ordered > thresholds)[-1]]
    return np.maximum(x - tau, 0)


def entmax_row(x: np.ndarray, alpha: float) -> np.ndarray:
    """Bisection for the threshold in extended precision, over the scores that can be in the support."""
    x = x.astype(WIDE) - x.max().astype(WIDE)
    beta = WIDE(alpha) - 1
    z = beta * x
    inside = z[z > -1]
    low, high = WIDE(-1), WIDE(0)
    for _ in range(90):
        middle = (low + high) / 2
        above = (np.maximum(inside - middle, 0) ** (1 / beta)).sum() > 1
        low, high = (middle, high) if above else (low, middle)
    return np.maximum(z - low, 0) ** (1 / beta)


def taylor_row(x: np.ndarray, order: int, floor: float | None) -> np.ndarray:
    held = x.astype(WIDE) if floor is None else np.maximum(x.astype(WIDE), floor)
    finite = np.where(np.isneginf(x), 0, held)
    f = sum(finite**j / WIDE(math.factorial(j)) for j in range(order + 1))
    f = np.where(np.isneginf(x), 0, f)
    return f / f.sum()


def top_k_row(x: np.ndarray, k: int) -> np.ndarray:
    kept = sorted(range(len(x)), key=lambda i: (-x[i], i))[:k]
    masked = np.full_like(x, -np.inf)
    masked[kept] = x[kept]
    return softmax_row(masked)


def nucleus_row(x: np.ndarray, mass: float) -> np.ndarray:
    p = softmax_row(x)
    kept, total = [], 0.0
    for i in sorted(range(len(x)), key=lambda i: (-x[i], i)):
        if total >= mass:
            break
        kept.append(i)
        total += p[i]
    masked = np.full_like(x, -np.inf)
    masked[kept] = x[kept]
    return softmax_row(masked)


def perturb_row(x: np.ndarray, law: Law) -> np.ndarray:
    """Adaptive quadrature of P(all others below) for every score."""
    p = np.zeros(len(x))
    x = x - x.max()
    edges = sorted({float(v) + e for v in x[np.isfinite(x)] for e in (-1.0, 0.0, 1.0)})
    for i in np.flatnonzero(np.isfinite(x)):

        def density(s: float, i: int = int(i)) -> float:
            return float(law.pdf(s - x[i]) * np.prod(law.cdf(s - np.delete(x, i))))

        spans = zip(
            [-45.0, *[e for e in edges if -45 < e < 45]], [*[e for e in edges if -45 < e < 45], 45.0], strict=True
        )
        p[i] = sum(integrate.quad(density, a, b, epsabs=1e-15, epsrel=1e-13, limit=200)[0] for a, b in spans)
    return p


class Law(NamedTuple):
    """Density and distribution of a noise, written out: scipy.stats is correct too, but takes 50 us a call."""

    pdf: Callable[[Any], Any]
    cdf: Callable[[Any], Any]


LAWS = {
    "normal": Law(lambda u: np.exp(-u * u / 2) / math.sqrt(2 * math.pi), special.ndtr),
    "logistic": Law(lambda u: special.expit(u) * special.expit(-u), special.expit),
    "uniform": Law(lambda u: 0.5 * (abs(u) <= 1), lambda u: np.minimum(np.maximum((u + 1) / 2, 0), 1)),
}


@dataclass(frozen=True)
class Map:
    name: str
    call: Callable[..., Any]
    oracle: Callable[[np.ndarray], np.ndarray]
    shift_invariant: bool = True
    monotone: bool = True
    slow_oracle: bool = False
    second: bool = True
    """has a second derivative"""
    largest: float = math.inf
    """largest score for which the oracle itself is good"""

    def __str__(self) -> str:
        return self.name


def _with(function: Callable[..., Any], *args: Any, **fixed: Any) -> Callable[..., Any]:
    return lambda x, **kw: function(x, *args, **fixed, **kw)


FLOOR6 = -2.180607124035125904
MAPS = [
    Map("softmax", simplex.softmax, softmax_row),
    Map("sparsemax", simplex.sparsemax, sparsemax_row),
    Map("entmax15", simplex.entmax15, lambda x: entmax_row(x, 1.5)),
    Map("entmax1.2", _with(simplex.entmax, 1.2), lambda x: entmax_row(x, 1.2)),
    Map("entmax1.7", _with(simplex.entmax, 1.7), lambda x: entmax_row(x, 1.7)),
    Map("entmax2.5", _with(simplex.entmax, 2.5), lambda x: entmax_row(x, 2.5)),
    Map("taylor2", simplex.taylor_softmax, lambda x: taylor_row(x, 2, -1.0), shift_invariant=False),
    Map(
        "taylor6raw",
        _with(simplex.taylor_softmax, order=6, monotone=False),
        lambda x: taylor_row(x, 6, None),
        shift_invariant=False,
        monotone=False,
    ),
    Map("top3", _with(simplex.sparse_softmax, top_k=3), lambda x: top_k_row(x, 3)),
    Map("nucleus", _with(simplex.sparse_softmax, top_p=0.7937), lambda x: nucleus_row(x, 0.7937)),
    *(
        Map(
            f"perturb-{noise}",
            _with(simplex.perturb_max, noise=noise),
            lambda x, law=law: perturb_row(x, law),  # type: ignore[misc]
            slow_oracle=True,
            second=noise != "uniform",
        )
        for noise, law in LAWS.items()
    ),
    Map("perturb-gumbel", _with(simplex.perturb_max, noise="gumbel"), softmax_row),
]
