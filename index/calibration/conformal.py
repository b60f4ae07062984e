"""Prediction sets with a coverage guarantee, as the support of a temperature-scaled sparsemax.

Label y with logit g_y is in the support of sparsemax(g / T) iff sum_{i: g_i > g_y} (g_i - g_y) < T (Martins & Astudillo
2016, eq. 6). So that sum is a nonconformity score, and split conformal prediction's quantile of it is the temperature:
support and set are one (Campos et al. 2025).

The likeliest outcome so is in every set: where it alone is right more often than was asked, sets hold more, never
less. To hold no more they would have to be empty for close calls; a mix with more unknown queries than were promised,
whose calls are closer, would then find many of its sets empty.

Known and unknown queries are drawn apart and weighed to the shares they will come in. So the new query, which counts as
one more that is infinitely nonconforming, is one of either kind, and weighs as much as one of its kind does: fifty
unknown queries that stand for a fifth of all cannot promise 99.9 % (group-weighted conformal prediction, Bhattacharyya
& Barber 2024, with one such query for each kind).

One quantile keeps the promise for knowns and unknowns mixed, and may keep it better for one than for the other. With a
quantile each ("Mondrian", Vovk et al. 2005, section 4.5) it holds for both apart, at the price of larger sets; then
labels and no match are cut at temperatures of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Kind:
    """The calibration examples of one kind of query: the truths' nonconformities `scores` (n,), inf where the truth was
    no candidate, their weights (n,), the `group` (n,) of those made from one query, and how many independent queries of
    equal weight they are worth together."""

    scores: Floats
    weight: Floats
    group: NDArray[np.int64]
    worth: float
    name: str = ""

    @classmethod
    def of(
        cls,
        scores: ArrayLike,
        weight: ArrayLike,
        group: ArrayLike | None = None,
        worth: float | None = None,
        name: str = "",
    ) -> Kind:
        """Examples of one `group` count as one (hierarchical conformal prediction, Lee et al. 2023), and queries of
        unequal `weight` as fewer of equal ones (`index.metrics.effective`), unless `worth` says what they are."""
        s = np.asarray(scores, np.float64)
        of = np.arange(len(s)) if group is None else np.asarray(group)
        return cls(s, np.asarray(weight, np.float64), of, effective(weight, of) if worth is None else worth, name)


def threshold(
    kinds: Sequence[Kind],
    coverage: float,
    *,
    unnamed: str = "More queries would not help. Ask for less.",
    capped: bool = False,
) -> float:
    """The smallest q that covers `coverage` of exchangeable new queries, with the finite-sample correction.

    `kinds` are mixed as their weights say. `capped`: see `most`. In errors `unnamed` says why a right label is no
    candidate, and what to do. Raises `CalibrationError` when the sample cannot support `coverage`.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie strictly between 0 and 1, got {coverage}")
    some = [kind for kind in kinds if kind.worth]
    total = sum(kind.weight.sum() for kind in some)
    s = np.concatenate([np.empty(0), *(kind.scores for kind in some)])
    w = np.concatenate([np.empty(0), *(kind.weight / total * kind.worth / (kind.worth + 1) for kind in some)])
    order = np.argsort(s, kind="stable")
    at = int(np.searchsorted(np.cumsum(w[order]), coverage - 1e-12))
    best = most(kinds, capped=capped)
    if at == len(s) or not np.isfinite(s[order[at]]) or best < coverage - 1e-12:
        raise CalibrationError(_refused(kinds, coverage, best, unnamed, capped=capped))
    return float(s[order[at]])


def most(kinds: Sequence[Kind], *, capped: bool = False) -> float:
    """The highest coverage the sample supports, see `threshold`; 0 when it supports none.

    `capped`: sets of this kind never hold more than a certain share of the truths. They then promise no more than the
    lower 95 % bound of that share: else just the samples that happen to look good would promise, and break it.
    """
    total = sum(kind.weight.sum() for kind in kinds)
    best = 0.0
    for kind in kinds:
        if not kind.worth:
            continue
        named = _named(kind)
        if capped and 0 < named < 1:
            from scipy.special import betaincinv  # scipy is only needed here and where something is fitted

            named = float(betaincinv(kind.worth * named, kind.worth * (1 - named) + 1, 1 - _SURELY))
        best += float(kind.weight.sum() / total) * named * kind.worth / (kind.worth + 1)
    return best


def _named(kind: Kind) -> float:
    """Of which share the truth is a candidate."""
    return float(kind.weight[np.isfinite(kind.scores)].sum() / kind.weight.sum())


def _refused(kinds: Sequence[Kind], coverage: float, best: float, unnamed: str, *, capped: bool) -> str:
    queries = {kind.name: len(np.unique(kind.group)) for kind in kinds}
    fewer = [kind for kind in kinds if kind.worth < queries[kind.name] - 0.5]
    worth = " and ".join(
        f"the {queries[kind.name]} {kind.name or 'given'} are worth {kind.worth:.0f}" for kind in fewer
    )
    why = f" ({worth}, as some weigh more or resemble each other)" if fewer else ""
    total = sum(kind.weight.sum() for kind in kinds)
    lost = sum(float(kind.weight.sum() / total) * (1 - _named(kind)) for kind in kinds if kind.worth)
    remedy = "Ask for less, or calibrate with more queries."
    if lost and (capped or coverage > 1 - lost):
        remedy = f"Of {lost:.1%} the right label is none that is named. {unnamed}"
    elif any(kind.name == "unknown" for kind in fewer):
        remedy = "Ask for less, or give unknown queries of more labels with --unknown FILE."
    different = len(np.unique(np.concatenate([kind.group for kind in kinds])))
    of = f"{kinds[0].name} " if len(kinds) == 1 and kinds[0].name else ""
    return (
        f"Coverage {coverage:g} cannot be promised: the {different} {of}calibration queries{why} support at most "
        f"{np.floor(best * 1e4) / 1e4:.4f}. {remedy}"
    )
