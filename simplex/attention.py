"""Attention with the Taylor softmax of order 2, in time linear in the sequence length.

f_2(q.k) = 1 + q.k + (q.k)^2 / 2 is the inner product of the features

    phi(u) = [1, u, u_i^2 / sqrt 2, u_i u_j (i < j)],   of size 1 + d + d (d+1) / 2,

so that sum_j f_2(q.k_j) v_j = phi(q) . sum_j phi(k_j) v_j^T: the sum over keys is one matrix, whatever the query.
Queries and keys are divided by d^(1/4), which is the usual 1/sqrt(d). f_2 >= 1/2, so nothing divides by zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from simplex.arrays import ArrayT, is_torch, like, namespace, promote

CHUNK = 64


def taylor_attention(q: ArrayT, k: ArrayT, v: ArrayT, *, causal: bool = False) -> ArrayT:
    """sum_j f_2(q_i.k_j / sqrt d) v_j / sum_j f_2(q_i.k_j / sqrt d), over j <= i when `causal`.

    q (..., m, d), k (..., n, d), v (..., n, e) -> (..., m, e); m = n when causal. Not shift-invariant and, for products
    below -1, not monotone (see maps.taylor_softmax): keep |q.k| / sqrt d small, e.g. by normalizing.
    """
    if q.ndim < 2 or k.ndim < 2 or v.ndim < 2:
        raise ValueError("q, k and v must have shape (..., length, features)")
    if q.shape[-1] != k.shape[-1] or q.shape[-1] == 0:
        raise ValueError(f"q and k must have the same number of features; got {q.shape[-1]} and {k.shape[-1]}")
    if k.shape[-2] != v.shape[-2] or k.shape[-2] == 0:
        raise ValueError(f"k and v must have the same length, at least 1; got {k.shape[-2]} and {v.shape[-2]}")
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(f"q and k must have the same length when causal; got {q.shape[-2]} and {k.shape[-2]}")
    query, key, value = promote(q, "q"), promote(k, "k"), promote(v, "v")
    xp = namespace(query)
    scale = query.shape[-1] ** -0.25
    query, key = query * scale, key * scale
    # A column of ones beside v carries the denominator along.
    value = xp.concatenate([value, xp.ones_like(value[..., :1])], -1)
    summed = _causal(query, key, value, xp) if causal else features(query) @ (_transposed(features(key)) @ value)
    return like(summed[..., :-1] / summed[..., -1:], q)  # type: ignore[no-any-return]


def features(u: Any) -> Any:
    """phi(u), (..., d) -> (..., 1 + d + d (d+1) / 2), with phi(u) . phi(w) = f_2(u . w)."""
    xp = namespace(u)
    rows, columns = np.tril_indices(u.shape[-1], -1)
    pairs = u[..., rows.tolist()] * u[..., columns.tolist()]
    return xp.concatenate([xp.ones_like(u[..., :1]), u, u * u / math.sqrt(2), pairs], -1)


def _causal(query: Any, key: Any, value: Any, xp: Any) -> Any:
    """By chunks: the past enters as one matrix, the chunk itself in quadratic form."""
    length = key.shape[-2]
    past: Any = 0
    outputs = []
    for start in range(0, length, CHUNK):
        part = slice(start, min(start + CHUNK, length))
        q, k, v = query[..., part, :], key[..., part, :], value[..., part, :]
        products = q @ _transposed(k)
        within = xp.tril(1 + products + products * products / 2) @ v
        outputs.append(within + features(q) @ past if start else within)
        past = past + _transposed(features(k)) @ v
    return xp.concatenate(outputs, -2)


def _transposed(x: Any) -> Any:
    return x.transpose(-1, -2) if is_torch(x) else np.swapaxes(x, -1, -2)
