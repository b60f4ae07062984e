"""Targets of a loss: class indices or soft targets, with ignored rows, class weights and reductions.

Class targets are integers of the shape of the scores without `dim`; soft targets are floating-point distributions of
the full shape. `ignore_index` takes rows out of loss, gradient and mean. The mean of weighted rows divides by the sum
of their weights, as torch's cross entropy does for class targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simplex.arrays import (
    check_positive,
    check_rows,
    divisor,
    is_torch,
    like,
    moved,
    namespace,
    promote,
    quiet,
    readable,
    top,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from simplex.arrays import Array, Scalar

Reduction = Literal["none", "mean", "sum"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a row should go: classes (..., 1), or a distribution (..., n) when `soft`."""

    value: Any
    soft: bool

    def dot(self, scores: Any) -> Any:
        """<y, scores> of each row, (...). A score of -inf counts only where y is not 0."""
        xp = namespace(scores)
        if self.soft:
            return xp.sum(xp.where(self.value != 0, self.value * xp.where(self.value != 0, scores, 0), 0), axis=-1)
        if xp is np:
            return np.take_along_axis(scores, self.value, -1)[..., 0]
        return scores.gather(-1, self.value)[..., 0]

    def taken_from(self, p: Any) -> Any:
        """p - y, (..., n)."""
        if self.soft:
            return p - self.value
        return p.scatter_add(-1, self.value, -p.new_ones(()).expand(self.value.shape))


def row_loss(
    loss: Callable[[Any, Target], Any],
    x: Array,
    target: Any,
    *,
    dim: int,
    temperature: Scalar,
    weight: Array | None,
    ignore_index: int | None,
    reduction: Reduction,
    shift: bool = True,
) -> Any:
    """Check, bring to rows, apply `loss(rows, target) -> (...)`, weigh and reduce.

    The loss is that of the scores x / temperature, in their type.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be none, mean or sum; got {reduction!r}")
    scores = promote(x)
    check_rows(scores, dim)
    check_positive(temperature, "temperature")
    xp = namespace(scores)
    rows = moved(scores, dim, -1)
    goal, kept = as_target(target, rows, dim, ignore_index)
    with quiet(xp):
        if kept is not None:  # a constant row keeps NaN and -inf of ignored rows out of the gradient
            rows = xp.where(kept[..., None], rows, 0)
        if shift:
            rows = rows - _finite_top(rows, xp)
        values = loss(rows / divisor(temperature, scores, dim), goal)
        weights = _weights(weight, goal, values, xp)
        if kept is not None:
            values = xp.where(kept, values, 0)
            weights = xp.where(kept, xp.ones_like(values) if weights is None else weights, 0)
        return like(_reduce(values, weights, reduction, xp), x)


def as_target(target: Any, rows: Any, dim: int, ignore_index: int | None) -> tuple[Target, Any]:
    """The target of rows (..., n), and which rows count, (...), None for all."""
    xp = namespace(rows)
    if is_torch(rows) != is_torch(target) and (is_torch(rows) or is_torch(target)):
        raise ValueError("x and target must both be tensors or both be arrays")
    target = target if is_torch(target) else np.asarray(target)
    if target.dtype.is_floating_point if xp is not np else target.dtype.kind == "f":
        if len(target.shape) != len(rows.shape):
            raise ValueError(f"soft target must have the shape of x; got {tuple(target.shape)}")
        soft = moved(target, dim, -1)
        if soft.shape != rows.shape:
            raise ValueError(f"soft target must have the shape of x; got {tuple(target.shape)}")
        return Target(soft.to(rows.dtype) if xp is not np else soft.astype(rows.dtype), True), None
    if tuple(target.shape) != tuple(rows.shape[:-1]):
        wanted = tuple(rows.shape[:-1])
        raise ValueError(f"target must hold one class per row, shape {wanted}; got shape {tuple(target.shape)}")
    target = target.long() if xp is not np else target.astype(np.int64)
    kept = None if ignore_index is None else target != ignore_index
    classes = target if kept is None else xp.where(kept, target, 0)
    check_classes(classes, rows.shape[-1])
    return Target(classes[..., None], False), kept


def negentropy(p: Any, alpha: Any) -> Any:
    """O(p) = (sum p^alpha - 1) / (alpha (alpha-1)) of rows (..., n), sum p log p at alpha = 1, without cancellation."""
    xp = namespace(p)
    log_p = xp.log(xp.where(p > 0, p, 1))
    t = (alpha - 1) * log_p
    safe = xp.where(t == 0, 1, t)
    rise = xp.where(t == 0, 1, xp.expm1(safe) / safe)  # (e^t - 1) / t
    total: Any = xp.sum(p * log_p * rise, axis=-1)
    return total / alpha


def check_classes(classes: Any, n: int) -> None:
    """Refuse a class outside [0, n)."""
    if is_torch(classes) and not readable(classes):
        return
    wrong = (classes < 0) | (classes >= n)
    if bool(wrong.any()):
        raise ValueError(f"target must lie in [0, {n}) or equal ignore_index; got {int(classes[wrong][0])}")


def _finite_top(rows: Any, xp: Any) -> Any:
    best = top(rows, xp)
    return xp.where(xp.isinf(best), 0, best)


def _weights(weight: Any, goal: Target, values: Any, xp: Any) -> Any:
    if weight is None:
        return None
    weight = weight.to(values.dtype) if is_torch(weight) else np.asarray(weight, dtype=values.dtype)
    if weight.ndim != 1:
        raise ValueError(f"weight must hold one number per class; got shape {tuple(weight.shape)}")
    return xp.sum(goal.value * weight, axis=-1) if goal.soft else weight[goal.value[..., 0]]


def _reduce(values: Any, weights: Any, reduction: Reduction, xp: Any) -> Any:
    if weights is not None:
        # A row of weight 0 does not count, whatever its loss.
        values = xp.where(weights == 0, 0, values * weights)
    if reduction == "none":
        return values
    if reduction == "sum":
        return xp.sum(values)
    if weights is None:
        return xp.mean(values)
    return xp.sum(values) / xp.sum(weights)
