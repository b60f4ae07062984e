"""Margins on cosine logits: make the target's cosine look worse by a margin, then train with any loss at scale s.

Every function takes `cos` (batch..., classes), the cosines of unit embeddings to unit class weights, and `target`
(batch...) class indices, and returns cosines of the same shape in which only the target's has changed (subtracted in
place: the closed form of the loss with a margin loses all digits at scale 30). Feed `scale * result` to a loss of
simplex.losses. Rows whose target is `ignore_index` are left alone. theta = arccos(cos).

    cosface, am_softmax   cos - m                        Wang et al. 2018 (CosFace; AM-Softmax)
    arcface               cos(theta + m)                 Deng et al. 2019
    sphereface            (-1)^k cos(m theta) - 2k       Liu et al. 2017, k = floor(m theta / pi)
    combined              cos(m1 theta + m2) - m3        Deng et al. 2019, contains the three
    triangle              -(d + m), d = sqrt(1 - cos)    margin from the triangle inequality, adaptive by default
    sub_centers           the best of several centers    Deng et al. 2020
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from simplex.arrays import promote
from simplex.targets import check_classes

if TYPE_CHECKING:
    from collections.abc import Callable

EDGE = 1e-7
"""Least value of 1 - cos^2: the slope of arccos is infinite at cos = 1."""

Beyond = Literal["tangent", "mirror"]


def cosface(cos: torch.Tensor, target: torch.Tensor, margin: float = 0.35, *, ignore_index: int = -100) -> torch.Tensor:
    """cos_t - margin. With the cross entropy, log(1 + sum exp(s (cos_i + m - cos_t)))."""
    _check_margin(margin)
    return at_target(cos, target, lambda c: c - margin, ignore_index)


am_softmax = cosface


def arcface(
    cos: torch.Tensor,
    target: torch.Tensor,
    margin: float = 0.5,
    *,
    beyond: Beyond = "tangent",
    ignore_index: int = -100,
) -> torch.Tensor:
    """cos(theta_t + margin), margin in radians, in [0, pi].

    Where theta + margin > pi the cosine would rise again: `beyond` "tangent" uses cos - m sin m (a small jump),
    "mirror" the continuous -2 - cos(theta + m).
    """
    _check_margin(margin, math.pi)
    if beyond not in ("tangent", "mirror"):
        raise ValueError(f"beyond must be 'tangent' or 'mirror'; got {beyond!r}")

    def bend(c: torch.Tensor) -> torch.Tensor:
        moved = c * math.cos(margin) - _sine(c) * math.sin(margin)
        far = c - margin * math.sin(margin) if beyond == "tangent" else -2 - moved
        return torch.where(c > -math.cos(margin), moved, far)  # theta + m < pi

    return at_target(cos, target, bend, ignore_index)


def sphereface(cos: torch.Tensor, target: torch.Tensor, margin: float = 4, *, ignore_index: int = -100) -> torch.Tensor:
    """(-1)^k cos(m theta) - 2k, k = floor(m theta / pi): falls from 1 to 1 - 2m. Wants annealing, see `annealed`."""
    if not margin >= 1:
        raise ValueError(f"margin must be at least 1 for sphereface; got {margin}")
    return at_target(cos, target, lambda c: _falling(margin * _angle(c)), ignore_index)


def combined(
    cos: torch.Tensor,
    target: torch.Tensor,
    multiply: float = 1.0,
    add: float = 0.3,
    subtract: float = 0.2,
    *,
    ignore_index: int = -100,
) -> torch.Tensor:
    """cos(m1 theta + m2) - m3, continued beyond pi so that it keeps falling."""
    if not multiply >= 1:
        raise ValueError(f"multiply must be at least 1; got {multiply}")
    _check_margin(add, math.pi, "add")
    _check_margin(subtract, name="subtract")
    return at_target(cos, target, lambda c: _falling(multiply * _angle(c) + add) - subtract, ignore_index)


def triangle(
    cos: torch.Tensor, target: torch.Tensor, margin: float | torch.Tensor | None = None, *, ignore_index: int = -100
) -> torch.Tensor:
    """Logits -d, and -(d + margin) at the target, of the distance d = sqrt(1 - cos).

    If d(z1,c1) + d(z3,c1) + d(z2,c2) < d(z1,c2), then z1 is closer to z3 of its own class than to z2 of the other,
    by the triangle inequality: this is why a margin helps retrieval for classes never seen. `margin` None is
    `adaptive_margin`.
    """
    if margin is None:
        margin = adaptive_margin(cos, target, ignore_index=ignore_index)
    else:
        _check_margin(float(margin))
    return at_target(-distance(cos), target, lambda d: d - margin, ignore_index)


def adaptive_margin(cos: torch.Tensor, target: torch.Tensor, *, ignore_index: int = -100) -> torch.Tensor:
    """mean [d(z3, c1) + d(z2, c2)] = 2 mean d(z, own center) over the batch, a constant (no gradient), shape ()."""
    kept, classes = _targets(cos, target, ignore_index)
    own = distance(cos.detach().gather(-1, classes)[..., 0])
    return 2 * torch.where(kept, own, 0).sum() / kept.sum().clamp(min=1)


def sub_centers(cos: torch.Tensor) -> torch.Tensor:
    """(..., classes, centers) -> (..., classes): each class stands where the best of its centers does."""
    if cos.ndim < 2 or cos.shape[-1] == 0:
        raise ValueError(f"cos must have shape (..., classes, centers); got {tuple(cos.shape)}")
    return cos.amax(-1)


def annealed(cos: torch.Tensor, margined: torch.Tensor, strength: float) -> torch.Tensor:
    """(margined + strength * cos) / (1 + strength): from no margin (large strength) to all of it (0)."""
    if not strength >= 0:
        raise ValueError(f"strength must be >= 0; got {strength}")
    return (margined + strength * cos) / (1 + strength)


def distance(cos: torch.Tensor) -> torch.Tensor:
    """sqrt(1 - cos): half the chord's square root, a metric on the unit sphere up to the factor sqrt 2."""
    return (1 - cos).clamp(min=EDGE).sqrt()


def at_target(
    cos: torch.Tensor, target: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor], ignore_index: int
) -> torch.Tensor:
    """`cos` with `change` applied to the target's cosine of each row, in float32 for half precision.

    There cosines near 1 are 1, and the slope of arccos is infinite.
    """
    kept, classes = _targets(cos, target, ignore_index)
    own = promote(cos.gather(-1, classes))
    return cos.scatter(-1, classes, torch.where(kept[..., None], change(own), own).to(cos.dtype))


def _targets(cos: torch.Tensor, target: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    if cos.ndim == 0 or cos.shape[-1] == 0:
        raise ValueError(f"cos must have shape (batch..., classes); got {tuple(cos.shape)}")
    if target.shape != cos.shape[:-1] or target.is_floating_point():
        raise ValueError(
            f"target must hold one class index per row, shape {tuple(cos.shape[:-1])}; "
            f"got {target.dtype} of shape {tuple(target.shape)}"
        )
    kept = target != ignore_index
    classes = torch.where(kept, target, 0).long()
    check_classes(classes, cos.shape[-1])
    return kept, classes[..., None]


def _sine(c: torch.Tensor) -> torch.Tensor:
    return (1 - c * c).clamp(min=EDGE).sqrt()


def _angle(c: torch.Tensor) -> torch.Tensor:
    edge = math.sqrt(1 - EDGE)
    return c.clamp(-edge, edge).acos()


def _falling(theta: torch.Tensor) -> torch.Tensor:
    """cos theta on [0, pi], continued beyond as the falling curve (-1)^k cos(theta) - 2k, k = floor(theta / pi)."""
    k = (theta.detach() / math.pi).floor()
    return (1 - 2 * (k % 2)) * theta.cos() - 2 * k


def _check_margin(margin: float, most: float = math.inf, name: str = "margin") -> None:
    if not 0 <= margin <= most or margin == math.inf:
        raise ValueError(f"{name} must lie in [0, {most:.4g}]; got {margin}")
