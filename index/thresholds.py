"""Where to draw the line: from costs, or from a promise, to a threshold on the match probability.

Everything is computed on held-out calibration queries, so a promise is only as good as their number: each threshold
comes with the interval the sample supports, and a promise no sample of that size could support is refused. Examples
made from one query count as one: hiding labels makes more examples, not more evidence. Nor do a hundred photographs of
one stranger make a hundred strangers: an FPIR counts unknown queries by how much those of one identity resemble each
other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from index.calibrate import HeldOut
from index.errors import CalibrationError
from index.evidence import Floats, Ints
from index.metrics import effective

CONFIDENCE = 0.95
_ROUNDING = 1e-9
"""What sums of weights may be off by."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Call the first hit a match when its probability (`hits[0].probability`) is at least `probability`.

    `promised` is the measure asked for, `measured` its value on the sample with the interval (`low`, `high`) at 95 %.
    `accepted` is the share of queries called a match, `precision` the share of those that are right, `miss_rate` the
    share of known queries not matched to their label, `fpir` the share of unknown queries called a match. `assumes` is
    what the sample cannot show and the interval takes for granted, or None.
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
    assumes: str | None = None


ALL_ALIKE = (
    "All unknown queries with a label carry the same, which is taken for a word for everything else: each counts as a "
    "stranger of its own. If the label names one person or thing, this promise does not hold: give each its own label."
)

IMITATED = (
    "Unknown queries, or some of them, were imitated by hiding a query's own label. Real ones of another kind may be "
    "let in more often or less. Give some with --unknown FILE."
)


def from_costs(sample: HeldOut, false_match: float, miss: float) -> Threshold:
    """The line of least expected cost: with calibrated probabilities C_fm / (C_fm + C_miss) (Elkan 2001, eq. 2).

    A false match is any match called that is wrong; a miss is a right top hit not called. Raises ValueError for costs
    that are not positive. `measured` is the mean cost of a query.
    """
    if not (false_match > 0 and miss > 0 and np.isfinite([false_match, miss]).all()):
        raise ValueError(f"costs must be positive and finite, got {false_match} and {miss}")
    sample = sample.for_promises
    at = false_match / (false_match + miss)
    called = sample.probability >= at
    cost = np.where(called & ~sample.right, false_match, 0.0) + np.where(~called & sample.right, miss, 0.0)
    low, high = _bootstrap(cost, sample.weight, sample.group)
    return _threshold(sample, at, "mean cost of a query", float(np.average(cost, weights=sample.weight)), low, high)


def from_precision(sample: HeldOut, precision: float) -> Threshold:
    """The lowest line above which at least `precision` of the called matches are right. Raises `CalibrationError`."""
    _check_share("precision", precision)
    sample = sample.for_promises
    order = np.argsort(-sample.probability, kind="stable")
    p, w, group = sample.probability[order], sample.weight[order], sample.group[order]
    reached = np.cumsum(w * sample.right[order]) / np.cumsum(w)
    last_of_tie = np.append(np.diff(p) != 0, True)
    good = np.flatnonzero((reached >= precision - _ROUNDING) & last_of_tie)
    if not len(good):
        raise CalibrationError(
            f"No threshold reaches a precision of {precision:g} on the {len(p)} calibration queries. Ask for less, or "
            "train a better encoder."
        )
    at = int(good[-1])
    size = effective(w[: at + 1], group[: at + 1])
    _need(size, 1 - precision, "precision", "called matches")
    low, high = _binomial(float(reached[at]), size)
    return _threshold(sample, float(p[at]), "precision", float(reached[at]), low, high)


def from_fpir(sample: HeldOut, fpir: float) -> Threshold:
    """The lowest line that calls at most `fpir` of the unknown queries a match. Raises `CalibrationError`."""
    _check_share("fpir", fpir)
    sample = sample.for_promises
    unknown = ~sample.known
    p, w = sample.probability[unknown], sample.weight[unknown]
    group, identity = sample.group[unknown], sample.identity[unknown]
    size, catch_all = effective(w, group) / _design_effect(p, group, identity), False
    if size < _needed(fpir) - _ROUNDING and len(np.unique(identity[identity >= 0])) == 1:
        size, catch_all = effective(w, group), True
    _need(size, fpir, "FPIR", f"unknown queries that do not resemble each other ({len(p)} in all)")
    values, of_value = np.unique(p, return_inverse=True)
    above = np.cumsum(np.bincount(of_value, w)[::-1])[::-1] / w.sum()
    fine = np.flatnonzero(above <= fpir + _ROUNDING)
    at = float(values[fine[0]]) if len(fine) else float(np.nextafter(values[-1], 2.0))
    measured = float(w[p >= at].sum() / w.sum())
    low, high = _binomial(measured, size)
    found = _threshold(sample, at, "fpir", measured, low, high)
    return replace(found, assumes=ALL_ALIKE) if catch_all else found


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
        # an imitated unknown query is made from a known one, and in its group
        assumes=IMITATED if np.isin(sample.group[unknown], sample.group[known]).any() else None,
    )


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")


def _design_effect(scores: Floats, group: Ints, identity: Ints) -> float:
    """How many queries are worth one of an identity of its own: 1 + (m - 1) rho (Kish 1965).

    m is the mean size of the identity a query belongs to, rho the upper 95 % bound of the intraclass correlation of the
    scores' ranks (one-way analysis of variance, F interval; Donner 1986, section 4), from 0 to 1: of two or three
    identities nobody can tell how alike theirs are, so they are worth two or three queries. Examples of one `group` are
    one query, of their mean score.
    """
    _, first, query, copies = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    scores = np.bincount(query, scores) / copies
    _, of, sizes = np.unique(identity[first], return_inverse=True, return_counts=True)
    n, k = len(scores), len(sizes)
    if n == k:
        return 1.0
    if k == 1:  # of one nobody can tell; see ALL_ALIKE
        return float(n)
    from scipy.special import fdtri

    _, at, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[at]
    means = np.bincount(of, ranks) / sizes
    between = float(sizes @ (means - ranks.mean()) ** 2) / (k - 1)
    within = float(((ranks - means[of]) ** 2).sum()) / (n - k)
    size = (n - float(sizes @ sizes) / n) / (k - 1)
    if within <= 0:
        return float(sizes @ sizes) / n
    ratio = between / within / float(fdtri(k - 1, n - k, 1 - CONFIDENCE))
    rho = min(max((ratio - 1) / (ratio + size - 1), 0.0), 1.0)
    return 1 + (float(sizes @ sizes) / n - 1) * rho


def _needed(error: float) -> int:
    """Examples without a single error that bound the error rate by `error`."""
    return int(np.ceil(np.log(1 - CONFIDENCE) / np.log1p(-error)))


def _need(have: float, error: float, measure: Literal["precision", "FPIR"], what: str) -> None:
    """Without a single error, `have` examples bound the error rate by 1 - 0.05^(1/have): is that enough?"""
    needed = _needed(error)
    if have < needed - _ROUNDING:
        least = np.ceil(1000 * (1 - (1 - CONFIDENCE) ** (1 / max(int(have + _ROUNDING), 1)))) / 1000
        asked, instead = f"an FPIR of {error:g}", f"an FPIR of {least:g} or more"
        if measure == "precision":
            asked, instead = f"a precision of {1 - error:g}", f"a precision of {1 - least:g} or less"
        raise CalibrationError(
            f"The calibration sample cannot support {asked}: that takes at least {needed} {what} even without a single "
            f"error, and there are {have:.0f}. Ask for {instead}, or calibrate with more queries."
        )


def _binomial(share: float, n: float) -> tuple[float, float]:
    """Clopper-Pearson interval at 95 % of a share of `n` effective queries."""
    from scipy.special import betaincinv

    k, tail = n * share, (1 - CONFIDENCE) / 2
    low = 0.0 if k <= 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if share >= 1 else float(betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def _bootstrap(values: Floats, weight: Floats, group: Ints, draws: int = 1000) -> tuple[float, float]:
    """Percentile interval at 95 % of the weighted mean, drawing whole groups."""
    of_group = np.unique(group, return_inverse=True)[1]
    mass, total = np.bincount(of_group, weight), np.bincount(of_group, weight * values)
    at = np.random.default_rng(0).integers(len(mass), size=(draws, len(mass)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(total[at].sum(axis=1) / mass[at].sum(axis=1), [tail, 100 - tail])
    return float(low), float(high)
