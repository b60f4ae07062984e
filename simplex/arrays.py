"""One code for numpy arrays and torch tensors, and the input policy every map shares.

The maps are written once against the functions numpy and torch have in common (`xp.sum(x, axis=-1, keepdims=True)`
means the same in both). This module finds `xp` without ever importing torch: an array can only be a tensor if somebody
else has imported torch before.

The policy: half precision is computed in float32 and cast back, integers are promoted to floating point, a score of
-inf has probability 0, and a row holding NaN, +inf or nothing but -inf becomes a row of NaN.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any] | torch.Tensor
    Scalar: TypeAlias = float | NDArray[Any] | torch.Tensor

ArrayT = TypeVar("ArrayT", bound="Array")


def is_torch(x: Any) -> bool:
    """Whether `x` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def namespace(x: Any) -> Any:
    """The module whose functions work on `x`: torch or numpy."""
    return sys.modules["torch"] if is_torch(x) else np


def promote(x: Any, name: str = "x") -> Any:
    """`x` in the floating-point type it is computed in: halves in float32, integers in the default float type."""
    if is_torch(x):
        torch = sys.modules["torch"]
        if x.dtype in (torch.float16, torch.bfloat16):
            return x.to(torch.float32)
        if x.is_complex():
            raise ValueError(f"{name} must be real; got {x.dtype}")
        return x if x.is_floating_point() else x.to(torch.get_default_dtype())
    x = np.asarray(x)
    if x.dtype == np.float16:
        return x.astype(np.float32)
    if x.dtype.kind in "biu":
        return x.astype(np.float64)
    if x.dtype.kind != "f":
        raise ValueError(f"{name} must hold real numbers; got dtype {x.dtype}")
    return x


def like(result: Any, x: Any) -> Any:
    """`result` cast back to the type of `x` when `x` is of half precision."""
    if is_torch(x):
        return result.to(x.dtype) if x.is_floating_point() and result.dtype != x.dtype else result
    dtype = getattr(x, "dtype", None)
    return result.astype(dtype) if dtype == np.float16 else result


def check_rows(x: Any, dim: int, name: str = "x") -> None:
    """Refuse an array that has no axis `dim`, or nothing along it."""
    if x.ndim == 0 or not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim must name an axis of {name}; got dim={dim} for {name} of shape {tuple(x.shape)}")
    if x.shape[dim] == 0:
        raise ValueError(f"{name} must hold at least one score along dim={dim}; got shape {tuple(x.shape)}")


def check_positive(value: Any, name: str) -> None:
    """Refuse a number, or an array of numbers, that is not finite and > 0."""
    if not _all(value, lambda v: (v > 0) & (v < math.inf)):
        raise ValueError(f"{name} must be positive and finite; got {value}")


def check_alpha(value: Any) -> None:
    """Refuse an entmax order below 1 (there is no such map) or without end."""
    if not _all(value, lambda v: (v >= 1) & (v < math.inf)):
        raise ValueError(f"alpha must be at least 1 and finite; got {value}")


def check_whole(value: Any, name: str) -> None:
    """Refuse what is no whole number."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} must be a whole number; got {value}")


def check_kind(value: Any, name: str, x: Any) -> None:
    """Refuse an array where `x` is a tensor, and a tensor where it is an array: single numbers go with both."""
    if isinstance(value, int | float):
        return
    if is_torch(value) != is_torch(x) and (is_torch(value) or value.ndim):
        kinds = type(value).__name__, type(x).__name__
        raise ValueError(f"{name} must be a number or of the kind of x; got {kinds[0]} for x of kind {kinds[1]}")


def _all(value: Any, holds: Callable[[Any], Any]) -> bool:
    if isinstance(value, int | float):
        return bool(holds(value))
    if not is_torch(value):
        with suppress(TypeError):  # no number
            return bool(np.all(holds(np.asarray(value))))
        return False
    return not readable(value) or bool(holds(value.detach()).all())


def readable(x: Any) -> bool:
    """Whether a tensor's values may be looked at: not while compiling a graph or under a torch.func transform."""
    import torch

    return not (torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x))


def top(x: Any, xp: Any) -> Any:
    """The maximum of each row, shape (..., 1), held constant under differentiation."""
    return x.detach().amax(-1, keepdim=True) if is_torch(x) else xp.max(x, axis=-1, keepdims=True)


def moved(x: Any, source: int, destination: int) -> Any:
    """`x` with one axis moved. (torch.moveaxis has no rule under vmap, movedim has.)"""
    return x.movedim(source, destination) if is_torch(x) else np.moveaxis(x, source, destination)


def along_rows(value: Any, ndim: int, dim: int) -> Any:
    """An array that broadcasts against scores of `ndim` axes, as it does once their axis `dim` is moved last."""
    value = value[(None,) * (ndim - value.ndim)]
    return moved(value, dim if dim < 0 else dim - ndim, -1)  # counted from the end, as broadcasting does


def divisor(temperature: Any, scores: Any, dim: int) -> Any:
    """`temperature` as it divides the rows of `scores`: never below their type's least normal number, so never 0."""
    least = float(namespace(scores).finfo(scores.dtype).tiny)
    if isinstance(temperature, float | int):
        return max(temperature, least)
    if temperature.ndim:
        temperature = along_rows(temperature, scores.ndim, dim)
    return temperature.clamp(min=least) if is_torch(temperature) else np.maximum(temperature, least)


def quiet(xp: Any) -> AbstractContextManager[Any]:
    """numpy's warnings off: -inf and NaN are answered by the policy, not by a warning."""
    return np.errstate(all="ignore") if xp is np else nullcontext()


def over_rows(
    row_map: Callable[[Any], Any],
    x: ArrayT,
    *,
    dim: int,
    temperature: Scalar = 1.0,
    shift: bool = True,
    reduce: bool = False,
) -> ArrayT:
    """Apply `row_map`, a function of (..., n) along the last axis, to x / temperature along `dim`.

    With `shift` (maps that ignore a constant added to all scores) the row maximum is taken off before the division,
    so that a large common offset costs no digits. With `reduce` the axis is gone from the result.
    """
    scores = promote(x)
    check_rows(scores, dim)
    check_positive(temperature, "temperature")
    check_kind(temperature, "temperature", x)
    xp = namespace(scores)
    last = dim in (-1, scores.ndim - 1)
    with quiet(xp):
        rows = scores if last else moved(scores, dim, -1)
        if not (isinstance(temperature, float | int) and temperature == 1):
            rows = (rows - top(rows, xp) if shift else rows) / divisor(temperature, scores, dim)
        result = row_map(rows)
    if not (last or reduce):
        result = moved(result, -1, dim)
    return like(result, x)  # type: ignore[no-any-return]
