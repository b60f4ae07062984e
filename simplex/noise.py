"""The noises of `simplex.perturb`: distribution, density, and where they live."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from simplex.arrays import is_torch, namespace


@dataclass(frozen=True, slots=True)
class Noise:
    """A noise distribution: two functions on arrays (numpy and torch alike), its mean, and where it lives.

    `low` and `high` bound the noise up to a probability of about 1e-18, the precision of the integral. `analytic`: both
    functions have no singularity within 2.8 of the real line, which long rows make use of (`simplex.condensed`).
    """

    name: str
    log_cdf: Callable[[Any], Any]
    log_pdf: Callable[[Any], Any]
    mean: float
    low: float
    high: float
    bounded: bool = False
    analytic: bool = False


def _log_ndtr(u: Any) -> Any:
    if is_torch(u):
        import torch

        return torch.special.log_ndtr(u)
    from scipy.special import log_ndtr

    return log_ndtr(u)


def _softplus(u: Any) -> Any:
    xp = namespace(u)
    return xp.log1p(xp.exp(-abs(u))) + xp.clip(u, 0, None)


def _inside(u: Any, value: Any) -> Any:
    xp = namespace(u)
    return xp.where((u > -1) & (u < 1), value, -math.inf)


def _log_cdf_uniform(u: Any) -> Any:
    xp = namespace(u)
    held = xp.clip(u, -1, 1)
    return xp.where(u > -1, xp.log(xp.where(u > -1, (held + 1) / 2, 1)), -math.inf)


NORMAL = Noise("normal", _log_ndtr, lambda u: -u * u / 2 - math.log(2 * math.pi) / 2, 0.0, -9.0, 9.0, analytic=True)
LOGISTIC = Noise(
    "logistic", lambda u: -_softplus(-u), lambda u: -u - 2 * _softplus(-u), 0.0, -42.0, 42.0, analytic=True
)
GUMBEL = Noise(
    "gumbel",
    lambda u: -namespace(u).exp(-u),
    lambda u: -u - namespace(u).exp(-u),
    float(np.euler_gamma),
    -3.8,
    42.0,
    analytic=True,
)
UNIFORM = Noise("uniform", _log_cdf_uniform, lambda u: _inside(u, -math.log(2)), 0.0, -1.0, 1.0, bounded=True)
NOISES = {noise.name: noise for noise in (NORMAL, LOGISTIC, GUMBEL, UNIFORM)}


def law_of(noise: str | Noise) -> Noise:
    """The noise of this name, or the noise itself. Raises `ValueError`."""
    if isinstance(noise, Noise):
        return noise
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)} or a Noise; got {noise!r}")
    return NOISES[noise]
