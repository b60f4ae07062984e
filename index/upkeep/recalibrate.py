"""Fitting a live collection's calibration again, users' feedback included, and telling what that changed.

Feedback is what people said was right for a query they had asked (a label, or nothing in the gallery). Before and after
are both measured on it, and neither on what it was fitted on: the new calibration by cross-fitting, the old one on the
notes that came after it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index import metrics
from index.calibration.calibrate import Calibration
from index.calibration.conditional_logit import FEW_QUERIES, MIN_QUERIES
from index.calibration.evidence import Floats
from index.calibration.examples import Examples, Queries, select
from index.calibration.outcome import distribution, table
from index.calibration.sources import saying
from index.errors import CalibrationError
from index.items.gallery import Gallery
from index.items.store import Changes, ItemStore
from index.upkeep.compaction import Fitting

Vectors = NDArray[np.float32]
_DRAWS = 500


def recalibrated(
    folder: Path, store: ItemStore, now: Changes, gallery: Gallery, fitting: Fitting, served: Calibration | None
) -> tuple[Calibration, dict[str, Any] | None]:
    """A calibration for the items `now` as `fitting` says, and, with feedback, what it changes against that `served`.

    The change: `queries` compared (`known`, `unknown`), and `before` and `after` with the ECE and NLL of "the top hit's
    label is right" on them, known and unknown weighted to the share expected in use; `nll_change` with its 95 % paired
    bootstrap interval. Where nothing honest can be compared, `why_not` says why. Raises `CalibrationError`.
    """
    queries, notes = fitting.queries(folder, store, now, gallery)
    with saying(notes):
        if fitting.feedback is not None:
            _check_enough(queries)
        made = fitting.examples(queries, now, gallery)
        found = fitting.fitted(made, queries, gallery, notes)
    fitted_on = np.concatenate([store.calibration_queries().vectors, queries.vectors[queries.rows >= 0]])
    return found, _change(made, queries, fitted_on, found, served) if fitting.feedback is not None else None


def _check_enough(queries: Queries) -> None:
    fed = queries.codes[len(queries.codes) - len(queries.feedback) :]
    known = int((fed >= 0).sum())
    if len(fed) < MIN_QUERIES or known < FEW_QUERIES or known == len(fed):
        raise CalibrationError(
            f"There is feedback on {len(fed)} different queries that can be used, {known} with a label of this "
            f"collection and {len(fed) - known} without; to recalibrate, at least {MIN_QUERIES} are needed, of which "
            f"at least {FEW_QUERIES} with and one without. Collect more (POST /v1/feedback), or fit again without any: "
            "surematch recalibrate COLLECTION --no-feedback."
        )


def _change(
    made: Examples, queries: Queries, fitted_on: Vectors, found: Calibration, served: Calibration | None
) -> dict[str, Any]:
    at = _compared(made, queries, fitted_on, served)
    known = made.codes[at] >= 0
    counts = {"queries": len(at), "known": int(known.sum()), "unknown": int((~known).sum())}
    if served is None:
        return {**counts, "why_not": "The collection had no calibration before."}
    if len(at) < MIN_QUERIES or known.all() or not known.any():
        return {
            **counts,
            "why_not": f"Of the feedback that can be used, the calibration in use was fitted on all but {len(at)} "
            f"queries; {MIN_QUERIES} newer ones, known and unknown, are needed to measure it honestly.",
        }
    weight = np.where(known, (1 - made.unknown_share) / known.sum(), made.unknown_share / (~known).sum()) * len(at)
    evidence, right = select(made.evidence, at), found.held_out.right[at]
    before = distribution(table(evidence, *served.calibrator.logits(evidence)), "softmax", 1.0)[:, 1]
    after = found.held_out.probability[at]
    return {
        **counts,
        "before": _measured(before, right, weight),
        "after": _measured(after, right, weight),
        "nll_change": _nll_change(before, after, right, weight),
    }


def _compared(made: Examples, queries: Queries, fitted_on: Vectors, served: Calibration | None) -> NDArray[np.int64]:
    """Examples of feedback that neither calibration was fitted on: newer than the served one, and no copy of a query in
    `fitted_on` (m, d), of those that feedback corrects neither.

    The examples that hide nothing come first, one a query; known ones that would find nothing of their label have none.
    """
    first = len(queries.codes) - len(queries.feedback)
    used = (served.report.get("queries", {}).get("feedback") or {}) if served is not None else {}
    others = {vector.tobytes() for vector in fitted_on}
    hide_nothing = int((made.codes >= 0).sum() + (queries.codes < 0).sum())
    of_feedback = np.flatnonzero(made.group[:hide_nothing] >= first)
    kept = [
        example
        for example in of_feedback
        if queries.feedback[made.group[example] - first] > int(used.get("upto", 0))
        and queries.vectors[made.group[example]].tobytes() not in others
    ]
    return np.array(kept, np.int64)


def _measured(probability: Floats, right: NDArray[np.bool_], weight: Floats) -> dict[str, float | None]:
    return {
        "ece": metrics.ece(probability, right, weight),
        "ece_floor": metrics.ece_floor(probability, weight),
        "nll": metrics.finite(metrics.event_nll(probability, right, weight)),
    }


def _nll_change(before: Floats, after: Floats, right: NDArray[np.bool_], weight: Floats) -> dict[str, Any] | None:
    """Mean of after - before and its 95 % interval, queries drawn anew; None where an impossible thing happened."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.log(np.where(right, before, 1 - before)) - np.log(np.where(right, after, 1 - after))
    if not np.isfinite(gain).all():
        return None
    drawn = np.random.default_rng(0).integers(len(gain), size=(_DRAWS, len(gain)))
    low, high = np.percentile((gain * weight)[drawn].sum(axis=1) / weight[drawn].sum(axis=1), [2.5, 97.5])
    return {"mean": float(np.average(gain, weights=weight)), "interval": [float(low), float(high)]}
