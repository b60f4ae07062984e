"""entmax on tensors, with its derivatives of every order.

p = entmax(x) has the symmetric Jacobian diag(s) - s s^T / sum(s) with s = p^(2-alpha) on the support and 0 elsewhere
(Peters, Niculae & Martins 2019), and

    dp/dalpha = s U / S - u,   u_i = p_i l_i^2 phi(-b l_i),  l = log p,  phi(t) = (e^t - 1 - t) / t^2,  U = sum u,

which is the published (p - s/S) / b^2 - (h - s/S sum h) / b, h = p log p, b = alpha - 1, without its cancellation: at
alpha = 1 it is -p (l^2 - sum p l^2) / 2.

Both products are autograd Functions, so that the forward pass and the first derivative may use any fast algorithm while
the second derivative is spelled in plain differentiable operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch

from simplex import operators
from simplex.targets import Target, negentropy
from simplex.topk import jacobian_product, solve

Order: TypeAlias = float | torch.Tensor


def entmax_tensor(x: torch.Tensor, alpha: Order) -> torch.Tensor:
    """Probabilities of rows (..., n). `alpha`: a float > 1, or a tensor that broadcasts to (..., 1)."""
    if isinstance(alpha, torch.Tensor):
        alpha = alpha.to(x.dtype).expand(*x.shape[:-1], 1)
    p, _ = _call(Entmax, x, alpha)
    return cast(torch.Tensor, p)


def power(p: torch.Tensor, exponent: Order) -> torch.Tensor:
    """p^exponent where p > 0, and 0 elsewhere with derivative 0. NaN stays NaN."""
    inside = p != 0
    return torch.where(inside, torch.where(inside, p, 1) ** exponent, 0)


def log_or_zero(p: torch.Tensor) -> torch.Tensor:
    """log p where p > 0, and 0 elsewhere with derivative 0."""
    return torch.where(p > 0, p, 1).log()


def phi(t: torch.Tensor) -> torch.Tensor:
    """(e^t - 1 - t) / t^2, by its series near 0; 1/2 at 0."""
    near = t.abs() < 0.3
    small, large = torch.where(near, t, 0), torch.where(near, 1, t)
    series = torch.ones_like(small)
    for j in range(13, 2, -1):
        series = 1 + series * small / j
    return torch.where(near, series / 2, (large.expm1() - large) / large**2)


def derivative_in_alpha(p: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """dp/dalpha, shape (..., n)."""
    log_p = log_or_zero(p)
    s = power(p, 2 - alpha)
    u = p * log_p**2 * phi((1 - alpha) * log_p)
    return s * (u.sum(-1, keepdim=True) / s.sum(-1, keepdim=True)) - u


class Entmax(torch.autograd.Function):
    """(x, alpha) -> p and the columns that can be nonzero, shape (..., k), k = 0 for "any"."""

    @staticmethod
    def forward(x: torch.Tensor, alpha: Order) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.compiler.is_compiling():
            p = operators.entmax(x, *_flat(alpha))
            return p, x.new_empty((*x.shape[:-1], 0), dtype=torch.int64)
        return solve(x, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        p, columns = output
        ctx.mark_non_differentiable(columns)
        _save(ctx, inputs[1], p, columns)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        (p, columns), alpha = _saved(ctx)
        gx = _call(JacobianProduct, p, g, alpha, columns) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return gx, None
        return gx, (g * derivative_in_alpha(p, alpha)).sum(-1, keepdim=True)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: torch.Tensor, alpha: Order) -> Any:
        return _call(Entmax, *_batched(info, in_dims, x, alpha)), (0, 0)


class JacobianProduct(torch.autograd.Function):
    """(p, g, alpha, columns) -> s g - s <s, g> / sum s, the Jacobian of entmax at p times g."""

    @staticmethod
    def forward(p: torch.Tensor, g: torch.Tensor, alpha: Order, columns: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return cast(torch.Tensor, operators.entmax_product(p, g, *_flat(alpha)))
        return jacobian_product(p, g, alpha, columns)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        p, g, alpha, columns = inputs
        _save(ctx, alpha, p, g, columns)

    @staticmethod
    def backward(ctx: Any, v: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (p, g, columns), alpha = _saved(ctx)
        s = power(p, 2 - alpha)
        total = s.sum(-1, keepdim=True)
        # With means m weighted by s, the product <v, J g> changes by (g - m_g)(v - m_v) for each change of s.
        in_s = (g - (s * g).sum(-1, keepdim=True) / total) * (v - (s * v).sum(-1, keepdim=True) / total)
        gp = in_s * (2 - alpha) * power(p, 1 - alpha) if ctx.needs_input_grad[0] else None
        gg = _call(JacobianProduct, p, v, alpha, columns) if ctx.needs_input_grad[1] else None
        ga = None
        if ctx.needs_input_grad[2]:
            ga = -(in_s * s * log_or_zero(p)).sum(-1, keepdim=True)
        return gp, gg, ga, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, p: Any, g: Any, alpha: Order, columns: Any) -> Any:
        return _call(JacobianProduct, *_batched(info, in_dims, p, g, alpha, columns)), 0


def fenchel_young_tensor(x: torch.Tensor, p: torch.Tensor, goal: Target, alpha: Order) -> torch.Tensor:
    """The Fenchel-Young losses (...) of rows x (..., n) whose entmax is p; `alpha` a number or a tensor of one."""
    value = _call(FenchelYoung, x, p, goal.value, goal.soft, alpha if isinstance(alpha, float) else alpha.reshape(()))
    return cast(torch.Tensor, value)


class FenchelYoung(torch.autograd.Function):
    """(x, p(x), y, soft, alpha) -> loss, with gradient p - y in x by definition, no path through p's Jacobian."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, p: torch.Tensor, y: torch.Tensor, soft: bool, alpha: Order) -> torch.Tensor:
        gap = (p * torch.where(p > 0, x, 0)).sum(-1) - Target(y, soft).dot(x) - negentropy(p, alpha)
        loss: torch.Tensor = gap + negentropy(y, alpha) if soft else gap
        return loss.clamp(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, p, y, ctx.soft, alpha = inputs
        _save(ctx, alpha, p, y)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (p, y), alpha = _saved(ctx)
        gx = g[..., None] * Target(y, ctx.soft).taken_from(p) if ctx.needs_input_grad[0] else None
        ga = None
        if ctx.needs_input_grad[4]:
            slope = -_negentropy_in_alpha(p, alpha)
            ga = (g * (slope + _negentropy_in_alpha(y, alpha) if ctx.soft else slope)).sum()
        return gx, None, None, None, ga


def differentiable_once(
    x: torch.Tensor,
    function: Callable[[torch.Tensor], torch.Tensor],
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """function(x) with the symmetric Jacobian product(x, g), whose own derivative is refused rather than wrong."""
    return cast(torch.Tensor, _call(_Once, x, function, product))


class _Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, function: Any, product: Any) -> torch.Tensor:
        return cast(torch.Tensor, function(x))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, _, ctx.product = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _call(_Last, ctx.saved_tensors[0], g, ctx.product), None, None


class _Last(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, g: torch.Tensor, product: Any) -> torch.Tensor:
        return cast(torch.Tensor, product(x, g))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> Any:
        raise NotImplementedError(
            "perturb_max has no second derivative with bounded noise (its density has jumps) or over long rows"
        )


def _negentropy_in_alpha(p: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """dO/dalpha of rows (..., n) at fixed p."""
    log_p = log_or_zero(p)
    t = (alpha - 1) * log_p
    rise: torch.Tensor = (p * log_p**2 * t.exp() * phi(-t)).sum(-1)
    slope: torch.Tensor = (rise - negentropy(p, alpha)) / alpha
    return slope


def _flat(alpha: Order) -> tuple[float, torch.Tensor | None]:
    return (alpha, None) if isinstance(alpha, float) else (0.0, alpha)


def _call(function: Any, *inputs: Any) -> Any:
    return function.apply(*inputs)


def _save(ctx: Any, alpha: Order, *tensors: torch.Tensor) -> None:
    ctx.alpha = alpha if isinstance(alpha, float) else None
    ctx.save_for_backward(*tensors, *([alpha] if isinstance(alpha, torch.Tensor) else []))


def _saved(ctx: Any) -> tuple[tuple[torch.Tensor, ...], Any]:
    saved = ctx.saved_tensors
    return (saved, ctx.alpha) if ctx.alpha is not None else (saved[:-1], saved[-1])


def _batched(info: Any, in_dims: Any, *inputs: Any) -> list[Any]:
    """The inputs of one call over a batch: its axis first in every tensor."""

    def first(value: Any, axis: int | None) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.movedim(axis, 0) if axis is not None else value.expand(info.batch_size, *value.shape)

    return [first(value, axis) for value, axis in zip(inputs, in_dims, strict=True)]
