"""Calibrators by name. The default is the conditional logit; the others are what users of the field expect to find.

Each turns evidence into logits of the candidates and of no match, so that everything after it (maps, sets, report) is
the same. The ones on the best cosine alone say how sure the top hit's label is and give the rest to "no match": they
tell no second label from a third, but Platt's two numbers can be fitted to a few queries.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index.calibration import conditional_logit
from index.calibration.conditional_logit import ConditionalLogit
from index.calibration.evidence import Evidence, Floats, Ints
from index.errors import CalibrationError, SettingsError

_POOLED = 2
"""The feature the temperature softmax works on: evidence pooled at the sharper of the two."""
_EDGE = 1e-4
"""Step functions reach 0 and 1; a finite sample does not prove either."""


class Calibrator(Protocol):
    """Fitted numbers that turn evidence into logits."""

    def logits(self, evidence: Evidence) -> tuple[Floats, Floats]:
        """Logits of the candidates (m,) and of no match (n,); -inf for a candidate it cannot speak of."""
        ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Temperature:
    """Softmax over pooled evidence at one temperature, with a constant logit for no match."""

    scale: float
    no_match: float

    def logits(self, evidence: Evidence) -> tuple[Floats, Floats]:
        return self.scale * evidence.features[:, _POOLED], np.full(len(evidence), self.no_match)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "temperature", **asdict(self)}


@dataclass(frozen=True, slots=True)
class BestCosine:
    """P(top label is right) = a monotone function of the best cosine: a sigmoid, or steps.

    Sigmoid: `slope` and `intercept`. Steps: `levels[i]` holds for cosines in [edges[i], edges[i + 1]), interpolated
    between nothing.
    """

    kind: str
    slope: float = 0.0
    intercept: float = 0.0
    edges: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()

    def logits(self, evidence: Evidence) -> tuple[Floats, Floats]:
        top = evidence.starts[:-1]
        best = evidence.features[top, 0]
        g = np.full(len(evidence.codes), -np.inf)
        if self.kind == "platt":
            g[top] = self.intercept + self.slope * best
        else:
            at = np.clip(np.searchsorted(np.array(self.edges), best, side="right") - 1, 0, len(self.levels) - 1)
            p = np.clip(np.array(self.levels)[at], _EDGE, 1 - _EDGE)
            g[top] = np.log(p) - np.log1p(-p)
        return g, np.zeros(len(evidence))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fit_temperature_softmax(evidence: Evidence, target: Ints, weight: Floats) -> Temperature:
    """Maximum likelihood over the two numbers, by the same loss as the conditional logit's."""
    from scipy.optimize import minimize

    conditional_logit.check(evidence, target, weight)
    x = evidence.features[:, _POOLED, None]
    flat = np.zeros(len(evidence))

    def loss(theta: Floats) -> tuple[float, Floats]:
        nll, gradient = conditional_logit.nll(np.append(theta, 0.0), x, flat, evidence, target, weight)
        return nll + 1e-3 * float(theta @ theta), gradient[:2] + 2e-3 * theta

    found = minimize(loss, np.array([20.0, 15.0]), jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)])
    return Temperature(float(found.x[0]), float(found.x[1]))


def fit_platt(evidence: Evidence, target: Ints, weight: Floats) -> BestCosine:
    """Logistic regression on the best cosine, with Platt's (1999) smoothed targets so that it stays finite."""
    best, right = _best(evidence, target)
    slope, intercept = logistic(best, right, weight)
    return BestCosine("platt", slope=slope, intercept=intercept)


def logistic(cosine: Floats, right: NDArray[np.bool_], weight: Floats) -> tuple[float, float]:
    """Slope >= 0 and intercept of the logistic regression of `right` on the cosine, with Platt's smoothed targets."""
    from scipy.optimize import minimize

    yes, no = weight[right].sum(), weight[~right].sum()
    soft = np.where(right, (yes + 1) / (yes + 2), 1 / (no + 2))
    centre = float(np.average(cosine, weights=weight))
    x = (cosine - centre) / conditional_logit.UNIT

    def loss(theta: Floats) -> tuple[float, Floats]:
        z = theta[0] + theta[1] * x
        residual = weight * (1 / (1 + np.exp(-z)) - soft)
        value = float(weight @ (np.logaddexp(0, z) - soft * z))
        return value, np.array([residual.sum(), residual @ x])

    found = minimize(loss, np.array([0.0, 1.0]), jac=True, method="L-BFGS-B", bounds=[(None, None), (0, None)])
    slope = float(found.x[1]) / conditional_logit.UNIT
    return slope, float(found.x[0]) - slope * centre


def fit_isotonic(evidence: Evidence, target: Ints, weight: Floats) -> BestCosine:
    """Isotonic regression of "right" on the best cosine (pool adjacent violators, scipy's)."""
    from scipy.optimize import isotonic_regression

    best, right = _best(evidence, target)
    edges, at = np.unique(best, return_inverse=True)
    mass = np.bincount(at, weight)
    levels = isotonic_regression(np.bincount(at, weight * right) / mass, weights=mass).x
    kept = np.flatnonzero(np.diff(levels, prepend=np.nan) != 0)
    return BestCosine("isotonic", edges=tuple(map(float, edges[kept])), levels=tuple(map(float, levels[kept])))


def fit_venn_abers(evidence: Evidence, target: Ints, weight: Floats) -> BestCosine:
    """Inductive Venn-Abers (Vovk et al. 2015) on the best cosine, from the package venn-abers; p = p1 / (1 - p0 + p1).

    The package knows no weights, so examples are drawn in proportion to theirs, with a fixed seed.
    """
    from venn_abers import VennAbers

    best, right = _best(evidence, target)
    keep = np.random.default_rng(0).random(len(best)) < weight / weight.max()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the package divides 0 by 0, and copes
        fitted = VennAbers()
        fitted.fit(_two_columns(best[keep]), right[keep].astype(float))
        seen = np.unique(best[keep])
        between = np.concatenate([[seen[0] - 1], (seen[1:] + seen[:-1]) / 2, [seen[-1] + 1]])
        p_seen, p_between = (np.asarray(fitted.predict_proba(_two_columns(at))[0])[:, 1] for at in (seen, between))
    # the answer at a seen cosine differs from the constant one between it and the next: each is a step of its own
    edges = np.concatenate([[-2.0], np.column_stack([seen, np.nextafter(seen, 2)]).ravel()])
    p = np.concatenate([p_between[:1], np.column_stack([p_seen, p_between[1:]]).ravel()])
    steps = np.flatnonzero(np.diff(p, prepend=np.nan) != 0)
    return BestCosine("venn-abers", edges=tuple(map(float, edges[steps])), levels=tuple(map(float, p[steps])))


def _two_columns(cosines: Floats) -> Floats:
    """Cosines as the package wants scores: of "wrong" and "right", summing to 1."""
    return np.column_stack([1 - cosines, 1 + cosines]) / 2


def _best(evidence: Evidence, target: Ints) -> tuple[Floats, NDArray[np.bool_]]:
    conditional_logit.check_scores(evidence)
    top = evidence.starts[:-1]
    conditional_logit.check_differs(evidence.features[top, 0])
    right = target == top
    if right.all() or not right.any():
        raise CalibrationError(
            f"The top hit is {'always' if right.all() else 'never'} right on the calibration queries, so nothing can "
            "be learned about when it is. Give harder queries, and unknown ones with --unknown FILE."
        )
    return evidence.features[top, 0], right


Fit = Callable[[Evidence, Ints, Floats], Calibrator]
CALIBRATORS: dict[str, Fit] = {
    "conditional-logit": conditional_logit.fit,
    "temperature": fit_temperature_softmax,
    "platt": fit_platt,
    "isotonic": fit_isotonic,
    "venn-abers": fit_venn_abers,
}


def check_calibrator(name: str) -> None:
    """Raises `SettingsError` for one that there is not, or whose package is missing: before the work, not after."""
    if name not in CALIBRATORS:
        raise SettingsError(f"--calibrator {name}: there is none of this name. Use {', '.join(CALIBRATORS)}.")
    if name == "venn-abers" and find_spec("venn_abers") is None:
        raise SettingsError(
            "The calibrator venn-abers needs the package venn-abers. Install it with: pip install "
            "'surematch[calibrators]', or index with another --calibrator."
        )


def calibrator_from_json(value: dict[str, Any]) -> Calibrator:
    """Raises `CalibrationError` when the record is incomplete, not finite, or of an unknown kind."""
    kind = value.get("kind")
    if kind == "conditional-logit":
        return ConditionalLogit.from_json(value)
    try:
        if kind == "temperature":
            return _finite(Temperature(float(value["scale"]), float(value["no_match"])))
        if kind in CALIBRATORS:
            edges, levels = (conditional_logit.numbers(value[name]) for name in ("edges", "levels"))
            found = _finite(BestCosine(kind, float(value["slope"]), float(value["intercept"]), edges, levels))
            if kind != "platt":
                _check_steps(edges, levels)
            return found
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"The stored calibrator cannot be read ({error}). Build the index again.") from error
    raise CalibrationError(f"The stored calibrator is of an unknown kind {kind!r}. Build the index again.")


def _finite(found: Temperature | BestCosine) -> Calibrator:
    numbers = np.hstack([np.atleast_1d(x) for x in asdict(found).values() if not isinstance(x, str)])
    if not np.isfinite(numbers.astype(np.float64)).all():
        raise CalibrationError("The stored calibrator holds NaN or infinity. Build the index again.")
    return found


def _check_steps(edges: tuple[float, ...], levels: tuple[float, ...]) -> None:
    if not levels or len(edges) != len(levels):
        raise ValueError(f"{len(edges)} edges and {len(levels)} levels")
    if (np.diff(edges) <= 0).any() or (np.diff(levels) < 0).any() or min(levels) < 0 or max(levels) > 1:
        raise ValueError("steps that are not in order")
