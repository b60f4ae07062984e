"""Where to draw the line: from costs, or from a promise, to a threshold on the match probability.

Everything is computed on held-out calibration queries, so a promise is only as good as their number: each threshold
comes with the interval the sample supports, and a promise no sample of that size could support is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from index.calibrate import HeldOut
from index.errors import CalibrationError

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Threshold:
    """Call it a match when its probability is at least `probability`.

    `promised` is the measure asked for, `measured` its value on the sample with the interval (`low`, `high`) at 95 %.
    `accepted` is the share of queries called a match, `precision` the share of those that are right, `miss_rate` the
    share of known queries not matched to their label, `fpir` the share of unknown queries called a match.
    """

    probability: float
    promised: str
    measured: float
    low: float
    high: float
    accepted: float
    precision: float | None
    miss_rate: float
    fpir: float | None


def from_costs(sample: HeldOut, false_match: float, miss: float) -> Threshold:
    """The line of least expected cost: with calibrated probabilities C_fm / (C_fm + C_miss) (Elkan 2001, eq. 2).

    A false match is any match called that is wrong; a miss is a right top hit not called. Raises ValueError for costs
    that are not positive. `measured` is the mean cost of a query.
    """
    if not (false_match > 0 and miss > 0 and np.isfinite([false_match, miss]).all()):
        raise ValueError(f"costs must be positive and finite, got {false_match} and {miss}")
    at = false_match / (false_match + miss)
    called = sample.probability >= at
    cost = np.where(called & ~sample.right, false_match, 0.0) + np.where(~called & sample.right, miss, 0.0)
    low, high = _bootstrap(cost, sample.weight)
    return _threshold(sample, at, "mean cost of a query", float(np.average(cost, weights=sample.weight)), low, high)


def from_precision(sample: HeldOut, precision: float) -> Threshold:
    """The lowest line above which at least `precision` of the called matches are right. Raises `CalibrationError`."""
    _check_share("precision", precision)
    order = np.argsort(-sample.probability, kind="stable")
    p, w = sample.probability[order], sample.weight[order]
    reached = np.cumsum(w * sample.right[order]) / np.cumsum(w)
    last_of_tie = np.append(np.diff(p) != 0, True)
    good = np.flatnonzero((reached >= precision) & last_of_tie)
    if not len(good):
        raise CalibrationError(
            f"No threshold reaches a precision of {precision:g} on the {len(p)} calibration queries. Ask for less, or "
            "train a better encoder."
        )
    at = int(good[-1])
    _need(int(at + 1), 1 - precision, f"a precision of {precision:g}", "called matches")
    low, high = _binomial(sample.right[order][: at + 1], w[: at + 1])
    return _threshold(sample, float(p[at]), "precision", float(reached[at]), low, high)


def from_fpir(sample: HeldOut, fpir: float) -> Threshold:
    """The lowest line that calls at most `fpir` of the unknown queries a match. Raises `CalibrationError`."""
    _check_share("fpir", fpir)
    unknown = ~sample.known
    _need(int(unknown.sum()), fpir, f"an FPIR of {fpir:g}", "unknown queries")
    p, w = sample.probability[unknown], sample.weight[unknown]
    values = np.unique(p)
    above = np.array([w[p >= value].sum() for value in values]) / w.sum()
    fine = np.flatnonzero(above <= fpir)
    at = float(values[fine[0]]) if len(fine) else float(np.nextafter(values[-1], 2.0))
    low, high = _binomial(p >= at, w)
    return _threshold(sample, at, "fpir", float(w[p >= at].sum() / w.sum()), low, high)


def _threshold(sample: HeldOut, at: float, promised: str, measured: float, low: float, high: float) -> Threshold:
    called, w = sample.probability >= at, sample.weight
    known, unknown = sample.known, ~sample.known
    found = called & sample.right
    return Threshold(
        probability=at,
        promised=promised,
        measured=measured,
        low=low,
        high=high,
        accepted=float(w[called].sum() / w.sum()),
        precision=float(w[found].sum() / w[called].sum()) if called.any() else None,
        miss_rate=float(1 - w[found & known].sum() / w[known].sum()),
        fpir=float(w[called & unknown].sum() / w[unknown].sum()) if unknown.any() else None,
    )


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")


def _need(have: int, error: float, promise: str, what: str) -> None:
    """Without a single error, `have` examples bound the error rate by 1 - 0.05^(1/have): is that enough?"""
    needed = int(np.ceil(np.log(1 - CONFIDENCE) / np.log1p(-error)))
    if have < needed:
        raise CalibrationError(
            f"The calibration sample cannot support {promise}: that takes at least {needed} {what} even without a "
            f"single error, and there are {have}. Ask for less, or calibrate with more queries."
        )


def _binomial(event: NDArray[np.bool_], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Clopper-Pearson interval at 95 %, on the effective sample size of the weights (Kish 1965)."""
    n = float(weight.sum() ** 2 / np.sum(weight**2))
    k = n * float(np.average(event, weights=weight))
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if k <= 0 else float(beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k >= n else float(beta.ppf(1 - tail, k + 1, n - k))
    return low, high


def _bootstrap(values: NDArray[np.float64], weight: NDArray[np.float64], draws: int = 1000) -> tuple[float, float]:
    random = np.random.default_rng(0)
    at = random.integers(len(values), size=(draws, len(values)))
    means = (weight[at] * values[at]).sum(axis=1) / weight[at].sum(axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
