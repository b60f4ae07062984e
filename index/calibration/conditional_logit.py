"""The default calibrator: a conditional logit with an outside option (McFadden 1974).

    g_c = w . (x_c - x0) / 0.1               label c, from its evidence x_c (`index.calibration.evidence`)
    g_0 = a + v (background - b0) / 0.1      no match
    P   = softmax(g_1 ... g_L, g_0)

w >= 0 except for cohesion, which no query moves: a label never loses probability because one of its items came closer.
Fitted by maximum a posteriori with priors w ~ N(1.5/J, 2^2) on the J features of closeness, N(0, 2^2) on cohesion,
a ~ N(3, 6^2), v ~ N(0, 2^2): convex, so L-BFGS-B finds the optimum, and separable data
cannot send a weight to infinity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.calibration.evidence import FEATURES, Evidence, Floats, Ints
from index.errors import CalibrationError

UNIT = 0.1
"""Features are measured in steps of 0.1 cosine, so that the priors mean the same for every encoder."""
MIN_QUERIES = 50
"""Known queries below which seven numbers cannot be fitted honestly: Platt's two stand in."""
FEW_QUERIES = 20
"""Known queries below which nothing can be fitted honestly."""
COSINES = (FEATURES.index("best"), FEATURES.index("centroid"), FEATURES.index("cohesion"))
"""The features that are cosines themselves; pooled evidence may exceed 1."""
ROUNDING, SAME = 1e-3, 1e-6
"""What a cosine may exceed 1 by, and what scores differ by that do not differ."""
NO_MATCH = -1
"""Target of a query whose label is not among the candidates."""


@dataclass(frozen=True, slots=True)
class ConditionalLogit:
    """The fitted numbers. `logits` is all that serving needs."""

    weights: tuple[float, ...]
    intercept: float
    slope: float
    feature_mean: tuple[float, ...]
    background_mean: float

    def logits(self, evidence: Evidence) -> tuple[Floats, Floats]:
        """Logits of the candidates (m,) and of no match (n,)."""
        x, phi = _scaled(evidence, np.array(self.feature_mean), self.background_mean)
        return x @ np.array(self.weights), self.intercept + self.slope * phi

    def to_json(self) -> dict[str, Any]:
        return {"kind": "conditional-logit", **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ConditionalLogit:
        """Raises `CalibrationError` when a number is missing or not finite."""
        try:
            found = cls(
                numbers(value["weights"], len(FEATURES)),
                float(value["intercept"]),
                float(value["slope"]),
                numbers(value["feature_mean"], len(FEATURES)),
                float(value["background_mean"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"The stored calibrator cannot be read ({error}). Build the index again.") from error
        stored = [*found.weights, found.intercept, found.slope, *found.feature_mean, found.background_mean]
        if not np.isfinite(stored).all():
            raise CalibrationError("The stored calibrator holds NaN or infinity. Build the index again.")
        return found


def numbers(value: object, count: int | None = None) -> tuple[float, ...]:
    """A stored list of `count` numbers. Raises ValueError for anything else."""
    if not isinstance(value, list | tuple) or len(value) != (len(value) if count is None else count):
        raise ValueError(f"{value!r} is not a list of {'numbers' if count is None else f'{count} numbers'}")
    return tuple(float(number) for number in value)


def fit(evidence: Evidence, target: Ints, weight: NDArray[np.float64] | None = None) -> ConditionalLogit:
    """Fits to queries whose true candidate is `target` (n,), `NO_MATCH` where it is none of them.

    `weight` (n,) lets known and unknown queries stand in the proportion expected in use. Raises `CalibrationError`
    for fewer than `MIN_QUERIES` queries, or only knowns, or only unknowns.
    """
    from scipy.optimize import minimize  # scipy takes longer to import than all else a search needs: only fits do

    n = len(evidence)
    weight = np.ones(n) if weight is None else np.asarray(weight, np.float64)
    check(evidence, target, weight)
    best = evidence.features[evidence.starts[:-1]]
    feature_mean = np.average(best, axis=0, weights=weight)
    background_mean = float(np.average(evidence.background, weights=weight))
    x, phi = _scaled(evidence, feature_mean, background_mean)
    j = x.shape[1]
    prior_mean = np.array([1.5 / (j - 1)] * (j - 1) + [0.0, 3.0, 0.0])
    prior_sd = np.array([2.0] * j + [6.0, 2.0])

    def loss(theta: Floats) -> tuple[float, Floats]:
        value, gradient = nll(theta, x, phi, evidence, target, weight)
        off = (theta - prior_mean) / prior_sd
        return value + 0.5 * float(off @ off), gradient + off / prior_sd

    bounds = [(0.0, None)] * (j - 1) + [(None, None)] * 3
    found = minimize(loss, prior_mean, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    if not np.isfinite(found.x).all():
        raise CalibrationError("The calibrator's fit did not converge to finite numbers. Check the queries' scores.")
    w, a, v = found.x[:j], found.x[j], found.x[j + 1]
    return ConditionalLogit(tuple(map(float, w)), float(a), float(v), tuple(map(float, feature_mean)), background_mean)


def _scaled(evidence: Evidence, feature_mean: Floats, background_mean: float) -> tuple[Floats, Floats]:
    return (evidence.features - feature_mean) / UNIT, (evidence.background - background_mean) / UNIT


def nll(
    theta: Floats, x: Floats, phi: Floats, evidence: Evidence, target: Ints, weight: Floats
) -> tuple[float, Floats]:
    """Weighted negative log likelihood and its gradient: sum_i weight_i (lse_i - g_target)."""
    j = x.shape[1]
    starts, query = evidence.starts[:-1], evidence.query
    g, g0 = x @ theta[:j], theta[j] + theta[j + 1] * phi
    top = np.maximum(np.maximum.reduceat(g, starts), g0)
    e, e0 = np.exp(g - top[query]), np.exp(g0 - top)
    z = np.add.reduceat(e, starts) + e0
    known = target >= 0
    of_target = np.where(known, g[target], g0)
    value = float(weight @ (top + np.log(z) - of_target))
    residual = e / z[query] * weight[query]
    residual[target[known]] -= weight[known]
    residual0 = (e0 / z - ~known) * weight
    return value, np.concatenate([residual @ x, [residual0.sum(), residual0 @ phi]])


def check_scores(evidence: Evidence) -> None:
    """Raises `CalibrationError` for evidence no calibrator can be fitted to: not finite, or beyond what a cosine is."""
    if not (np.isfinite(evidence.features).all() and np.isfinite(evidence.background).all()):
        raise CalibrationError("Calibration queries have scores that are not finite. Encode them again.")
    cosines = np.concatenate([evidence.features[:, COSINES].ravel(), evidence.background])
    if (worst := float(np.abs(cosines).max(initial=0.0))) > 1 + ROUNDING:
        raise CalibrationError(
            f"Calibration queries have a score of size {worst:.4g}, beyond what a cosine can be (-1 to 1): their "
            "vectors are not of norm 1. Encode them with the collection's own encoder."
        )


def check_differs(scores: Floats) -> None:
    """Raises `CalibrationError` when the scores (n, ...) are the same for every query."""
    if not len(scores) or float(np.ptp(scores, axis=0).max()) < SAME:
        raise CalibrationError(
            "All calibration queries have the same scores, so nothing can be learned about when a match is right. "
            "Check that they are different texts, and that the encoder tells them apart."
        )


def check(evidence: Evidence, target: Ints, weight: Floats) -> None:
    """Raises `CalibrationError` for evidence that no distribution can be fitted to, see `fit`."""
    n = len(evidence)
    check_scores(evidence)
    top = evidence.starts[:-1]
    check_differs(np.column_stack([evidence.features[top], evidence.background]))
    if n < MIN_QUERIES:
        raise CalibrationError(
            f"{n} calibration queries; at least {MIN_QUERIES} are needed for probabilities that mean something. Give "
            "more labelled queries with --calibrate FILE."
        )
    known = weight[target >= 0].sum()
    if known == 0 or known == weight.sum():
        have = "none" if known == 0 else "all"
        raise CalibrationError(
            f"Of the calibration queries {have} have their label in the gallery; both known and unknown ones are "
            "needed. Give known ones with --calibrate FILE and unknown ones with --unknown FILE."
        )
