"""The threshold of an entmax row: tau such that sum_i [z_i - tau]_+^(1/b) = 1, z = b (x - max x), b = alpha - 1.

Everything here works on rows y = x - max(x) <= 0, shape (..., n), in numpy and torch alike, and returns how far the
threshold lies below the row maximum, u = -tau in [n^-b, 1]. Carrying u instead of tau loses no digits when the support
is large (u is small, tau + 1 would be rounded), and log p_1 = log(u) / b none when alpha is near 1.

The iteration is Newton's on the convex function ||[z - tau]_+||_(1/b) - 1, started at tau = z_1 - 1. It never
overshoots and needs 3 to 9 steps:

    tau <- tau + (h - h^(1-b)) / S,   h = sum [z - tau]_+^(1/b),   S = sum [z - tau]_+^(1/b - 1)

Sparsemax: Martins & Astudillo 2016. Entmax: Peters, Niculae & Martins 2019.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_STEPS = 100


def entmax_rows(y: Any, alpha: Any, xp: Any) -> Any:
    """Probabilities of rows y = x - max(x), shape (..., n). `alpha`: a float > 1, or an array (..., 1) of them."""
    if isinstance(alpha, float) and alpha in (1.5, 2.0):
        return polynomial(y, newton(y, alpha, xp), alpha, xp)
    beta = alpha - 1
    wide = (bool((beta > 1).any()) if hasattr(beta, "any") else beta > 1) and y.dtype != xp.float64
    # Above alpha = 2 a root multiplies rounding errors at the edge of the support: 6e-8 becomes 2e-4 at alpha = 3.
    rows = xp.asarray(y, dtype=xp.float64) if wide else y
    p = general(rows, log_top(rows, beta, xp), beta, xp)
    p = p / _sum(p, xp)  # log p_1 is large where the support is, and rounded: all p are off by the same factor
    return xp.asarray(p, dtype=y.dtype) if wide else p


def polynomial(y: Any, u: Any, alpha: float, xp: Any) -> Any:
    """[u + b y]_+^(1/b) for the two orders where 1/b is a whole number: alpha = 2 and alpha = 1.5."""
    if alpha == 2.0:
        return xp.clip(u + y, 0, None)
    root = xp.clip(u + y / 2, 0, None)
    return root * root


def newton(y: Any, alpha: float, xp: Any) -> Any:
    """u, shape (..., 1), for alpha = 2 (finitely many steps) or 1.5, over all n scores."""
    z = y if alpha == 2.0 else y / 2
    u = xp.ones_like(y[..., :1])
    tolerance = 2 * float(xp.finfo(y.dtype).eps)
    for _ in range(MAX_STEPS):
        above = xp.clip(u + z, 0, None)
        if alpha == 2.0:
            step = (_sum(above, xp) - 1) / _sum(xp.sign(above), xp)
        else:
            h = _sum(above * above, xp)
            step = (h - xp.sqrt(h)) / _sum(above, xp)
        u = u - step
        if not bool((step > tolerance * u).any()):
            break
    return u


def sorted_threshold(y: Any, alpha: float, xp: Any) -> Any:
    """u in closed form from y sorted in descending order, alpha = 2 or 1.5.

    alpha = 2:   tau_k = (sum_{i<=k} y_i - 1) / k, at the last k with tau_k < y_k.
    alpha = 1.5: tau_k = mean_k - sqrt([1/k - var_k]_+) of z = y/2 clipped at -1, at the last k with tau_k <= z_k.
                 Nothing below -1 can be in the support, and the clip keeps the sums of squares free of cancellation.
    """
    if alpha == 2.0:
        z = y
        k = _ranks(z, xp)
        tau = (xp.cumsum(xp.clip(z, -1, None), -1) - 1) / k
        inside = tau < z
    else:
        z = xp.clip(y / 2, -1, None)
        k = _ranks(z, xp)
        mean = xp.cumsum(z, -1) / k
        spread = xp.cumsum(z * z, -1) / k - mean * mean
        tau = mean - xp.sqrt(xp.clip(1 / k - spread, 0, None))
        inside = tau <= z
    size = xp.clip(xp.sum(inside, axis=-1, keepdims=True), 1, None)
    return -xp.take_along_axis(tau, size - 1, -1) if xp is np else -xp.gather(tau, -1, size - 1)


def log_top(y: Any, beta: Any, xp: Any) -> Any:
    """log p_1, shape (..., 1), the logarithm of the largest probability, for any b = alpha - 1 >= 0.

    With q_i = p_i / p_1 = [1 + b y_i p_1^-b]_+^(1/b) the Newton step reads, without cancellation at any b,
    log p_1 += log1p(Q expm1(-b log h) / R) / b, with Q = sum q, R = sum q^(1-b), h = p_1 Q. Convex only up to b = 1:
    above, bisection over [-log n, 0].
    """
    beta = _at_least(beta, xp)
    log_p = xp.zeros_like(y[..., :1])
    tolerance = 4 * float(xp.finfo(y.dtype).eps)
    for _ in range(MAX_STEPS):
        log_q, inside = _log_ratio(y, log_p, beta, xp)
        q = xp.where(inside, xp.exp(log_q), 0)
        total = _sum(q, xp)
        slope = _sum(xp.where(inside, xp.exp((1 - beta) * log_q), 0), xp)
        # Never above 0 in exact numbers; a first step down to n = 1e7 ties is rounded to 1 %, and taken back here.
        step = xp.log1p(xp.clip(total * xp.expm1(-beta * (log_p + xp.log(total))) / slope, -0.999999, 1)) / beta
        log_p = xp.clip(log_p + step, None, 0)
        if not bool((abs(step) > tolerance * (1 - log_p)).any()):
            break
    if isinstance(beta, float):
        return _bisect(y, beta, xp) if beta > 1 else log_p
    return xp.where(beta > 1, _bisect(y, beta, xp), log_p) if bool((beta > 1).any()) else log_p


def general(y: Any, log_p: Any, beta: Any, xp: Any) -> Any:
    """Probabilities from log p_1: exp(log p_1 + log1p(b y p_1^-b) / b), zero outside the support."""
    log_q, inside = _log_ratio(y, log_p, _at_least(beta, xp), xp)
    return xp.where(inside, xp.exp(log_p + log_q), 0)


def _log_ratio(y: Any, log_p: Any, beta: Any, xp: Any) -> tuple[Any, Any]:
    w = beta * y * xp.exp(-beta * log_p)
    inside = ~(w <= -1)  # NaN counts as inside, so that it reaches the whole row
    return xp.log1p(xp.where(inside, w, 0)) / beta, inside


def _bisect(y: Any, beta: Any, xp: Any) -> Any:
    low = xp.zeros_like(y[..., :1]) - float(np.log(y.shape[-1]))
    high = xp.zeros_like(low)
    for _ in range(MAX_STEPS):
        middle = (low + high) / 2
        log_q, inside = _log_ratio(y, middle, beta, xp)
        above = xp.exp(middle) * _sum(xp.where(inside, xp.exp(log_q), 0), xp) > 1
        low, high = xp.where(above, low, middle), xp.where(above, middle, high)
        if not bool((high - low > 1e-17 - low * 2e-16).any()):
            break
    bad = xp.isnan(_sum(y, xp))
    return xp.where(bad, xp.nan, (low + high) / 2)


def _at_least(beta: Any, xp: Any) -> Any:
    # log1p(b t) / b is exact down to the smallest normal numbers; only b = 0 itself divides by zero.
    return max(beta, 1e-30) if isinstance(beta, float) else xp.clip(beta, 1e-30, None)


def _sum(x: Any, xp: Any) -> Any:
    return xp.sum(x, axis=-1, keepdims=True)


def _ranks(z: Any, xp: Any) -> Any:
    n = z.shape[-1]
    return xp.arange(1, n + 1, dtype=z.dtype, device=z.device)
