"""From hits to answers: attaching items, labels and probabilities to what the engine found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from index.answer import Answer, Decision, Hit, LabelProbability
from index.calibrate import Calibration
from index.calibrators import Calibrator
from index.conformal import CoverageFor, nonconformity
from index.errors import CalibrationError, DataError
from index.evidence import SHARPNESS, Evidence, Floats, gather, joined
from index.explain import explain
from index.items import Item
from index.outcome import distribution, interpolated, table

if TYPE_CHECKING:
    from index.gallery import Gallery


@dataclass(frozen=True, slots=True)
class Shown:
    """What passes a filter: the best of it (n, K') by score, row and label code, and every label that has some of it.

    Evidence is gathered over the whole gallery all the same, so that the calibration holds: the filter only says what
    may be shown and answered. Labels of which nothing passes count as no match.
    """

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    codes: NDArray[np.int64]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Found:
    """What the engine found for n queries (n, d): scores, rows, label codes (n, K), and the items to be shown.

    `shown` is what passes the filter, None without one.
    """

    queries: NDArray[np.float32]
    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    codes: NDArray[np.int64]
    items: dict[int, Item]
    gallery: Gallery
    shown: Shown | None = None

    def identity(self, code: int) -> tuple[str | None, str | None]:
        """(label, None), or (None, id) of an item that stands for itself."""
        names = self.gallery.names
        if code < len(names):
            return names[code], None
        row = int(self.gallery.rows[code - len(names)])
        return None, self.items[row].id

    def hits(self, query: int, k: int, probability: dict[int, float | None] | None) -> list[Hit]:
        best = self.shown or self
        # rounding in the inner product can leave [-1, 1] by an ulp
        scores = best.scores[query, :k].clip(-1.0, 1.0)
        shown = zip(best.rows[query, :k].tolist(), scores.tolist(), best.codes[query, :k].tolist(), strict=True)
        return [
            Hit(
                id=item.id,
                label=item.label,
                score=score,
                probability=None if probability is None else probability[code],
                text=item.text,
                metadata=item.metadata,
            )
            for row, score, code in shown
            if (item := self.items.get(row)) is not None
        ]


@dataclass(frozen=True, slots=True)
class Why:
    """What an explanation needs besides the evidence."""

    calibrator: Calibrator
    temperature: float


def without_probabilities(found: Found, k: int, reason: str, warnings: list[str]) -> list[Answer]:
    """Hits with scores only, and why."""
    return [
        Answer(found.hits(query, k, None), None, None, None, None, None, None, False, False, reason, warnings)
        for query in range(len(found.scores))
    ]


def evidence_of(found: Found) -> Evidence:
    """What the hits say about each label."""
    return gather(found.scores, found.codes, found.queries, found.gallery.profile)


def with_probabilities(
    found: Found,
    evidence: Evidence,
    k: int,
    calibration: Calibration,
    name: str,
    coverage: float | None,
    coverage_for: CoverageFor,
    exact: Literal["all", "top", "no"],
    warnings: list[str],
    explained: bool = False,
) -> list[Answer]:
    """Calibrated answers under the map `name`, from the `evidence_of` what was found.

    `exact` says whether the hits are the whole gallery, or its true top.
    Raises `DataError` for a map whose temperature was never fitted or a coverage the calibration cannot support.
    """
    temperature = interpolated(calibration.temperatures, name)
    if temperature is None:
        fitted = ", ".join(sorted(calibration.temperatures))
        raise DataError(f"The map {name} was not calibrated for this collection. Use one of: {fitted}.")
    cut = _set_thresholds(calibration, coverage, coverage_for)
    warnings = [*warnings, *_map_warning(calibration, name)]
    logits = table(evidence, *calibration.calibrator.logits(evidence))
    certified = _certified(found, evidence, logits, calibration, name, temperature, exact)
    if found.shown is not None and found.shown.rows.size:
        shown = found.shown
        evidence = joined(evidence, gather(shown.scores, shown.codes, found.queries, found.gallery.profile))
        logits = table(evidence, *calibration.calibrator.logits(evidence))
    p = distribution(logits, name, temperature)
    why = Why(calibration.calibrator, temperature) if explained else None
    return [
        _answer(
            found, query, k, evidence, logits[query], p[query], cut, coverage, bool(certified[query]), warnings, why
        )
        for query in range(len(found.scores))
    ]


def _map_warning(calibration: Calibration, name: str) -> list[str]:
    """Only softmax is the calibrated distribution; what another map costs was measured, and is said."""
    by_map = calibration.report.get("ece_by_map", {})
    if name == "softmax" or "softmax" not in by_map:
        return []
    measured = f"{by_map[name]:.1%} on average on held-out queries" if name in by_map else "more"
    return [
        f"The map {name} makes a short list, not the calibrated distribution: its probabilities are off by {measured} "
        f"(softmax: {by_map['softmax']:.1%}), and a zero is not a certainty."
    ]


def _set_thresholds(
    calibration: Calibration, coverage: float | None, coverage_for: CoverageFor
) -> tuple[float, float] | None:
    if coverage is None:
        return None
    try:
        return calibration.set_thresholds(coverage, coverage_for)
    except CalibrationError as error:
        raise DataError(str(error)) from error


def _answer(
    found: Found,
    query: int,
    k: int,
    evidence: Evidence,
    logits: Floats,
    p: Floats,
    cut: tuple[float, float] | None,
    coverage: float | None,
    certified: bool,
    warnings: list[str],
    why: Why | None,
) -> Answer:
    codes = evidence.codes[evidence.starts[query] : evidence.starts[query + 1]]
    p, logits = p[: len(codes) + 1], logits[: len(codes) + 1]
    barred = np.zeros(len(codes), np.bool_)
    if found.shown is not None:
        barred = ~np.isin(codes, found.shown.labels)
        p = np.concatenate([p[:1] + p[1:][barred].sum(), np.where(barred, 0.0, p[1:])])
    p = np.minimum(p, 1.0)  # 1 + 2e-16 is no share

    def entries(columns: NDArray[np.int64]) -> list[LabelProbability]:
        ordered = columns[(-p[columns]).argsort(kind="stable")]
        shown = zip(codes[ordered - 1].tolist(), p[ordered].tolist(), strict=True)
        return [LabelProbability(*found.identity(code), probability) for code, probability in shown]

    best = int(np.argmax(p))
    label, item = (None, None) if best == 0 else found.identity(int(codes[best - 1]))
    inside = None if cut is None else nonconformity(logits) <= np.array([cut[0], *[cut[1]] * len(codes)])
    told: list[float | None] = p[1:].tolist()
    for silent in np.flatnonzero(np.isneginf(logits[1:])).tolist():  # the calibrator does not speak of these labels
        told[silent] = None
    return Answer(
        hits=found.hits(query, k, dict(zip(codes.tolist(), told, strict=True))),
        labels=entries(1 + (p[1:] > 0).nonzero()[0]),
        no_match=float(p[0]),
        decision=Decision(label, item, float(p[best])),
        prediction_set=None if inside is None else entries(1 + (inside[1:] & ~barred).nonzero()[0]),
        # labels that a filter bars are no match together, which so may be the likeliest outcome and must be inside
        set_has_no_match=None if inside is None else bool(inside[0] or best == 0 or (inside[1:] & barred).any()),
        coverage=coverage,
        certified=certified,
        calibrated=True,
        warnings=warnings,
        explanation=None
        if why is None
        else explain(found, query, evidence, why.calibrator, logits, p, barred, why.temperature),
    )


def _certified(
    found: Found,
    evidence: Evidence,
    logits: Floats,
    calibration: Calibration,
    name: str,
    temperature: float,
    exact: Literal["all", "top", "no"],
) -> NDArray[np.bool_]:
    """Whether labels without a hit among the top K provably have probability 0.

    All their items score at most the K-th hit, and their centroids are known, which bounds their logits; if a label at
    that bound gets exactly 0 under a sparse map, so do all of them (the theorem of `simplex.certificate`). Softmax
    never proves that.
    """
    n = len(logits)
    if exact == "all" or exact == "no":
        return np.full(n, exact == "all")
    if not name.startswith("entmax"):
        return np.zeros(n, np.bool_)
    profile = found.gallery.profile
    worst = found.scores[:, -1].astype(np.float64)
    nearest = (found.queries @ profile.centroids.T).astype(np.float64)
    nearest[evidence.query, np.minimum(evidence.codes, nearest.shape[1] - 1)] = -np.inf
    bounds = [worst, *(worst + np.log(found.gallery.largest) / b for b in SHARPNESS)]
    bounds.append(np.maximum(worst, nearest.max(axis=1, initial=-1.0)))
    unseen = np.full(n, -np.inf)
    for cohesion in (profile.cohesion.min(initial=profile.neutral), profile.cohesion.max(initial=profile.neutral)):
        features = np.column_stack([*bounds, np.full(n, cohesion)])
        bound = Evidence(features, np.zeros(n, np.int64), np.arange(n + 1), evidence.background)
        unseen = np.maximum(unseen, calibration.calibrator.logits(bound)[0])
    of_unseen: Floats = distribution(np.column_stack([logits, unseen]), name, temperature)[:, -1]
    proven: NDArray[np.bool_] = of_unseen == 0
    return proven
