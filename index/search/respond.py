"""From what was found to answers: labels, probabilities and sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.answer import Answer, Decision, Explanation, LabelProbability
from index.calibration.calibrate import Calibration
from index.calibration.calibrators import Calibrator
from index.calibration.conformal import nonconformity
from index.calibration.evidence import SHARPNESS, Evidence, Floats, gather, joined
from index.calibration.outcome import CALLED, distribution, interpolated, table, worst_of
from index.errors import CalibrationError, DataError
from index.search.asked import Asked
from index.search.explain import explain
from index.search.found import Found


@dataclass(frozen=True, slots=True)
class Why:
    """What an explanation needs besides the evidence."""

    calibrator: Calibrator
    temperature: float


def without_probabilities(found: Found, k: int, reason: str, warnings: list[str]) -> list[Answer]:
    """Hits with scores only, and why."""
    return [
        Answer(found.hits(best, None), None, None, None, None, None, None, False, False, reason, warnings)
        for best in found.best(k)
    ]


def evidence_of(found: Found) -> Evidence:
    """What the hits say about each label."""
    return gather(found.scores, found.codes, found.queries, found.gallery.profile)


def with_probabilities(
    found: Found, evidence: Evidence, asked: Asked, calibration: Calibration, warnings: list[str]
) -> list[Answer]:
    """Calibrated answers as they were `asked` for, from the `evidence_of` what was found.

    Raises `DataError` for a map whose temperature was never fitted or a coverage the calibration cannot support.
    """
    temperature = interpolated(calibration.temperatures, asked.map)
    if temperature is None:
        fitted = ", ".join(sorted(calibration.temperatures))
        raise DataError(f"The map {asked.map} was not calibrated for this collection. Use one of: {fitted}.")
    cut = _set_thresholds(calibration, asked)
    warnings = [*warnings, *_map_warning(calibration, asked.map)]
    logits = table(evidence, *calibration.calibrator.logits(evidence))
    certified = _certified(found, evidence, logits, calibration, asked.map, temperature)
    worst = None
    if found.shown is not None and found.shown.rows.size:
        shown, worst = found.shown, worst_of(logits)  # what a filter adds is measured from where the others are
        evidence = joined(evidence, gather(shown.scores, shown.codes, found.queries, found.gallery.profile))
        logits = table(evidence, *calibration.calibrator.logits(evidence))
    p = np.minimum(distribution(logits, asked.map, temperature, worst), 1.0)  # 1 + 2e-16 is no share
    barred = _barred(found, evidence, p.shape)
    if barred is not None:
        p[:, 0] = np.minimum(p[:, 0] + np.where(barred, p, 0.0).sum(axis=1), 1.0)
        p[barred] = 0.0
    why = Why(calibration.calibrator, temperature) if asked.explain else None
    batch = _Batch(found, evidence, logits, _silent(evidence, logits), barred, cut, asked.coverage, warnings, why)
    order = (-p).argsort(axis=1, kind="stable")
    rows = zip(found.best(asked.k), p.tolist(), order.tolist(), certified.tolist(), strict=True)
    return [_answer(batch, query, *row) for query, row in enumerate(rows)]


def _map_warning(calibration: Calibration, name: str) -> list[str]:
    """Only softmax is the calibrated distribution; what another map costs was measured, and is said."""
    by_map = calibration.report.get("ece_by_map", {})
    if name == "softmax" or "softmax" not in by_map:
        return []
    called = f"{CALLED[name]} ({name})" if name in CALLED else name
    if name.startswith("entmax"):
        makes, zeros = "makes a short list, not the calibrated distribution", " A zero is not a certainty."
    else:
        makes, zeros = "is not the calibrated distribution", ""
    return [f"The map {called} {makes}: {_measured(by_map, name)}.{zeros}"]


def _measured(by_map: Mapping[str, float], name: str) -> str:
    """By how much the map's probabilities are off; between two alphas that were measured, by how much theirs are."""
    if name in by_map:
        said = f"its probabilities are off by {by_map[name]:.1%} on average on held-out queries"
        return f"{said} (softmax: {by_map['softmax']:.1%})"
    alphas = {1.0: "softmax"} | {float(other[7:]): other for other in by_map if other.startswith("entmax:")}
    alpha = float(name[7:])
    beside = max(at for at in alphas if at < alpha), min(at for at in alphas if at > alpha)
    said = " and ".join(f"{by_map[alphas[at]]:.1%} ({alphas[at]})" for at in beside)
    return f"by how much it is off was not measured; its neighbours are off by {said} on average on held-out queries"


def _set_thresholds(calibration: Calibration, asked: Asked) -> tuple[float, float] | None:
    if asked.coverage is None:
        return None
    try:
        return calibration.set_thresholds(asked.coverage, asked.coverage_for)
    except CalibrationError as error:
        raise DataError(str(error)) from error


def _barred(found: Found, evidence: Evidence, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """A `table` of the candidates that the filter bars; None without one."""
    if found.shown is None:
        return None
    barred = np.zeros(shape, np.bool_)
    query = evidence.query
    at = np.arange(1, 1 + len(query)) - evidence.starts[query]
    barred[query, at] = ~np.isin(evidence.codes, found.shown.labels)
    return barred


def _silent(evidence: Evidence, logits: Floats) -> NDArray[np.bool_] | None:
    """Where in a `table` the calibrator speaks of no label, or the row has ended; None where it speaks of all."""
    silent = np.isneginf(logits)
    ended = silent.size - len(evidence) - len(evidence.codes)
    return silent if np.count_nonzero(silent) > ended else None


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the answers of one call share; `logits`, `silent` and `barred` are tables (n, 1 + L)."""

    found: Found
    evidence: Evidence
    logits: Floats
    silent: NDArray[np.bool_] | None
    barred: NDArray[np.bool_] | None
    cut: tuple[float, float] | None
    coverage: float | None
    warnings: list[str]
    why: Why | None


def _answer(
    batch: _Batch,
    query: int,
    best: list[tuple[int, float, int]],
    p: list[float],
    order: list[int],
    certified: bool,
) -> Answer:
    """Of one query's hits and row of the table of probabilities, whose columns are given in descending `order`.

    It is made of lists: a call of numpy costs more than a label.
    """
    found, evidence = batch.found, batch.evidence
    codes = evidence.codes[evidence.starts[query] : evidence.starts[query + 1]].tolist()
    told: list[float | None] = [*p[1 : 1 + len(codes)]]
    if batch.silent is not None:
        told = [
            None if silent else value for value, silent in zip(told, batch.silent[query, 1:].tolist(), strict=False)
        ]

    who = [(None, None), *found.identities(codes)]

    def entries(columns: list[int]) -> list[LabelProbability]:
        return [LabelProbability(*who[column], p[column]) for column in columns]

    likeliest = order[0]
    label, item = who[likeliest]
    inside = _inside(batch, query, len(codes))
    # labels that a filter bars are no match together, which so may be the likeliest outcome and must be inside
    return Answer(
        hits=found.hits(best, dict(zip(codes, told, strict=True))),
        labels=entries([column for column in order if column and p[column] > 0]),
        no_match=p[0],
        decision=Decision(label, item, p[likeliest]),
        prediction_set=None if inside is None else entries([at for at in order if at and at in inside]),
        set_has_no_match=None if inside is None else 0 in inside or likeliest == 0,
        coverage=batch.coverage,
        certified=certified,
        calibrated=True,
        warnings=batch.warnings,
        explanation=_why(batch, query, np.array(p[: 1 + len(codes)])),
    )


def _inside(batch: _Batch, query: int, labels: int) -> set[int] | None:
    """The columns in the prediction set of a query with so many candidates; barred ones are there as no match."""
    if batch.cut is None:
        return None
    of_no_match, of_label = batch.cut
    inside = nonconformity(batch.logits[query, : 1 + labels]) <= np.array([of_no_match, *[of_label] * labels])
    if batch.barred is not None:
        barred = batch.barred[query, : 1 + labels]
        inside[0] |= (inside & barred).any()
        inside &= ~barred
    return set(inside.nonzero()[0].tolist())


def _why(batch: _Batch, query: int, p: Floats) -> Explanation | None:
    if batch.why is None:
        return None
    barred = np.zeros(len(p), np.bool_) if batch.barred is None else batch.barred[query, : len(p)]
    return explain(
        batch.found,
        query,
        batch.evidence,
        batch.why.calibrator,
        batch.logits[query, : len(p)],
        p,
        barred[1:],
        batch.why.temperature,
    )


def _certified(
    found: Found, evidence: Evidence, logits: Floats, calibration: Calibration, name: str, temperature: float
) -> NDArray[np.bool_]:
    """Whether labels without a hit among the top K provably have probability 0.

    All their items score at most the K-th hit, and their centroids are known, which bounds their logits; if a label at
    that bound gets exactly 0 under a sparse map, so do all of them (the theorem of `simplex.certificate`). Softmax
    never proves that.
    """
    n = len(logits)
    if found.exact != "top":
        return np.full(n, found.exact == "all")
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
