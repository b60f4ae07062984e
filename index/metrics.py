"""Measures of honesty and of retrieval, on plain arrays; every one takes optional weights (n,).

ECE follows Nixon et al. 2019 (equal-mass bins) and comes with the noise floor: what a perfectly calibrated predictor
would score on the same probabilities, since finite samples never give zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
BINS = 15
RATES = (1e-1, 1e-2, 1e-3)
"""The false accept rates at which the true accept rate is told."""
LEAST_ERRORS = 30
"""Doddington's rule of 30: with 30 errors the true error rate lies within 30 % of the measured one, 9 times in 10, if
the pairs are independent. All pairs of some rows are not, and say less."""
LEAST_KIND = 20
"""Queries of each of two kinds below which an interval of how well these are told apart would be too narrow."""
_TELLS = {"auroc_right_wrong": "right", "auroc_known_unknown": "known", "fpr_at_95_tpr": "known"}


def _prepare(probability: ArrayLike, event: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    p = np.asarray(probability, np.float64)
    y = np.asarray(event, np.float64)
    w = np.ones_like(p) if weight is None else np.asarray(weight, np.float64)
    if not (p.shape == y.shape == w.shape) or p.ndim != 1:
        raise ValueError(f"probability, event and weight must be 1-d and alike, got {p.shape}, {y.shape}, {w.shape}")
    return p, y, w


def _alike(p: Floats, y: Floats, w: Floats) -> Floats:
    """`y` with the mean of all queries of one `p` in place of each: which of them comes first says nothing."""
    values, at = np.unique(p, return_inverse=True)
    mass = np.bincount(at, w, len(values))
    mean: Floats = np.bincount(at, w * y, len(values)) / np.where(mass > 0, mass, 1.0)
    return mean[at]


def effective(weight: ArrayLike, group: ArrayLike | None = None) -> float:
    """Queries that examples of these weights (n,) are worth, (sum w)^2 / sum w^2 (Kish 1965); those of one `group` (n,)
    count as one."""
    w = np.asarray(weight, np.float64)
    if group is not None:
        w = np.asarray(np.bincount(np.unique(np.asarray(group), return_inverse=True)[1], w), np.float64)
    return float(w.sum() ** 2 / np.sum(w**2)) if w.any() else 0.0


def reliability(
    probability: ArrayLike, event: ArrayLike, weight: ArrayLike | None = None, bins: int = BINS
) -> list[dict[str, float]]:
    """Bins of equal mass: mean probability, observed frequency and weight share of each, ascending.

    Where equal probabilities fall into two bins, both have the frequency of all of them.
    """
    p, y, w = _prepare(probability, event, weight)
    order = np.lexsort((w, p))
    p, y, w = p[order], _alike(p, y, w)[order], w[order]
    share = (np.cumsum(w) - w / 2) / w.sum()
    of_bin = np.minimum((share * bins).astype(int), bins - 1)
    mass = np.bincount(of_bin, w, bins)
    used = mass > 0
    confidence = np.bincount(of_bin, w * p, bins)[used] / mass[used]
    frequency = np.bincount(of_bin, w * y, bins)[used] / mass[used]
    return [
        {"probability": float(c), "frequency": float(f), "share": float(m)}
        for c, f, m in zip(confidence, frequency, mass[used] / w.sum(), strict=True)
    ]


def ece(probability: ArrayLike, event: ArrayLike, weight: ArrayLike | None = None, bins: int = BINS) -> float:
    """Expected calibration error over equal-mass bins: sum of share * |frequency - probability|."""
    table = reliability(probability, event, weight, bins)
    return sum(row["share"] * abs(row["frequency"] - row["probability"]) for row in table)


def ece_floor(
    probability: ArrayLike,
    weight: ArrayLike | None = None,
    bins: int = BINS,
    draws: int = 100,
    seed: int = 0,
    group: NDArray[np.int64] | None = None,
) -> float:
    """Mean ECE when events really happen with these probabilities: the noise floor of this sample.

    Members of a `group` (n,) are one query asked several times: what happens to one happens to all of them.
    """
    p = np.asarray(probability, np.float64)
    of_group = np.arange(len(p)) if group is None else np.unique(group, return_inverse=True)[1]
    random, count = np.random.default_rng(seed), int(of_group.max(initial=-1)) + 1
    return float(np.mean([ece(p, random.random(count)[of_group] < p, weight, bins) for _ in range(draws)]))


def brier(probability: ArrayLike, event: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean squared error of the probability (Brier 1950)."""
    p, y, w = _prepare(probability, event, weight)
    return float(np.average((p - y) ** 2, weights=w))


def event_nll(probability: ArrayLike, event: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean negative log likelihood of the event, nats; inf when an impossible thing happened."""
    p, y, w = _prepare(probability, event, weight)
    with np.errstate(divide="ignore"):
        loss = -np.log(np.where(y > 0.5, p, 1 - p))
    return float(np.average(loss, weights=w))


def finite(value: float) -> float | None:
    """`value`, or None where it is infinite: JSON has no infinity."""
    return value if np.isfinite(value) else None


def auroc(score: ArrayLike, event: ArrayLike, weight: ArrayLike | None = None) -> float | None:
    """P(score of an event > score of a non-event), ties half; None when one of the two never occurs."""
    s, y, w = _prepare(score, event, weight)
    values, at = np.unique(s, return_inverse=True)
    yes = np.bincount(at, w * y, len(values))
    no = np.bincount(at, w * (1 - y), len(values))
    if yes.sum() == 0 or no.sum() == 0:
        return None
    below = np.cumsum(no) - no
    return float(np.sum(yes * (below + no / 2)) / (yes.sum() * no.sum()))


def fpr_at_tpr(score: ArrayLike, event: ArrayLike, weight: ArrayLike | None = None, tpr: float = 0.95) -> float | None:
    """Share of non-events let through at the threshold that keeps `tpr` of the events; None when one is missing."""
    s, y, w = _prepare(score, event, weight)
    if not (y > 0.5).any() or not (y < 0.5).any():
        return None
    order = np.argsort(-s, kind="stable")
    kept = np.cumsum((w * y)[order]) / np.sum(w * y)
    threshold = s[order][int(np.searchsorted(kept, tpr - 1e-12))]
    return float(np.sum((w * (1 - y))[s >= threshold]) / np.sum(w * (1 - y)))


def aurc(confidence: ArrayLike, correct: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Area under the risk-coverage curve (El-Yaniv & Wiener 2010): mean error rate over all coverages."""
    c, y, w = _prepare(confidence, correct, weight)
    order = np.lexsort((w, -c))
    w, wrong = w[order], (w * (1 - _alike(c, y, w)))[order]
    return float(np.sum(w * np.cumsum(wrong) / np.cumsum(w)) / w.sum())


def risk_coverage(
    confidence: ArrayLike, correct: ArrayLike, weight: ArrayLike | None = None, points: int = 400
) -> list[dict[str, float]]:
    """The curve under which `aurc` is the area: of the surest `coverage` of the answers the share `risk` is wrong.

    Thinned to so many points at most.
    """
    c, y, w = _prepare(confidence, correct, weight)
    order = np.lexsort((w, -c))
    w, wrong = w[order], (w * (1 - _alike(c, y, w)))[order]
    coverage, risk = np.cumsum(w) / w.sum(), np.cumsum(wrong) / np.cumsum(w)
    at = np.unique(np.linspace(0, len(w) - 1, min(points, len(w))).astype(int))
    return [{"coverage": float(coverage[i]), "risk": float(risk[i])} for i in at]


def report(
    probability: ArrayLike,
    no_match: ArrayLike,
    right: ArrayLike,
    known: ArrayLike,
    weight: ArrayLike | None = None,
) -> dict[str, float | None]:
    """The measures of a report by name; None where one is not defined or infinite.

    `probability` (n,) is of the event `right`, `no_match` (n,) that a query is not `known`.
    """
    match = 1 - np.asarray(no_match, np.float64)
    return {
        "ece": ece(probability, right, weight),
        "brier": brier(probability, right, weight),
        "nll": finite(event_nll(probability, right, weight)),
        "auroc_right_wrong": auroc(probability, right, weight),
        "auroc_known_unknown": auroc(match, known, weight),
        "fpr_at_95_tpr": fpr_at_tpr(match, known, weight),
        "aurc": aurc(probability, right, weight),
    }


def line_at_far(score: ArrayLike, same: NDArray[np.bool_], far: float) -> float:
    """The least score (n,) to accept pairs from, so that at most `far` of those that are not the `same` (n,) pass."""
    others = np.sort(np.asarray(score)[~same])[::-1]
    return float(np.nextafter(others[int(far * len(others))], np.inf))


def tar_at_far(score: Floats, same: NDArray[np.bool_], far: float) -> dict[str, Any]:
    """The largest true accept rate of pairs whose false accept rate is at most `far`, its threshold, and its support.

    Where `far` of the pairs that are not the same would be fewer than `LEAST_ERRORS` errors, nothing is told but how
    many are needed.
    """
    if far * int((~same).sum()) < LEAST_ERRORS * (1 - 1e-9):
        needed = int(np.ceil(LEAST_ERRORS / far))
        return {"far": far, "tar": None, "threshold": None, "supported": False, "pairs_needed": needed}
    threshold = line_at_far(score, same, far)
    return {"far": far, "tar": float((score[same] >= threshold).mean()), "threshold": threshold, "supported": True}


def intervals(
    probability: Floats,
    no_match: Floats,
    right: NDArray[np.bool_],
    known: NDArray[np.bool_],
    weight: Floats | None = None,
    group: NDArray[np.int64] | None = None,
    draws: int = 100,
    seed: int = 0,
) -> dict[str, list[float]]:
    """95 % bootstrap intervals [low, high] of `report`, drawing whole groups. A measure some draw lacks has none, nor
    has one that tells two kinds apart of which there are fewer than `LEAST_KIND`.

    Basic (reflected) intervals (Davison & Hinkley 1997, section 2.4), those of areas under a curve on the logit's
    scale, as they are skewed near 1; of the share of unknown ones let in, which goes in steps, the percentile interval.
    An ECE is too large by chance, and that of a resample by more: reflection takes off the difference, and the rest of
    the bias, up to `ece_floor`, is taken off the lower end. Cut to what a measure can be (0 to 1, the NLL from 0), and
    never without the measured figure itself. How often they hold is measured in tests/index/test_intervals.py.
    """
    w = np.ones(len(probability)) if weight is None else weight
    of_group = np.arange(len(w)) if group is None else np.unique(group, return_inverse=True)[1]
    random, count = np.random.default_rng(seed), int(of_group.max(initial=-1)) + 1
    drawn = []
    for _ in range(draws):
        times = np.bincount(random.integers(count, size=count), minlength=count)[of_group]
        at = np.flatnonzero(times)
        drawn.append(report(probability[at], no_match[at], right[at], known[at], (w * times)[at]))
    kinds = {"right": right, "known": known}
    few = {name for name, kind in _TELLS.items() if _rarer(kinds[kind], of_group) < LEAST_KIND}
    found = {}
    for name, value in report(probability, no_match, right, known, w).items():
        values = np.array([one[name] for one in drawn], np.float64)  # None becomes NaN
        if value is None or name in few or not np.isfinite(values).all():
            continue
        low, high = _ends(name, value, values, 0.5 / count)
        if name == "ece":
            floor = ece_floor(probability, w, draws=30, seed=seed, group=of_group)
            low -= max(0.0, floor - (float(values.mean()) - value))
        most = np.inf if name == "nll" else 1.0
        found[name] = [min(value, max(0.0, low)), max(value, min(most, high))]
    return found


def _rarer(event: NDArray[np.bool_], of_group: NDArray[np.int64]) -> int:
    """In how many groups the rarer kind is."""
    return min(len(np.unique(of_group[kind])) for kind in (event, ~event))


def _ends(name: str, value: float, values: Floats, least: float) -> tuple[float, float]:
    """Of the interval of a measure, of which there are the `values` of resamples; `least` is how near to 0 or 1 one may
    be told to be."""
    drawn = np.percentile(values, [2.5, 97.5])
    if name == "fpr_at_95_tpr":
        return float(drawn[0]), float(drawn[1])
    if not name.startswith("auroc"):
        return float(2 * value - drawn[1]), float(2 * value - drawn[0])
    at, low, high = (np.log(x / (1 - x)) for x in np.clip([value, *drawn], least, 1 - least))
    return float(1 / (1 + np.exp(high - 2 * at))), float(1 / (1 + np.exp(low - 2 * at)))
