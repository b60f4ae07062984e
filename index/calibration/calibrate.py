"""Fitting a collection's calibration, and measuring it on queries it was not fitted on.

The calibrator is cross-fitted: five folds, each query's logits from a fit that did not see it. Those held-out logits
give the report, the temperature of every map and the conformal scores; the calibrator served is fitted on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from index import metrics
from index.calibration.calibrators import CALIBRATORS, BestCosine, Calibrator, Fit, calibrator_from_json
from index.calibration.conditional_logit import MIN_QUERIES
from index.calibration.conformal import CoverageFor, Kind, most, nonconformity, threshold
from index.calibration.drift import Reference
from index.calibration.evidence import SHARPNESS, TOP_K, Evidence, Floats, Ints
from index.calibration.examples import Examples, enough, join
from index.calibration.outcome import ALPHAS, NAMED, column, distribution, fit_temperature, table
from index.calibration.staleness import Seen
from index.calibration.worth import Worth
from index.errors import CalibrationError

if TYPE_CHECKING:
    from index.items.gallery import Gallery

Flags = NDArray[np.bool_]
FOLDS = 5
DEFAULT, FALLBACK = "conditional-logit", "platt"
ROUGHER = ("platt", "isotonic")
"""Calibrators of the best cosine alone, which may fit where that is all there is: one item a label."""

PRIOR_WORTH = 200.0
"""Real queries that the gallery's own items, left out one by one, count for where real ones are few."""
MISFIT = 0.02
"""By how much the ECE may exceed its noise floor, unless that is itself larger, before it is said."""
_FOR_TEMPERATURE = 1500
"""Examples a map's temperature is fitted on: one number needs no more."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The calibration queries as the cross-fitted calibrators saw them; sets, thresholds and drift rest on it.

    (n,) each: `probability` that the top hit is right, whether it was `right`, whether the query was `known`, its
    `weight`, the `nonconformity` of its truth (inf: in no set), the `group` of examples made from one query: they
    are no more independent than that query, so intervals and corrections count groups; the `identity`, one number for
    all queries of one label, below 0 for a query without one; and the weight `promised` that it has where something is
    promised (`index.calibration.examples`).
    """

    probability: Floats
    right: Flags
    known: Flags
    weight: Floats
    nonconformity: Floats
    group: Ints
    identity: Ints
    promised: Floats

    @property
    def for_promises(self) -> HeldOut:
        """Those a promise rests on, with their weights there."""
        counts = self.promised > 0
        of = HeldOut(*(column[counts] for column in self._columns))
        return replace(of, weight=of.promised)

    def worth(self) -> Worth:
        """What they are worth to prediction sets."""
        of = self.for_promises
        return Worth.of(of.nonconformity, of.weight, of.group, of.identity, of.known)

    def kinds(self, worth: Worth, *, apart: bool = False) -> tuple[Kind, Kind]:
        """The known and the unknown ones, `worth` so many, for a promise to both together or to each `apart`."""
        of = self.for_promises

        def kind(part: Flags, worth: float, name: str) -> Kind:
            return Kind(of.nonconformity[part], of.weight[part], of.group[part], worth, name)

        unknown = worth.strangers if apart else worth.unknown
        return kind(of.known, worth.known, "known"), kind(~of.known, unknown, "unknown")

    @property
    def _columns(self) -> tuple[NDArray[Any], ...]:
        return tuple(getattr(self, one.name) for one in fields(self))

    def to_json(self) -> dict[str, Any]:
        scores = [None if not np.isfinite(score) else float(score) for score in self.nonconformity]
        return {
            "probability": self.probability.tolist(),
            "right": self.right.tolist(),
            "known": self.known.tolist(),
            "weight": self.weight.tolist(),
            "nonconformity": scores,
            "group": self.group.tolist(),
            "identity": self.identity.tolist(),
            "promised": self.promised.tolist(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> HeldOut:
        scores = [np.inf if score is None else float(score) for score in value["nonconformity"]]
        found = cls(
            np.array(value["probability"], np.float64),
            np.array(value["right"], np.bool_),
            np.array(value["known"], np.bool_),
            np.array(value["weight"], np.float64),
            np.array(scores, np.float64),
            np.array(value["group"], np.int64),
            # older calibrations do not know these
            np.array(value.get("identity", value["group"]), np.int64),
            np.array(value.get("promised", value["weight"]), np.float64),
        )
        if len({part.shape for part in found._columns}) != 1 or found.weight.ndim != 1:
            raise ValueError("the held-out queries' columns differ in length")
        return found


@dataclass(frozen=True, slots=True)
class Calibration:
    """Everything a collection needs to speak in probabilities, and what it rests on."""

    calibrator: Calibrator
    temperatures: dict[str, float]
    held_out: HeldOut
    worth: Worth
    made_for: Seen
    report: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    reference: Reference | None = None

    def stale(self, gallery: Gallery) -> str | None:
        """Why the calibration no longer fits this gallery, or None, by the limits of `index.calibration.staleness`."""
        return self.made_for.stale_for(gallery)

    def set_thresholds(self, coverage: float, coverage_for: CoverageFor = "mixed") -> tuple[float, float]:
        """Conformal thresholds (of no match, of labels) for sets that hold the truth with probability `coverage`.

        "mixed": one for both, so the promise is for knowns and unknowns as they come. "known-unknown": for each apart.
        Raises `CalibrationError` when the sample cannot support it.
        """
        if coverage_for == "mixed":
            both = self._threshold_of(self.held_out.kinds(self.worth), coverage)
            return both, both
        known, unknown = self.held_out.kinds(self.worth, apart=True)
        return self._threshold_of([unknown], coverage), self._threshold_of([known], coverage)

    def _threshold_of(self, kinds: Sequence[Kind], coverage: float) -> float:
        return threshold(kinds, coverage, unnamed=self._unnamed(), capped=isinstance(self.calibrator, BestCosine))

    def _unnamed(self) -> str:
        """Why a set may lack the right label however large it is, and what to do."""
        if not isinstance(self.calibrator, BestCosine):
            return f"It is not among the {TOP_K} nearest items, and more queries would not help. Ask for less."
        used = self.calibrator.kind
        if used == FALLBACK and len(np.unique(self.held_out.group[self.held_out.known])) < MIN_QUERIES:
            remedy = f"give at least {MIN_QUERIES} queries with --calibrate FILE, for --calibrator {DEFAULT}"
        else:
            remedy = f"index with --calibrator {DEFAULT}"
        return f"The calibrator {used} names the first hit's alone. Ask for less, or {remedy}."

    def to_json(self) -> dict[str, Any]:
        return {
            "format": 1,
            "calibrator": self.calibrator.to_json(),
            "evidence": {"top_k": TOP_K, "sharpness": list(SHARPNESS)},
            "temperatures": self.temperatures,
            "held_out": self.held_out.to_json(),
            "worth": self.worth.to_json(),
            "gallery": self.made_for.to_json(),
            "report": self.report,
            "warnings": self.warnings,
            "reference": None if self.reference is None else self.reference.to_json(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Calibration:
        """Raises `CalibrationError` when the record is of another version or incomplete."""
        try:
            if value["format"] != 1 or value["evidence"] != {"top_k": TOP_K, "sharpness": list(SHARPNESS)}:
                raise CalibrationError("The calibration was stored by another version. Build the index again.")
            calibrator, held_out = calibrator_from_json(value["calibrator"]), HeldOut.from_json(value["held_out"])
            # older calibrations do not say what their queries are worth
            worth = Worth.from_json(value["worth"]) if "worth" in value else held_out.worth()
            most_held = most(held_out.kinds(worth), capped=isinstance(calibrator, BestCosine))
            return cls(
                calibrator,
                {str(name): float(temperature) for name, temperature in value["temperatures"].items()},
                held_out,
                worth,
                Seen.from_json(value["gallery"]),
                # some older calibrations say that more is promised
                {**value["report"], "max_coverage": most_held},
                [str(warning) for warning in value["warnings"]],
                # calibrations of the first version kept none
                None if value.get("reference") is None else Reference.from_json(value["reference"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CalibrationError(
                f"The stored calibration cannot be read ({error}). Build the index again."
            ) from error


def calibrate(
    made: Examples,
    made_for: Seen,
    *,
    warnings: list[str],
    calibrator: str = DEFAULT,
    seed: int = 0,
) -> Calibration:
    """Fits the calibrator of this name and measures it; fewer than `MIN_QUERIES` known queries get Platt and a warning.

    Raises `CalibrationError` when it cannot.
    """
    calibrator, few = _affordable(calibrator, int((made.codes >= 0).sum()), prior=made.prior is not None)
    fit = CALIBRATORS[calibrator]
    served = fit(*join(made, np.arange(len(made.evidence)), PRIOR_WORTH))
    rows, truth = _cross_fitted(made, fit, seed)
    temperatures = _temperatures(rows, truth, made.weight, seed)
    scores = np.array([nonconformity(row)[at] for row, at in zip(rows, truth, strict=True)])
    # a known query whose label is no candidate is in no set, however large
    scores[(made.codes >= 0) & (made.target < 0)] = np.inf
    right = made.right
    p = distribution(rows, "softmax", 1.0)[:, 1]
    promised = made.weight if made.promised is None else made.promised
    held_out = HeldOut(p, right, made.codes >= 0, made.weight, scores, made.group, made.identity, promised)
    worth = held_out.worth()
    report = {"calibrator": calibrator, **_report(made, rows, temperatures, seed)}
    report["max_coverage"] = most(held_out.kinds(worth), capped=isinstance(served, BestCosine))
    return Calibration(
        served,
        temperatures,
        held_out,
        worth,
        made_for,
        report,
        [*warnings, *few, *_told_apart(p, made.evidence, right), *_misfit(report, made, seed)],
        Reference.of(
            made.evidence.features[made.evidence.starts[:-1], 0],
            made.evidence.background,
            made.weight,
            int(metrics.effective(made.weight, made.group)),
        ),
    )


def _affordable(calibrator: str, known: int, *, prior: bool) -> tuple[str, list[str]]:
    """The calibrator that so many known queries can pay for, and what to say about it. Raises `CalibrationError`."""
    enough(known)
    if known >= MIN_QUERIES:
        return calibrator, []
    if prior:
        return calibrator, [
            f"Calibrated on only {known} queries with their label in the gallery, on top of what the gallery's own "
            f"items say. Give at least {MIN_QUERIES} with --calibrate FILE."
        ]
    instead = "" if calibrator == FALLBACK else f" instead of {calibrator}"
    return FALLBACK, [
        f"Calibrated on only {known} queries with their label in the gallery, by {FALLBACK} on the best cosine"
        f"{instead}: only the top hit's label gets a probability, and it is rough. Give at least {MIN_QUERIES} with "
        "--calibrate FILE."
    ]


def _told_apart(p: Floats, evidence: Evidence, right: Flags) -> list[str]:
    """A warning where right and wrong answers never overlap, in `p` held out or in the best cosine alone.

    A separable sample puts no bound on how steep the curve may be: the priors do.
    """
    best = evidence.features[evidence.starts[:-1], 0]
    if metrics.auroc(p, right) != 1 and metrics.auroc(best, right) != 1:
        return []
    return [
        f"On the {len(right)} calibration examples right and wrong answers are told apart without one error, so how "
        "often the surest are wrong was not seen, only assumed. Give harder queries, or more, with --calibrate FILE."
    ]


def _misfit(report: dict[str, Any], made: Examples, seed: int) -> list[str]:
    """A warning where held-out probabilities are off by much more than chance explains, and what fits better."""
    ece, floor = report["ece"], report["ece_floor"]
    if ece <= max(2 * floor, floor + MISFIT):
        return []
    said = f"On the calibration queries held out, probabilities are off by {ece:.1%} on average, where chance explains"
    others: dict[str, float] = {}
    for name in ROUGHER:
        with suppress(CalibrationError):
            others[name] = _ece(made, CALIBRATORS[name], seed)
    best = min(others, key=others.__getitem__, default="")
    if best and others[best] < ece - MISFIT / 2:
        return [
            f"{said} {floor:.1%}. Look for wrong labels among them. If there are none: with --calibrator {best} they "
            f"are off by {others[best]:.1%}, but only the top hit's label gets one."
        ]
    return [
        f"{said} {floor:.1%}: the {report['calibrator']} calibrator does not fit them. Look for wrong labels among "
        "them, give more with --calibrate FILE, or try another --calibrator."
    ]


def _ece(made: Examples, fit: Fit, seed: int) -> float:
    """Of the top hit's label, cross-fitted by another calibrator."""
    rows, _ = _cross_fitted(made, fit, seed)
    return metrics.ece(distribution(rows, "softmax", 1.0)[:, 1], made.right, made.weight)


def _cross_fitted(made: Examples, fit: Fit, seed: int) -> tuple[Floats, Ints]:
    """Held-out logits as a `table` and the true columns; a query's twins are always in one fold."""
    groups, group = np.unique(made.group, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(np.arange(len(groups)) % FOLDS)[group]
    logits, no_match = np.empty(len(made.evidence.codes)), np.empty(len(made.evidence))
    fold_of_candidate = fold[made.evidence.query]
    for number in range(FOLDS):
        rest, part = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        fitted = fit(*join(made, rest, PRIOR_WORTH))
        g, g0 = fitted.logits(made.evidence)
        logits[fold_of_candidate == number] = g[fold_of_candidate == number]
        no_match[part] = g0[part]
    return table(made.evidence, logits, no_match), column(made.evidence, made.target)


def _temperatures(rows: Floats, truth: Ints, weight: Floats, seed: int) -> dict[str, float]:
    # a calibrator on the best cosine gives all but the top label to no match, so there such a truth belongs
    truth = np.where(np.isfinite(rows[np.arange(len(rows)), truth]), truth, 0)
    pick = np.random.default_rng(seed).permutation(len(rows))[:_FOR_TEMPERATURE]
    names = [*(f"entmax:{alpha:g}" for alpha in ALPHAS), NAMED["taylor"]]
    fitted = {name: fit_temperature(rows[pick], truth[pick], weight[pick], name) for name in names}
    return {"softmax": 1.0, **fitted}


def _report(made: Examples, rows: Floats, temperatures: dict[str, float], seed: int) -> dict[str, Any]:
    """Held-out measures: "right" is the event that the top hit's label is the query's."""
    right, w = made.right, made.weight
    known = made.codes >= 0
    p = distribution(rows, "softmax", 1.0)
    of_maps = {name: metrics.ece(distribution(rows, name, temperatures[name])[:, 1], right, w) for name in temperatures}
    return {
        "queries": {
            "known": int(known.sum()),
            "unknown": int((~known).sum()),
            "source": made.source,
            "unknowns": made.unknowns,
            "unknown_share": made.unknown_share,
            "prior": None if made.prior is None else made.prior.source,
        },
        **metrics.report(p[:, 1], p[:, 0], right, known, w),
        "intervals": metrics.intervals(p[:, 1], p[:, 0], right, known, w, made.group, seed=seed),
        "ece_floor": metrics.ece_floor(p[:, 1], w, seed=seed),
        "ece_by_map": of_maps,
        "recall_at_1": float(right[known].mean()),
        "reliability": metrics.reliability(p[:, 1], right, w),
    }
