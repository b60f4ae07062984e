"""Prediction sets with a coverage guarantee, as the support of a temperature-scaled sparsemax.

Label y with logit g_y is in the support of sparsemax(g / T) iff sum_{i: g_i > g_y} (g_i - g_y) < T (Martins & Astudillo
2016, eq. 6). So that sum is a nonconformity score, and split conformal prediction's quantile of it is the temperature:
support and set are one (Campos et al. 2025).

The likeliest outcome so is in every set: where it alone is right more often than was asked, sets hold more, never
less. To hold no more they would have to be empty for close calls; a mix with more unknown queries than were promised,
whose calls are closer, would then find many of its sets empty.

One quantile keeps the promise for knowns and unknowns mixed, and may keep it better for one than for the other. With a
quantile each ("Mondrian", Vovk et al. 2005, section 4.5) it holds for both apart, at the price of larger sets; then
labels and no match are cut at temperatures of their own.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.errors import CalibrationError
from index.metrics import effective

Floats = NDArray[np.float64]
CoverageFor = Literal["mixed", "known-unknown"]
"""Whom a coverage is promised to: all queries together, or known and unknown ones apart."""
_SURELY = 0.95


def nonconformity(logits: Floats) -> Floats:
    """(L,) for each outcome of one query: sum of the logit gaps to everything above it; 0 for the best.

    An outcome of logit -inf is in no set, however large: inf.
    """
    possible = np.flatnonzero(np.isfinite(logits))
    order = possible[np.argsort(-logits[possible], kind="stable")]
    g = logits[order]
    above = np.cumsum(g) - g * np.arange(1, len(g) + 1)
    scores = np.full(len(logits), np.inf)
    scores[order] = np.maximum(above, 0.0)
    # equal logits have equal scores whatever their order
    return scores


def threshold(
    scores: ArrayLike,
    weight: ArrayLike,
    coverage: float,
    group: ArrayLike | None = None,
    *,
    of: str = "",
    unnamed: str = "More queries would not help. Ask for less.",
    capped: bool = False,
) -> float:
    """The smallest q that covers `coverage` of exchangeable new queries, with the finite-sample correction.

    `scores` (n,) are the truths' nonconformities, inf where the truth was no candidate; the new query itself counts as
    one more, infinitely nonconforming, query. Examples of one `group` (n,) were made from one query and count as one
    (hierarchical conformal prediction, Lee et al. 2023), and queries of unequal `weight` as fewer of equal ones
    (`index.metrics.effective`): a sample whose weight rests on a few promises no more than those few can. `capped`: see
    `most`. In errors `of` says whose examples these are, and `unnamed` why a right label is no candidate, and what to
    do. Raises `CalibrationError` when the sample cannot support `coverage`.
    """
    s, w = np.asarray(scores, np.float64), np.asarray(weight, np.float64)
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie strictly between 0 and 1, got {coverage}")
    order = np.argsort(s, kind="stable")
    s, w = s[order], w[order]
    count = effective(weight, group)
    reached = np.cumsum(w) / w.sum() * count / (count + 1) if count else np.empty(0)
    at = int(np.searchsorted(reached, coverage - 1e-12))
    best = most(scores, group, weight, capped=capped)
    if at == len(s) or not np.isfinite(s[at]) or best < coverage - 1e-12:
        queries = len(s) if group is None else len(np.unique(np.asarray(group)))
        worth = f" (worth {count:.0f}, as their weights differ)" if count < queries - 0.5 else ""
        lost = float(w[~np.isfinite(s)].sum() / w.sum()) if len(s) else 0.0
        remedy = "Ask for less, or calibrate with more queries."
        if lost and (capped or coverage > 1 - lost):
            remedy = f"Of {lost:.1%} the right label is none that is named. {unnamed}"
        raise CalibrationError(
            f"Coverage {coverage:g} cannot be promised: the {queries} {of}calibration queries{worth} support at most "
            f"{best:.4f}. {remedy}"
        )
    return float(s[at])


def most(scores: ArrayLike, group: ArrayLike | None, weight: ArrayLike, *, capped: bool = False) -> float:
    """The highest coverage the sample supports, see `threshold`; 0 when it supports none.

    `capped`: sets of this kind never hold more than a certain share of the truths. They then promise no more than the
    lower 95 % bound of that share: else just the samples that happen to look good would promise, and break it.
    """
    s, w, count = np.asarray(scores, np.float64), np.asarray(weight, np.float64), effective(weight, group)
    if not count:
        return 0.0
    named = float(w[np.isfinite(s)].sum() / w.sum())
    if capped and 0 < named < 1:
        from scipy.special import betaincinv  # scipy is only needed here and where something is fitted

        named = float(betaincinv(count * named, count * (1 - named) + 1, 1 - _SURELY))
    return named * count / (count + 1)
