"""Losses on scores, for class targets and soft targets, numpy and torch.

A Fenchel-Young loss L(x, y) = max_p [<p, x> - O(p)] + O(y) - <y, x> belongs to the map p(x) that attains the maximum.
It is convex, never negative, 0 exactly where p(x) = y, and its gradient is p - y (Blondel, Martins & Niculae 2020). For
entmax-alpha O(p) = (sum p^alpha - 1) / (alpha (alpha-1)): cross entropy at alpha = 1; above, the loss is exactly 0
once x_t - max x_j >= 1 / (alpha-1), a margin built in.

Common arguments: `x` (..., n along `dim`) scores; `target` classes (integers, the shape of x without `dim`) or soft
targets (floats, the shape of x, constants under differentiation); `temperature` divides x; `weight` (n) one number
per class; `ignore_index` takes rows out; `reduction` is mean (weighted), sum or none. The mean over no rows is NaN, as
in torch. A target at -inf costs +inf, never NaN. ValueError names a bad argument.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from simplex.arrays import check_alpha, is_torch, namespace
from simplex.maps import entmax, log_softmax, logsumexp, nucleus_mask, softmax, taylor_log_softmax, top_k_mask
from simplex.targets import Reduction, Target, negentropy, row_loss

if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    from simplex.arrays import Array, Scalar

    class Common(TypedDict, total=False):
        """The keyword arguments all losses share."""

        dim: int
        temperature: Scalar
        weight: Array | None
        ignore_index: int | None
        reduction: Reduction


def _apply(loss: Any, x: Array, target: Any, options: Common, shift: bool = True) -> Any:
    unknown = options.keys() - {"dim", "temperature", "weight", "ignore_index", "reduction"}
    if unknown:
        raise TypeError(f"unexpected keyword arguments: {sorted(unknown)}")
    return row_loss(
        loss,
        x,
        target,
        dim=options.get("dim", -1),
        temperature=options.get("temperature", 1.0),
        weight=options.get("weight"),
        ignore_index=options.get("ignore_index", -100),
        reduction=options.get("reduction", "mean"),
        shift=shift,
    )


def cross_entropy(x: Array, target: Any, **options: Unpack[Common]) -> Any:
    """logsumexp(x) - x_t, plus sum y log y for soft targets: the Fenchel-Young loss of softmax."""
    return _apply(lambda rows, goal: _negative_log(log_softmax(rows), goal), x, target, options)


def taylor(x: Array, target: Any, *, order: int = 2, monotone: bool = True, **options: Unpack[Common]) -> Any:
    """-log p_t of Taylor softmax of even `order` (see maps.taylor_softmax). Not convex; not shift-invariant."""

    def loss(rows: Any, goal: Target) -> Any:
        return _negative_log(taylor_log_softmax(rows, order=order, monotone=monotone), goal)

    return _apply(loss, x, target, options, shift=False)


def smooth_accuracy(x: Array, target: Any, **options: Unpack[Common]) -> Any:
    """1 - p_t under softmax, the expected error. Its gradient p_t (p - e_t) vanishes at both ends: for fine-tuning."""
    return _apply(lambda rows, goal: 1 - goal.dot(softmax(rows)), x, target, options)


def fenchel_young(x: Array, target: Any, alpha: Scalar, **options: Unpack[Common]) -> Any:
    """The Fenchel-Young loss of entmax-alpha; a tensor `alpha` (one number) is learnable. Gradient entmax(x) - y."""
    check_alpha(alpha)
    alpha = float(alpha) if isinstance(alpha, int | float) else alpha
    if isinstance(alpha, float) and alpha == 1:
        return cross_entropy(x, target, **options)

    def loss(rows: Any, goal: Target) -> Any:
        p = entmax(rows, alpha)
        if is_torch(rows):
            from simplex.autograd import fenchel_young_tensor

            return fenchel_young_tensor(rows, p, goal, cast(Any, alpha))
        gap = np.sum(p * np.where(p > 0, rows, 0), axis=-1) - goal.dot(rows)
        value = gap - negentropy(p, alpha) + (negentropy(goal.value, alpha) if goal.soft else 0)
        return np.maximum(value, 0)

    return _apply(loss, x, target, options)


def sparsemax_loss(x: Array, target: Any, **options: Unpack[Common]) -> Any:
    """1/2 - x_t + 1/2 sum_support (x^2 - tau^2): the Fenchel-Young loss of sparsemax, 0 at a margin of 1."""
    return fenchel_young(x, target, 2.0, **options)


def entmax15_loss(x: Array, target: Any, **options: Unpack[Common]) -> Any:
    """The Fenchel-Young loss of entmax-1.5, 0 at a margin of 2."""
    return fenchel_young(x, target, 1.5, **options)


def sparse_softmax_loss(
    x: Array, target: Any, *, top_k: int | None = None, top_p: float | None = None, **options: Unpack[Common]
) -> Any:
    """logsumexp over the top-k (or nucleus) - x_t. Gradient p_sparse - e_t, for a target outside the support too.

    Not bounded below by 0 when the target is outside. For fine-tuning: worse than cross entropy from scratch.
    """
    if (top_k is None) == (top_p is None):
        raise ValueError("exactly one of top_k and top_p must be given")

    def loss(rows: Any, goal: Target) -> Any:
        keep = nucleus_mask(rows, top_p or 1.0) if top_k is None else top_k_mask(rows, top_k)
        kept = namespace(rows).where(keep, rows, -math.inf)
        return logsumexp(kept) - goal.dot(rows)

    return _apply(loss, x, target, options)


def stop_gradient(x: Array, target: Any, alpha: Scalar = 1.0, **options: Unpack[Common]) -> Any:
    """The Fenchel-Young value of entmax-alpha with the gradient written out: sg(p - y) . x + sg(value - the same).

    For any autograd system without a rule for the map. First derivatives only. (The form (p - y) . sg(x) found in print
    has the gradient J^T x, which is another one.)
    """

    def loss(rows: Any, goal: Target) -> Any:
        value = _value(rows, goal, alpha)
        if not is_torch(rows):
            return value
        pull = (goal.taken_from(entmax(rows, alpha)).detach() * rows.clamp(min=-1e30)).sum(-1)
        return pull + (value - pull).detach()

    return _apply(loss, x, target, options)


def _value(rows: Any, goal: Target, alpha: Scalar) -> Any:
    target = goal.value if goal.soft else goal.value[..., 0]
    return fenchel_young(rows, target, alpha, reduction="none", ignore_index=None)


def _negative_log(log_p: Any, goal: Target) -> Any:
    """-<y, log p>, and for soft targets + sum y log y, so that it is 0 at p = y."""
    loss = -goal.dot(log_p)
    return loss + negentropy(goal.value, 1.0) if goal.soft else loss
