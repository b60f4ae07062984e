"""Sampling from softmax by perturbing scores: Gumbel-max, its relaxation, and the straight-through estimator.

argmax(x + g) with independent standard Gumbel g is a sample from softmax(x) (Gumbel 1954). Replacing argmax by
softmax((x + g) / tau) makes it differentiable (Jang, Gu & Poole 2017; Maddison, Mnih & Teh 2017). The noise is
g = -log(Exp(1)) drawn in float64: uniform draws can hit 0, and float32 has no tail beyond 16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simplex.arrays import (
    ArrayT,
    check_positive,
    check_rows,
    divisor,
    is_torch,
    moved,
    namespace,
    over_rows,
    promote,
    quiet,
)

if TYPE_CHECKING:
    import torch

    from simplex.arrays import Scalar

    Generator = np.random.Generator | torch.Generator


def gumbel_noise(x: ArrayT, generator: Generator | None = None) -> ArrayT:
    """Independent standard Gumbel noise of the shape of `x`, in float64. `generator`: of numpy or torch, as `x` is."""
    if is_torch(x):
        import torch

        draws: Any = torch.empty(x.shape, dtype=torch.float64, device=x.device)
        noise: ArrayT = -draws.exponential_(generator=generator).clamp(min=1e-300).log()
        return noise
    if generator is not None and not isinstance(generator, np.random.Generator):
        raise ValueError("generator must be a numpy Generator when x is an array")
    rng = generator or np.random.default_rng()
    return -np.log(np.maximum(rng.standard_exponential(np.shape(x)), 1e-300))  # type: ignore[return-value]


def gumbel_max(x: ArrayT, *, dim: int = -1, temperature: Scalar = 1.0, generator: Generator | None = None) -> ArrayT:
    """Indices drawn from softmax(x / temperature), int64, the shape of `x` without `dim`.

    A score of -inf is never drawn. A row from which nothing can be drawn (NaN, +inf, all -inf) gives -1.
    """
    scores: Any = promote(x)
    check_rows(scores, dim)
    check_positive(temperature, "temperature")
    xp = namespace(scores)
    with quiet(xp):
        rows = moved(scores.detach() if is_torch(scores) else scores, dim, -1)
        best = xp.amax(rows, -1)
        logits = (rows - best[..., None]) / divisor(temperature, scores, dim)  # 0 at the best, however cold
        drawn: ArrayT = xp.where(xp.isfinite(best), xp.argmax(logits + gumbel_noise(rows, generator), -1), -1)
    return drawn


def gumbel_softmax(
    x: ArrayT,
    *,
    tau: float = 1.0,
    hard: bool = False,
    dim: int = -1,
    temperature: Scalar = 1.0,
    generator: Generator | None = None,
) -> ArrayT:
    """softmax((x / temperature + g) / tau). `hard`: a one-hot sample going forward, this softmax going backward."""
    check_positive(tau, "tau")

    def rows(scores: Any) -> Any:
        from simplex.maps import softmax

        noise = gumbel_noise(scores, generator)
        noise = noise.to(scores.dtype) if is_torch(scores) else noise.astype(scores.dtype)
        p = softmax((scores + noise) / tau)
        return straight_through(p) if hard else p

    return over_rows(rows, x, dim=dim, temperature=temperature)


def straight_through(p: ArrayT, *, dim: int = -1) -> ArrayT:
    """The one-hot vector of the largest probability, with the gradient of `p` (Bengio, Leonard & Courville 2013).

    Ties go to the lowest position. A row of NaN stays NaN.
    """

    def rows(q: Any) -> Any:
        xp = namespace(q)
        best = xp.argmax(q, -1)[..., None]
        positions = xp.arange(q.shape[-1], device=q.device)
        chosen = xp.where(xp.isnan(q), q, xp.where(positions == best, 1.0, 0.0))
        chosen = chosen.to(q.dtype) if is_torch(q) else chosen.astype(q.dtype)
        return chosen.detach() + (q - q.detach()) if is_torch(q) else chosen

    return over_rows(rows, p, dim=dim)
