"""What the k best scores prove about the probabilities over all N items of a gallery.

An entmax map gives most items exactly 0, so its answer over the whole gallery can be known from the head of the
ranking alone. With z_i = (alpha-1) x_i / T, z_1 = 0, and tau_k the threshold of the k known scores:

- the threshold of all N scores is never below tau_k;
- if z_k <= tau_k, the answer over k items IS the answer over N, whatever the unseen scores below z_k are;
- if z_k > tau_k, one unseen item tied with the k-th would change it: the condition is tight;
- otherwise the N - k unseen items could all tie with the k-th, which gives the largest possible threshold tau_U and for
  each known item the interval [ [z_i - tau_U]_+^(1/(alpha-1)), [z_i - tau_k]_+^(1/(alpha-1)) ].

Softmax never certifies, but its intervals follow in the same way. Scores must come from an exact search; after an
approximate one the statements hold given that the search returned the true k best. All of it in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simplex.arrays import check_alpha, check_positive, check_rows, check_whole, is_torch
from simplex.solvers import entmax_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Certificate:
    """Probabilities of the k best items among N, and what is proven about them. Arrays of shape (..., k) or (...)."""

    probabilities: NDArray[np.float64]
    """(..., k): the map over the k known scores alone; where `certified`, exactly the map over all N."""
    certified: NDArray[np.bool_]
    """(...): proven that the unseen items have probability 0 and that `probabilities` are those over all N."""
    lower: NDArray[np.float64]
    """(..., k): no completion of the gallery gives the item less than this."""
    upper: NDArray[np.float64]
    """(..., k): no completion of the gallery gives the item more than this."""
    unseen_mass: NDArray[np.float64]
    """(...): an upper bound on the total probability of the N - k unseen items; 0 where certified."""
    margin: NDArray[np.float64]
    """(...): tau_k - z_k, how far the k-th score lies below the threshold, in logits / alpha-1; >= 0 certifies."""


def certify(
    scores: Any,
    n_total: int,
    *,
    alpha: float = 2.0,
    temperature: float = 1.0,
    noise: float = 0.0,
    lowest: float = -np.inf,
) -> Certificate:
    """Certify entmax-alpha (softmax at alpha = 1) over `n_total` items from the `scores` (..., k) of the k best.

    scores: any order, numpy (or a tensor, which is copied), -inf for a missing item.
    noise: bound on the error of every logit x_i / T, e.g. from float16 vectors or quantization. A row is then certified
        only if it would be for all true scores within the noise, and the intervals hold for all of them.
    lowest: the least possible score (-1 for cosines), which sharpens the upper bounds of softmax.
    Raises ValueError naming the argument, and for NaN, +inf or a row without a finite score (nothing can be proven).
    """
    check_alpha(alpha)
    check_positive(temperature, "temperature")
    x = np.asarray(scores.detach().cpu() if is_torch(scores) else scores, dtype=np.float64)
    check_rows(x, -1, "scores")
    k = x.shape[-1]
    check_whole(n_total, "n_total")
    if n_total < k:
        raise ValueError(f"n_total must be at least the number of scores, {k}; got {n_total}")
    if not noise >= 0 or noise == np.inf:
        raise ValueError(f"noise must be >= 0 and finite; got {noise}")
    if np.isnan(lowest):
        raise ValueError("lowest must be a number; got NaN")
    best = x.max(axis=-1, keepdims=True)
    if not np.isfinite(best).all():
        raise ValueError("scores must hold a finite score in every row, and neither NaN nor +inf")
    with np.errstate(under="ignore"):
        y = (x - best) / temperature
        if alpha == 1:
            return _softmax_certificate(y, n_total - k, (lowest - best[..., 0]) / temperature, noise)
        return _entmax_certificate(y, n_total - k, float(alpha), noise)


def support_radius(alpha: float, temperature: float) -> float:
    """How far below the best score the support can reach, T / (alpha - 1): one range search to it is complete.

    Every item of nonzero probability scores more than max - radius. Infinite for softmax.
    """
    check_alpha(alpha)
    check_positive(temperature, "temperature")
    return temperature / (alpha - 1) if alpha > 1 else np.inf


def _entmax_certificate(y: NDArray[np.float64], unseen: int, alpha: float, noise: float) -> Certificate:
    beta = alpha - 1
    p = entmax_rows(y, alpha, np)
    tau = _threshold(y, p, beta)
    least = beta * y.min(axis=-1)
    margin = tau - least
    # A logit error of e moves z by at most b e and tau by as much.
    certified = (margin >= 2 * beta * noise) if unseen else np.full(margin.shape, True)
    # Computed thresholds are rounded: a hair's breadth is given away so that no bound is too sharp.
    slack = 64 * np.finfo(np.float64).eps * (1 + y.shape[-1] ** 0.5)
    highest = tau if not unseen else np.where(certified, tau, _highest_threshold(y, unseen, beta))
    spread = 2 * beta * noise
    lower = _probability(beta * y - highest[..., None] - slack - spread, beta)
    upper = np.minimum(_probability(beta * y - tau[..., None] + slack + spread, beta), 1)
    if not noise:
        done = certified[..., None]
        lower, upper = np.where(done, p, lower), np.where(done, p, upper)
    unseen_mass = np.where(certified, 0, np.clip(1 - lower.sum(axis=-1), 0, 1))
    return Certificate(p, certified, lower, upper, unseen_mass, margin)


def _probability(above: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    return np.asarray(np.clip(above, 0, None) ** (1 / beta))


def _threshold(y: NDArray[np.float64], p: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """tau from the largest probability: p_1 = (z_1 - tau)^(1/b) with z_1 = 0."""
    return np.asarray(-(p.max(axis=-1) ** beta))


def _highest_threshold(y: NDArray[np.float64], unseen: int, beta: float) -> NDArray[np.float64]:
    """tau_U: the threshold if all unseen items tied with the worst known one, by bisection on the mass."""
    z = beta * y
    least = z.min(axis=-1, keepdims=True)
    low, high = np.full_like(least, -1.0), np.zeros_like(least)
    for _ in range(70):
        middle = (low + high) / 2
        mass = _probability(z - middle, beta).sum(axis=-1, keepdims=True) + unseen * _probability(least - middle, beta)
        low, high = np.where(mass > 1, middle, low), np.where(mass > 1, high, middle)
    return np.asarray(high[..., 0])


def _softmax_certificate(y: NDArray[np.float64], unseen: int, lowest: NDArray[np.float64], noise: float) -> Certificate:
    e = np.exp(y)
    known = e.sum(axis=-1, keepdims=True)
    # The partition sum if all unseen items stood at the lowest possible score, and if all tied with the worst known.
    few = known + unseen * np.exp(np.minimum(lowest, y.min(axis=-1)))[..., None]
    many = known + unseen * e.min(axis=-1, keepdims=True)
    widen = np.exp(2 * noise)
    lower, upper = e / many / widen, np.minimum(e / few * widen, 1)
    unseen_mass = np.clip((1 - (known / many)[..., 0]) * widen, 0, 1)
    certified = np.full(y.shape[:-1], unseen == 0)
    unseen_mass = np.where(certified, 0, unseen_mass)
    return Certificate(e / known, certified, lower, upper, unseen_mass, np.full(y.shape[:-1], -np.inf))
