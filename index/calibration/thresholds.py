"""Where to draw the line: from costs, or from a promise, to a threshold on the match probability.

Everything is computed on held-out calibration queries, so a promise is only as good as their number: each threshold
comes with the interval the sample supports, and a promise no sample of that size could support is refused. Examples
made from one query count as one: hiding labels makes more examples, not more evidence. Nor do a hundred photographs of
one stranger make a hundred strangers: unknown queries count by how much those of one identity resemble each other. And
where few of them stand for many that will come, a precision is as uncertain as those few leave it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from index.calibration.calibrate import HeldOut
from index.calibration.evidence import Floats
from index.calibration.worth import CONFIDENCE, as_they_come, design_effect, one_label
from index.errors import CalibrationError
from index.metrics import effective

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
    "let in more often or less. Index again with some: `surematch index --unknown FILE`."
)


def from_costs(sample: HeldOut, false_match: float, miss: float) -> Threshold:
    """The line of least expected cost: with calibrated probabilities C_fm / (C_fm + C_miss) (Elkan 2001, eq. 2).

    A false match is any match called that is wrong; a miss is a right top hit not called. Raises ValueError for costs
    that are not positive. `measured` is the mean cost of a query; its interval is put together of those of both kinds
    of error, which bound what was not seen, too (Zou & Donner 2008, section 2).
    """
    if not (false_match > 0 and miss > 0 and np.isfinite([false_match, miss]).all()):
        raise ValueError(f"costs must be positive and finite, got {false_match} and {miss}")
    sample = sample.for_promises
    at = false_match / (false_match + miss)
    called = sample.probability >= at
    parts = np.array(
        [
            price * np.array(_share_interval(sample, wrong))
            for price, wrong in ((false_match, called & ~sample.right), (miss, ~called & sample.right))
        ]
    )
    cost = float(parts[:, 0].sum())
    below, above = np.sqrt(((parts[:, 1:] - parts[:, :1]) ** 2).sum(axis=0))
    low, high = max(0.0, cost - float(below)), cost + float(above)
    return _threshold(sample, at, "mean cost of a query", cost, low, high)


def from_precision(sample: HeldOut, precision: float) -> Threshold:
    """The lowest line above which at least `precision` of the called matches are right. Raises `CalibrationError`."""
    _check_share("precision", precision)
    sample = sample.for_promises
    order = np.argsort(-sample.probability, kind="stable")
    p, w, right = sample.probability[order], sample.weight[order], sample.right[order]
    called = np.cumsum(w)
    reached = np.cumsum(w * right) / called
    last_of_tie = np.append(np.diff(p) != 0, True)
    good = np.flatnonzero((reached >= precision - _ROUNDING) & last_of_tie)
    if not len(good):
        raise CalibrationError(
            f"No threshold reaches a precision of {precision:g} on the {len(p)} calibration queries. Ask for less, or "
            "train a better encoder."
        )
    at = int(good[-1])
    heaviest = _heaviest(sample)
    # of all lines the one that promises most: what it reaches, and what so many would show without an error
    best = np.minimum(reached, (1 - CONFIDENCE) ** (heaviest / called))[last_of_tie].max()
    what = "called matches that weigh as much as the heaviest query"
    _need(called[at] / heaviest, 1 - precision, "precision", what, 1 - best)
    low, high = _precision_interval(sample, float(p[at]))
    return _threshold(sample, float(p[at]), "precision", float(reached[at]), low, high)


def from_fpir(sample: HeldOut, fpir: float) -> Threshold:
    """The lowest line that calls at most `fpir` of the unknown queries a match. Raises `CalibrationError`."""
    _check_share("fpir", fpir)
    sample = sample.for_promises
    unknown = ~sample.known
    p, w = sample.probability[unknown], sample.weight[unknown]
    group, identity = sample.group[unknown], sample.identity[unknown]
    size, catch_all = effective(w, group) / design_effect(p, group, identity), False
    if size < _needed(fpir) - _ROUNDING and one_label(sample.group, sample.identity, sample.known):
        size, catch_all = effective(w, group), True
    _need(size, fpir, "FPIR", f"unknown queries that do not resemble each other ({len(p)} in all)")
    values, of_value = np.unique(p, return_inverse=True)
    above = np.cumsum(np.bincount(of_value, w)[::-1])[::-1] / w.sum()
    fine = np.flatnonzero(above <= fpir + _ROUNDING)
    at = float(values[fine[0]]) if len(fine) else float(np.nextafter(values[-1], 2.0))
    measured = float(w[p >= at].sum() / w.sum())
    low, high = _binomial(measured, measured / size, 1 / size)
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


def _needed(error: float) -> float:
    """Examples without a single error that bound the error rate by `error`."""
    return float(np.log(1 - CONFIDENCE) / np.log1p(-error))


def _need(
    have: float, error: float, measure: Literal["precision", "FPIR"], what: str, least: float | None = None
) -> None:
    """Without a single error, `have` examples bound the error rate by 1 - 0.05^(1/have): is that enough?

    `least` is the lowest error rate that can be asked for instead, if it is not the one that they bound.
    """
    needed = _needed(error)
    if have < needed - _ROUNDING:
        least = 1 - (1 - CONFIDENCE) ** (1 / have) if least is None else least
        least = np.ceil(1000 * least - _ROUNDING) / 1000
        asked, instead = f"an FPIR of {error:g}", f"an FPIR of {least:g} or more"
        if measure == "precision":
            asked, instead = f"a precision of {1 - error:g}", f"a precision of {1 - least:g} or less"
        raise CalibrationError(
            f"The calibration sample cannot support {asked}: that takes at least {np.ceil(needed):.0f} {what} even "
            f"without a single error, and there are {have:.0f}. Ask for {instead}, or calibrate with more queries."
        )


def _kinds(sample: HeldOut) -> list[tuple[NDArray[np.bool_], float]]:
    """Known and unknown examples, and how many of each are worth one."""
    known, unknown = sample.known, ~sample.known
    alone = as_they_come(sample.group, sample.identity, known)
    return [(known, 1.0), (unknown, design_effect(sample.probability[unknown], sample.group[unknown], alone))]


def _weights_of(sample: HeldOut, part: NDArray[np.bool_]) -> Floats:
    """Of each query what its examples in `part` weigh together, in queries that resemble no other."""
    of_query = np.unique(sample.group, return_inverse=True)[1]
    count = int(of_query.max(initial=-1)) + 1
    return sum(
        (np.sqrt(by) * np.bincount(of_query, sample.weight * (part & kind), count) for kind, by in _kinds(sample)),
        np.zeros(count),
    )


def _heaviest(sample: HeldOut) -> float:
    """What the query weighs that says most."""
    return float(_weights_of(sample, np.ones(len(sample.known), np.bool_)).max(initial=0.0))


def _precision_interval(sample: HeldOut, line: float) -> tuple[float, float]:
    """At 95 %, of the share that is right of those called from `line` on."""
    called = sample.probability >= line
    _, low, high = _share_interval(sample, called & ~sample.right, float(sample.weight[called].sum()))
    return 1 - high, 1 - low


def _share_interval(
    sample: HeldOut, wrong: NDArray[np.bool_], total: float | None = None
) -> tuple[float, float, float]:
    """What those that are `wrong` (n,) weigh of the `total`, which is that of all, and the interval of that share."""
    total = float(sample.weight.sum()) if total is None else total
    share, squares = float(sample.weight[wrong].sum() / total), float((_weights_of(sample, wrong) ** 2).sum())
    return share, *_binomial(share, squares / total**2, _heaviest(sample) / total)


def _binomial(share: float, variance: float, heaviest: float) -> tuple[float, float]:
    """Interval at 95 % of the `share` of errors whose weights' squares add up to `variance`.

    Clopper & Pearson's where all n weigh 1/n, so that the variance is share/n. Where they differ, the interval of a
    weighted sum of counts (Fay & Feuer 1997, equations 3 and 4, with beta in place of gamma quantiles): its upper end
    takes the next error to be one of the `heaviest`, for the sample may have missed just that one.
    """
    from scipy.special import betaincinv

    tail = (1 - CONFIDENCE) / 2

    def quantile(at: float, share: float, variance: float) -> float:
        k, n = share**2 / variance, share / variance
        return float(betaincinv(k, n - k + 1, at)) if k < n + 1 - _ROUNDING else 1.0

    low = quantile(tail, share, variance) if share > _ROUNDING else 0.0
    return low, quantile(1 - tail, share + heaviest, variance + heaviest**2)
