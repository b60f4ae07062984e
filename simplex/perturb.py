"""Perturb-max: p_i = P(x_i + e_i is the largest) for independent noise e of any distribution, exactly.

With Phi and f the distribution and density of the noise, h = f / Phi and G(s) = sum_j log Phi(s - x_j),

    p_i   = integral h(s - x_i) e^G(s) ds
    J_ij  = -W_ij (i != j),  J_ii = sum_j!=i W_ij,   W_ij = integral h(s - x_i) h(s - x_j) e^G(s) ds
    F(x)  = E max(x + e) = integral s d(e^G(s)),     grad F = p

all on ONE trapezoid grid of K points, O(nK) for n scores instead of O(n^2 K); for smooth noise the rule converges
faster than any power of K. Gumbel noise gives softmax. F(x) - x_t - E e is the Fenchel-Young loss of the map: convex,
>= 0, with gradient p - e_t (Berthet et al. 2020). Bounded noise gives exact zeros. Its density has edges, so the grid
is made of Gauss-Legendre panels between them: exact for uniform noise among few scores, and the error falls with
`points` among many. All of it in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simplex.arrays import ArrayT, is_torch, namespace, over_rows, readable, top
from simplex.noise import Noise, law_of
from simplex.perturb_long import LONG, LongRow
from simplex.targets import Target, row_loss

if TYPE_CHECKING:
    from typing import Unpack

    from simplex.arrays import Array, Scalar
    from simplex.losses import Common


def perturb_max(
    x: ArrayT,
    *,
    noise: str | Noise = "normal",
    points: int | None = None,
    dim: int = -1,
    temperature: Scalar = 1.0,
) -> ArrayT:
    """P(x_i / T + e_i is the largest), for noise "normal", "logistic", "gumbel", "uniform" (on [-1, 1]) or your own.

    `points` of the grid: None takes 256 (1024 for bounded noise), which agree with an oracle to 1e-12 over few scores.
    A row of more than 50,000 scores goes through a few thousand points that stand for them (`simplex.perturb_long`):
    1e-12 over ten million, with the memory of a few copies of the row; noise of your own needs `analytic` for that, or
    scores with many ties. Two derivatives for
    smooth noise; one for bounded noise (the second has jumps) and for long rows. ValueError names a bad argument.
    """
    law = law_of(noise)

    def rows(scores: Any) -> Any:
        return _in_double(lambda wide: _probabilities(wide, law, points), scores)

    return over_rows(rows, x, dim=dim, temperature=temperature)


def perturb_max_jacobian(
    x: ArrayT, *, noise: str | Noise = "normal", points: int | None = None, temperature: float = 1.0
) -> ArrayT:
    """dp/dx of perturb_max over the last axis, (..., n) -> (..., n, n): symmetric, rows sum to 0, off-diagonal <= 0."""
    law = law_of(noise)

    def rows(scores: Any) -> Any:
        xp = namespace(scores)
        mass, h = _integrand(scores, law, points)
        eye = xp.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device)
        off = ((mass * h).swapaxes(-1, -2) @ h) * (eye - 1)
        return (off - eye * xp.sum(off, axis=-1, keepdims=True)) / temperature

    return over_rows(lambda scores: _in_double(rows, scores), x, dim=-1, temperature=temperature)


def perturb_max_potential(
    x: ArrayT, *, noise: str | Noise = "normal", points: int | None = None, dim: int = -1, temperature: float = 1.0
) -> ArrayT:
    """F(x / T) = E max(x / T + e), the axis `dim` gone; its gradient in x is perturb_max / T."""
    law = law_of(noise)

    def rows(scores: Any) -> Any:
        return _in_double(lambda wide: _potential(wide / temperature, law, points), scores)

    return over_rows(rows, x, dim=dim, shift=False, reduce=True)


def perturb_max_loss(
    x: Array, target: Any, *, noise: str | Noise = "normal", points: int | None = None, **options: Unpack[Common]
) -> Any:
    """F(x) - x_t - E e for class targets, F(x) - <y, x> - E e for soft ones. Gradient p - y."""
    law = law_of(noise)

    def loss(rows: Any, goal: Target) -> Any:
        potential = _in_double(lambda wide: _potential(wide, law, points), rows)
        return potential - goal.dot(rows) - law.mean

    return row_loss(loss, x, target, **_defaults(options))


def _defaults(options: Common) -> Any:
    defaults = {"dim": -1, "temperature": 1.0, "weight": None, "ignore_index": -100, "reduction": "mean"}
    unknown = options.keys() - defaults.keys()
    if unknown:
        raise TypeError(f"unexpected keyword arguments: {sorted(unknown)}")
    return defaults | options


def _in_double(function: Callable[[Any], Any], rows: Any) -> Any:
    if is_torch(rows):
        return function(rows.double()).to(rows.dtype)
    return function(rows.astype(np.float64)).astype(rows.dtype)


def _probabilities(x: Any, law: Noise, points: int | None) -> Any:
    if _is_long(x):
        return _long_probabilities(x, law, points)
    if law.bounded and is_torch(x):
        from simplex.autograd import differentiable_once

        return differentiable_once(
            x, lambda z: _normalized(_integrand(z, law, points)), lambda z, v: _jacobian_product(z, v, law, points)
        )
    return _normalized(_integrand(x, law, points))


def _is_long(x: Any) -> bool:
    return x.shape[-1] > LONG and (not is_torch(x) or readable(x))


def _long_probabilities(x: Any, law: Noise, points: int | None) -> Any:
    return _once(
        x,
        lambda z: _row_by_row(lambda row: LongRow(row, law, points).probabilities(), z),
        lambda z, v: _row_by_row(lambda row, of: LongRow(row, law, points).product(of), z, v),
    )


def _long_potential(x: Any, law: Noise, points: int | None) -> Any:
    return _once(
        x,
        lambda z: _row_by_row(lambda row: LongRow(row, law, points).potential(), z, reduce=True),
        lambda z, v: v[..., None] * _row_by_row(lambda row: LongRow(row, law, points).probabilities(), z),
    )


def _once(x: Any, function: Callable[[Any], Any], product: Callable[[Any, Any], Any]) -> Any:
    if not is_torch(x):
        return function(x)
    from simplex.autograd import differentiable_once

    return differentiable_once(x, function, product)


def _row_by_row(function: Callable[..., Any], *arrays: Any, reduce: bool = False) -> Any:
    """`function` of each row of arrays (..., n), with `reduce` a number; a row without a finite maximum becomes NaN."""
    xp, x = namespace(arrays[0]), arrays[0]
    found = xp.zeros_like(x[..., 0] if reduce else x)
    for at in np.ndindex(x.shape[:-1]):
        lost = not abs(top(x[at], xp)) < math.inf
        found[at] = math.nan if lost else function(*(array[at] for array in arrays))
    return found


def _jacobian_product(x: Any, v: Any, law: Noise, points: int | None) -> Any:
    """(J v)_i = integral e^G h_i (v_i sum_j h_j - sum_j h_j v_j) ds, (..., n), without forming J."""
    xp = namespace(x)
    mass, h = _integrand(x, law, points)
    product = mass * h * (v[..., None, :] * xp.sum(h, axis=-1, keepdims=True) - h @ v[..., :, None])
    return xp.sum(product, axis=-2)


def _grid(x: Any, law: Noise, points: int | None) -> tuple[Any, Any]:
    """Points s and their weights ds, (..., K, 1), covering all but 1e-18 of the law of max(x + e)."""
    if points is not None and points < 2:
        raise ValueError(f"points must be at least 2; got {points}")
    fixed = x.detach() if is_torch(x) else x
    return _panels(fixed, law, points or 1024) if law.bounded else _even(fixed, law, points or 256)


def _even(x: Any, law: Noise, points: int) -> tuple[Any, Any]:
    """The trapezoid rule between where e^G vanishes, found by bisection, and where it is 1."""
    xp = namespace(x)
    best = top(x, xp)
    low, upper = best + law.low, best + law.high
    high = upper + math.log(x.shape[-1])
    for _ in range(12):
        middle = (low + upper) / 2
        gone = xp.sum(law.log_cdf(middle - x), axis=-1, keepdims=True) < -45
        low, upper = xp.where(gone, middle, low), xp.where(gone, upper, middle)
    step = (high - low) / points
    s = low + step * (xp.arange(points, dtype=x.dtype, device=x.device) + 0.5)
    return s[..., None], (step + 0 * s)[..., None]


def _panels(x: Any, law: Noise, points: int) -> tuple[Any, Any]:
    """Gauss-Legendre between the edges x_j + high of the best scores, from max x + low (e^G is 0 below) up."""
    xp = namespace(x)
    count = min(x.shape[-1], 64)
    best = x.topk(count, -1).values if is_torch(x) else -np.sort(-x, axis=-1)[..., :count]
    edges = xp.concatenate([xp.clip(best + law.high, best[..., :1] + law.low, None), best[..., :1] + law.low], -1)
    nodes, weights = np.polynomial.legendre.leggauss(max(points // count, 8))
    half = (edges[..., :-1, None] - edges[..., 1:, None]) / 2
    s = edges[..., 1:, None] + half * (xp.asarray(nodes, device=x.device) + 1)
    ds = half * xp.asarray(weights, device=x.device)
    shape = (*x.shape[:-1], count * len(nodes), 1)
    return s.reshape(shape), ds.reshape(shape)


def _integrand(x: Any, law: Noise, points: int | None) -> tuple[Any, Any]:
    """e^G(s) ds, (..., K, 1), and h(s - x_i), (..., K, n)."""
    xp = namespace(x)
    s, ds = _grid(x, law, points)
    lost, held = _without_lost(x, xp)
    u = s - held[..., None, :]
    log_cdf = xp.where(lost, 0, law.log_cdf(u))
    empty = log_cdf == -math.inf
    h = xp.where(lost | empty, 0, xp.exp(law.log_pdf(u) - xp.where(empty, 0, log_cdf)))
    return xp.exp(xp.sum(log_cdf, axis=-1, keepdims=True)) * ds, h


def _without_lost(x: Any, xp: Any) -> tuple[Any, Any]:
    """Which scores are -inf, (..., 1, n), and the scores with 0 in their place (all kept if none is finite)."""
    lost = (x == -math.inf) & (top(x, xp) != -math.inf)
    return lost[..., None, :], xp.where(lost, 0, x)


def _normalized(integrand: tuple[Any, Any]) -> Any:
    mass, h = integrand
    xp = namespace(mass)
    p = xp.sum(mass * h, axis=-2)
    return p / xp.sum(p, axis=-1, keepdims=True)


def _potential(x: Any, law: Noise, points: int | None) -> Any:
    """E max = s_0 + integral from s_0 of (1 - e^G) ds, where e^G vanishes below s_0."""
    if _is_long(x):
        return _long_potential(x, law, points)
    xp = namespace(x)
    s, ds = _grid(x, law, points)
    lost, held = _without_lost(x, xp)
    log_g = xp.sum(xp.where(lost, 0, law.log_cdf(s - held[..., None, :])), axis=-1, keepdims=True)
    # The weights add up to the length of the grid, which ends where e^G is 1.
    end = top(x, xp)[..., 0] + law.high + (0 if law.bounded else math.log(x.shape[-1]))
    return end - xp.sum(xp.exp(log_g) * ds, axis=-2)[..., 0]
