"""Maps from scores to the probability simplex, for numpy arrays and torch tensors.

Every map takes scores `x` of any shape and floating type, works along `dim`, divides by `temperature` > 0 (a number, or
an array that broadcasts), and returns probabilities of the same shape and type. Halves are computed in float32,
integers promoted. A score of -inf gets probability 0; a row with NaN, +inf or nothing but -inf becomes NaN. ValueError
names a bad argument. On tensors all maps have first and second derivatives and work under `torch.func.vmap`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from simplex.arrays import (
    ArrayT,
    along_rows,
    check_alpha,
    check_kind,
    check_positive,
    check_whole,
    divisor,
    is_torch,
    namespace,
    over_rows,
    top,
)
from simplex.solvers import entmax_rows

if TYPE_CHECKING:
    from simplex.arrays import Scalar

LONG = 2**14
"""Rows of CPU tensors beyond this are added up in float64."""

TAYLOR_FLOOR = {
    2: -1.0,
    4: -1.596071637983321523,
    6: -2.180607124035125904,
    8: -2.759002709962271857,
    10: -3.333551485269048803,
}
"""x*_k, the zero of f_(k-1): Taylor softmax of even order k decreases below it."""


def softmax(x: ArrayT, *, dim: int = -1, temperature: Scalar = 1.0) -> ArrayT:
    """exp(x / T) / sum exp(x / T). Never 0 for a finite score; T -> 0 splits ties evenly."""
    return over_rows(_softmax, x, dim=dim, temperature=temperature)


def log_softmax(x: ArrayT, *, dim: int = -1, temperature: Scalar = 1.0) -> ArrayT:
    """log softmax(x / T), exact where the probability itself would underflow."""
    return over_rows(_log_softmax, x, dim=dim, temperature=temperature)


def logsumexp(x: ArrayT, *, dim: int = -1, temperature: Scalar = 1.0) -> ArrayT:
    """T log sum exp(x / T), a smooth maximum: max x <= result <= max x + T log n. The axis `dim` is gone.

    Not a map to the simplex, so all of -inf gives -inf and +inf gives +inf.
    """

    check_positive(temperature, "temperature")
    check_kind(temperature, "temperature", x)
    if np.ndim(temperature) and temperature.ndim:  # type: ignore[union-attr]
        raise ValueError("temperature must be a single number for logsumexp")

    def rows(scores: Any) -> Any:
        xp, t = namespace(scores), divisor(temperature, scores, -1)
        peak = top(scores, xp)
        safe = xp.where(xp.isinf(peak), 0, peak)
        y = (scores - safe) / t
        total = y.logsumexp(-1, keepdim=True) if is_torch(y) else np.log(np.sum(np.exp(y), axis=-1, keepdims=True))
        return (safe + t * total)[..., 0]

    return over_rows(rows, x, dim=dim, shift=False, reduce=True)


def sparsemax(x: ArrayT, *, dim: int = -1, temperature: Scalar = 1.0) -> ArrayT:
    """[x / T - tau]_+, the projection onto the simplex: exact zeros. entmax at 2 (Martins & Astudillo 2016)."""
    return entmax(x, 2.0, dim=dim, temperature=temperature)


def entmax15(x: ArrayT, *, dim: int = -1, temperature: Scalar = 1.0) -> ArrayT:
    """[x / 2T - tau]_+^2, half way from softmax to sparsemax (Peters, Niculae & Martins 2019). entmax at 1.5."""
    return entmax(x, 1.5, dim=dim, temperature=temperature)


def entmax(x: ArrayT, alpha: Scalar, *, dim: int = -1, temperature: Scalar = 1.0) -> ArrayT:
    """[(a-1) x / T - tau]_+^(1/(a-1)): softmax at alpha = 1, sparsemax at 2, ever sparser above.

    `alpha` >= 1 is a number, or an array that broadcasts against `x` with size 1 along `dim`. As a tensor it is
    learnable (keep it in range with alpha = 1 + sigmoid(u)), and its derivative is right at alpha = 1 too.
    """
    check_alpha(alpha)
    order: Any = float(alpha) if isinstance(alpha, int | float | np.generic) else alpha
    if not isinstance(order, float):
        order = _row_alpha(order, x, dim)

    def rows(scores: Any) -> Any:
        if isinstance(order, float) and order == 1:
            return _softmax(scores)
        if is_torch(scores):
            from simplex.autograd import entmax_tensor

            return entmax_tensor(scores, order)
        return entmax_rows(scores - top(scores, np), order, np)

    return over_rows(rows, x, dim=dim, temperature=temperature)


def taylor_softmax(
    x: ArrayT, *, order: int = 2, dim: int = -1, temperature: Scalar = 1.0, monotone: bool = True
) -> ArrayT:
    """f_k(x / T) / sum f_k(x / T), f_k(x) = sum_{j<=k} x^j / j!, of even order k: polynomial tails, never 0.

    Not shift-invariant: the zero of the scores matters. The polynomial grows again below x*_k (-1 for k = 2), so that a
    very bad score would beat a bad one; `monotone` holds scores at x*_k, and `monotone=False` is the raw definition.
    """
    return over_rows(
        lambda rows: _softmax(_taylor_logits(rows, order, monotone)), x, dim=dim, temperature=temperature, shift=False
    )


def taylor_log_softmax(
    x: ArrayT, *, order: int = 2, dim: int = -1, temperature: Scalar = 1.0, monotone: bool = True
) -> ArrayT:
    """log taylor_softmax(x / T)."""
    return over_rows(
        lambda rows: _log_softmax(_taylor_logits(rows, order, monotone)),
        x,
        dim=dim,
        temperature=temperature,
        shift=False,
    )


def _taylor_logits(rows: Any, order: int, monotone: bool) -> Any:
    check_whole(order, "order")
    if order <= 0 or order % 2:
        raise ValueError(f"order must be even and positive, or the polynomial has a zero; got {order}")
    if order > 10:
        raise ValueError(f"order must be at most 10, where the polynomial is as good as exp; got {order}")
    xp = namespace(rows)
    lost: Any = rows == -math.inf
    held = xp.clip(rows, TAYLOR_FLOOR[order], None) if monotone else xp.where(lost, 0, rows)
    held = xp.where(held == math.inf, math.nan, held)
    return xp.where(lost, -math.inf, log_taylor(held, order))


def log_taylor(x: ArrayT, order: int) -> ArrayT:
    """log f_k(x) for finite x: Horner's rule near 0, powers of 1/x with k log|x| taken out elsewhere (no overflow)."""
    xp = namespace(x)
    near = xp.abs(x) <= 1
    small, large = xp.where(near, x, 0), xp.where(near, 1, x)
    inner = xp.ones_like(small)
    for j in range(order, 0, -1):
        inner = 1 + inner * small / j
    inverse, outer = 1 / large, xp.ones_like(large)
    for j in range(1, order + 1):  # sum_j (k! / (k-j)!) x^-j, from the highest power inwards
        outer = 1 + outer * inverse * j
    far = order * xp.log(abs(large)) - math.lgamma(order + 1) + xp.log(xp.where(near, 1, outer))
    return xp.where(near, xp.log(inner), far)  # type: ignore[no-any-return]


def sparse_softmax(
    x: ArrayT, *, top_k: int | None = None, top_p: float | None = None, dim: int = -1, temperature: Scalar = 1.0
) -> ArrayT:
    """Softmax over the `top_k` best scores, or over the nucleus: the shortest prefix of mass >= `top_p`.

    Exactly one of the two. top_k >= n or top_p = 1 is softmax. Ties go to the lower position. The selection is constant
    under differentiation.
    """
    if (top_k is None) == (top_p is None):
        raise ValueError("exactly one of top_k and top_p must be given")
    if top_k is not None:
        check_whole(top_k, "top_k")
        if top_k <= 0:
            raise ValueError(f"top_k must be at least 1; got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1]; got {top_p}")

    def rows(scores: Any) -> Any:
        keep = nucleus_mask(scores, top_p or 1.0) if top_k is None else top_k_mask(scores, top_k)
        return _softmax(namespace(scores).where(keep, scores, -math.inf))

    return over_rows(rows, x, dim=dim, temperature=temperature)


def top_k_mask(rows: Any, k: int) -> Any:
    """Where the k best of each row stand (..., n), ties to the lower position; a row with NaN keeps everything."""
    xp = namespace(rows)
    if k >= int(rows.shape[-1]):
        return xp.ones_like(rows, dtype=xp.bool if xp is not np else np.bool_)
    least = rows.detach().topk(k, -1)[0][..., -1:] if is_torch(rows) else np.partition(rows, -k, axis=-1)[..., [-k]]
    return _first(rows, least, k, xp)


def nucleus_mask(rows: Any, mass: float) -> Any:
    """Where the mass ranked strictly before is < `mass`, always the first; a row with NaN keeps everything."""
    xp = namespace(rows)
    if mass == 1:
        return xp.ones_like(rows, dtype=xp.bool if xp is not np else np.bool_)
    ranked: Any = rows.detach().sort(-1, descending=True)[0] if is_torch(rows) else -np.sort(-rows, axis=-1)
    before = xp.cumsum(_softmax(ranked), -1, dtype=xp.float64)[..., :-1]
    taken = 1 + xp.sum(before < mass, axis=-1, keepdims=True)
    least = ranked.gather(-1, taken - 1) if is_torch(rows) else np.take_along_axis(ranked, taken - 1, -1)
    return _first(rows, least, taken, xp)


def _first(rows: Any, least: Any, k: Any, xp: Any) -> Any:
    """Where scores exceed the k-th best, `least` (..., 1), and the first of those that equal it, k in all."""
    above, tied = rows > least, rows == least
    room = k - xp.sum(above, axis=-1, keepdims=True)
    return above | (tied & (xp.cumsum(tied, -1) <= room)) | xp.isnan(top(rows, xp))


def _wide(rows: Any) -> Any:
    """Long rows of a CPU tensor in float64: torch adds them up in order, and ten million float32 lose 3 digits."""
    return rows.double() if rows.device.type == "cpu" and rows.shape[-1] > LONG else rows


def _softmax(rows: Any) -> Any:
    if is_torch(rows):
        return _wide(rows).softmax(-1).to(rows.dtype)
    e = np.exp(rows - np.max(rows, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def _log_softmax(rows: Any) -> Any:
    if is_torch(rows):
        return _wide(rows).log_softmax(-1).to(rows.dtype)
    shifted = rows - np.max(rows, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def _row_alpha(alpha: Any, x: Any, dim: int) -> Any:
    """An array-valued order with its axis `dim` moved last, where over_rows puts the scores."""
    if is_torch(x) and not is_torch(alpha):
        raise ValueError(f"alpha must be a number or a tensor when x is a tensor; got {type(alpha).__name__}")
    if not is_torch(x) and is_torch(alpha):
        raise ValueError("alpha must be a number or an array when x is an array; got a tensor")
    alpha = alpha if is_torch(alpha) else np.asarray(alpha, dtype=np.float64)
    rows = along_rows(alpha if alpha.ndim else alpha.reshape((1,)), len(x.shape), dim)
    if rows.shape[-1] != 1:
        raise ValueError(f"alpha must have size 1 along dim={dim}; got shape {tuple(alpha.shape)}")
    return rows
