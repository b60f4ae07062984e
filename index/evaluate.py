"""How good, and how honest, a collection is on labelled queries it has never seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index import metrics
from index.answer import Answer
from index.calibration.conformal import CoverageFor
from index.calibration.distinct import MANY
from index.calibration.page import Measured, write_page
from index.calibration.sources import Progress, check_labels, encode_rows, trained_rows
from index.collection import Collection
from index.data.rows import Row, text_key
from index.errors import CalibrationError, DataError
from index.search.answer_table import write_table
from index.storage.folder import ENCODER

COVERAGES = (0.9, 0.95, 0.99)
_BLOCK = 512
CHANCE = 1e-4
"""How rarely what keeps its promise misses it by so much that it is told: each of six sets, and the surest answers."""
SUREST = 5
"""One of so many answers is among the surest."""


def evaluate(
    collection: Collection,
    known: Sequence[Row],
    unknown: Sequence[Row],
    *,
    map: str = "softmax",
    progress: Progress,
    page: Path | None = None,
    table: Path | None = None,
) -> dict[str, Any]:
    """Measures on `known` queries (label in the gallery) and `unknown` ones (no label of the gallery).

    "Right" is the event that the top hit carries the query's label; `ece` is equal-mass, 15 bins, beside the noise
    floor of a perfectly calibrated predictor on the same sample. `page` is a file for the report with pictures,
    `table` one for every query and its answer (`index.search.answer_table`). Raises `DataError` for labels in the wrong
    file.
    """
    names = collection.answerable()
    check_labels(known, names, known=True)
    check_labels(unknown, names, known=False, known_as="as DATA, without a flag,")
    rows = [*known, *unknown]
    if not rows:
        raise DataError("No queries to evaluate. Give at least one file of labelled queries.")
    vectors = encode_rows(collection.encoder, rows, progress, "encoding queries")
    answers = _answers(collection, vectors, map, progress)
    if not answers[0].hits:
        raise DataError("The consent of every item has ended, so nothing can be found. Index items that may be.")
    truth = [row.label and collection.gallery.spelled(row.label) for row in known] + [None] * len(unknown)
    if table is not None:
        write_table(table, rows, answers, truth)
    is_known = np.array([True] * len(known) + [False] * len(unknown))
    report: dict[str, Any] = {
        "collection": collection.name,
        "model": collection.model_id,
        "snapshot": collection.snapshot_id,
        "map": map,
        "queries": {"known": len(known), "unknown": len(unknown)},
        "recall@1": _recall(answers, truth, is_known, 1),
        "recall@5": _recall(answers, truth, is_known, 5),
        "calibrated": answers[0].calibrated,
        "reason": answers[0].reason,
        "warnings": answers[0].warnings,
    }
    if answers[0].calibrated:
        keys = [f"{text_key(row.text)} {row.label}" for row in rows]
        group = np.unique(keys, return_inverse=True)[1]
        points, honesty = _honesty(answers, truth, is_known, group)
        report |= honesty
        if map == "softmax":  # what another map is off by is said above
            once = np.unique(group, return_index=True)[1]
            p, right = points.probability[once], points.right[once]
            report["warnings"] = [*report["warnings"], *_mix_warning(collection, points.known[once], p, right)]
            report["warnings"] += _surest_warning(p, right)
        if (copies := len(rows) - len(set(keys))) > MANY * len(rows):
            said = f"{copies} of {len(rows)} queries are copies of others: intervals and floors count each once."
            report["warnings"].append(said)
    report["warnings"] = [*_seen_warning(collection, rows), *report["warnings"]]
    if answers[0].calibrated:
        report["sets"] = _sets(collection, vectors, truth, "mixed")
        report["sets_known_unknown"] = _sets(collection, vectors, truth, "known-unknown")
        different = {kind: len(np.unique(group[part])) for kind, part in (("known", is_known), ("unknown", ~is_known))}
        report["warnings"] += _broken(collection, report["sets_known_unknown"], different)
        if page is not None:
            write_page(page, f"{collection.name}: evaluation", points, report, report["warnings"])
    elif page is not None:
        raise CalibrationError(f"{page}: not written, there are no probabilities to report on. {report['reason']}")
    return report


def _seen_warning(collection: Collection, rows: Sequence[Row]) -> list[str]:
    """Queries that are not new make every measure look better than life."""
    keys = np.array([text_key(row.text) for row in rows], np.uint64)
    in_training = int(np.isin(keys, trained_rows(collection.path / ENCODER)).sum())
    in_gallery = int(np.isin(keys, collection.keys()).sum())
    said = []
    if in_training:
        said.append(f"{in_training} of {len(rows)} queries were in the encoder's training data")
    if in_gallery > 0.05 * len(rows):
        said.append(f"{in_gallery} of {len(rows)} queries are items of the gallery")
    if not said:
        return []
    return [f"{' and '.join(said)}, so these measures look better than life. Use queries it has never seen."]


def _mix_warning(
    collection: Collection, known: NDArray[np.bool_], p: NDArray[np.float64], right: NDArray[np.bool_]
) -> list[str]:
    """Of another share of unknown queries than was expected, and which way the probabilities are off, if they are."""
    calibration, share = collection.calibration, float(1 - known.mean())
    promised = float(calibration.report["queries"]["unknown_share"]) if calibration else share
    if abs(promised - share) <= 0.1:
        return []
    missing = "Add unknown ones with --unknown FILE" if share < promised else "Add known ones"
    happened = float(right.mean())
    gap, chance = float(p.mean()) - happened, 3 * float(np.sqrt((p * (1 - p)).sum())) / len(p)
    found = f"too {'high' if gap > 0 else 'low'} here" if abs(gap) > chance else "no further off than by chance"
    return [
        f"{100 * share:.3g}% of these queries are unknown, but the probabilities were calibrated for a mix with "
        f"{100 * promised:.6g}%. On average they said {p.mean():.1%} where {happened:.1%} were right: {found}. "
        f"{missing}, or index with --unknown-share set to what you expect."
    ]


def _surest_warning(p: NDArray[np.float64], right: NDArray[np.bool_]) -> list[str]:
    """Of more wrong ones among the surest fifth of the answers than chance allows.

    Wrong ones are a sum of rare events, so as a Poisson variable they are no less likely to be many.
    """
    from scipy.stats import poisson

    surest = np.argsort(-p, kind="stable")[: -(-len(p) // SUREST)]
    said, happened = p[surest].mean(), right[surest].mean()
    if poisson.sf(int((~right[surest]).sum()) - 1, float((1 - p[surest]).sum())) >= CHANCE:
        return []
    return [
        f"Of the surest fifth of these answers {happened:.1%} are right, where {said:.1%} was said: too sure. Look at "
        "these mistakes (--answers FILE lists them); where the labels are right, index with queries like these: "
        "--calibrate FILE, --unknown FILE."
    ]


def _answers(collection: Collection, vectors: NDArray[np.float32], map: str, progress: Progress) -> list[Answer]:
    answers: list[Answer] = []
    for start in range(0, len(vectors), _BLOCK):
        answers += collection.search_vectors(vectors[start : start + _BLOCK], k=5, map=map)
        progress("asking", len(answers), len(vectors))
    return answers


def _recall(answers: list[Answer], truth: list[str | None], known: NDArray[np.bool_], k: int) -> float | None:
    found = [
        any(hit.label == label for hit in answer.hits[:k])
        for answer, label, counts in zip(answers, truth, known, strict=True)
        if counts
    ]
    return float(np.mean(found)) if found else None


def _honesty(
    answers: list[Answer], truth: list[str | None], known: NDArray[np.bool_], group: NDArray[np.int64]
) -> tuple[Measured, dict[str, Any]]:
    """The points of the report's pictures, and its figures; queries of one `group` (n,) are copies."""
    p = np.array([answer.hits[0].probability for answer in answers])
    no_match = np.array([answer.no_match for answer in answers])
    right = np.array([answer.hits[0].label == label for answer, label in zip(answers, truth, strict=True)]) & known
    decided = np.array([_decided_right(answer, label) for answer, label in zip(answers, truth, strict=True)])
    return Measured(p, right, known, np.ones(len(p))), {
        **metrics.report(p, no_match, right, known),
        "intervals": metrics.intervals(p, no_match, right, known, group=group),
        "ece_floor": metrics.ece_floor(p, group=group),
        "decision_accuracy": float(decided.mean()),
        **_identification(answers, decided, known),
        "no_match_mean": float(no_match.mean()),
        "unknown_share": float(1 - known.mean()),
        "reliability": metrics.reliability(p, right),
    }


def _identification(
    answers: list[Answer], decided: NDArray[np.bool_], known: NDArray[np.bool_]
) -> dict[str, float | None]:
    """Errors of the decisions, as open-set identification counts them (ISO/IEC 19795-1).

    `fpir`: share of unknown queries that were given a label. `fnir`: share of known queries not given their own.
    """
    matched = np.array([answer.decision is not None and answer.decision.label is not None for answer in answers])
    return {
        "fpir": float(matched[~known].mean()) if not known.all() else None,
        "fnir": float((~decided[known]).mean()) if known.any() else None,
    }


def _decided_right(answer: Answer, label: str | None) -> bool:
    return answer.decision is not None and answer.decision.says(label)


def _sets(
    collection: Collection, vectors: NDArray[np.float32], truth: list[str | None], coverage_for: CoverageFor
) -> list[dict[str, Any]]:
    """Measured coverage, also of knowns and unknowns apart, and mean size of the prediction sets.

    A coverage the calibration cannot support says so.
    """
    measured: list[dict[str, Any]] = []
    known = np.array([label is not None for label in truth])
    for coverage in COVERAGES:
        try:
            answers = [
                answer
                for start in range(0, len(vectors), _BLOCK)
                for answer in collection.search_vectors(
                    vectors[start : start + _BLOCK], k=1, coverage=coverage, coverage_for=coverage_for
                )
            ]
        except DataError as error:
            measured.append({"coverage": coverage, "reason": str(error)})
            continue
        inside = np.array([_in_set(answer, label) for answer, label in zip(answers, truth, strict=True)])
        sizes = [len(answer.prediction_set or []) + bool(answer.set_has_no_match) for answer in answers]
        measured.append(
            {
                "coverage": coverage,
                "measured": float(inside.mean()),
                "known": float(inside[known].mean()) if known.any() else None,
                "unknown": float(inside[~known].mean()) if not known.all() else None,
                "size": float(np.mean(sizes)),
            }
        )
    return measured


def _broken(collection: Collection, sets: list[dict[str, Any]], different: dict[str, int]) -> list[str]:
    """What to say of sets that hold less than they promise to a kind, of whose queries so many are `different`.

    By more than chance: the coverage c that m queries were calibrated for varies as Beta((m + 1) c, (m + 1) (1 - c))
    (Vovk 2012, section 3), so of n queries those missed are beta-binomial. Of several the least likely is told.
    """
    if collection.calibration is None:
        return []
    from scipy.stats import betabinom

    worth = collection.calibration.worth
    least, said = CHANCE, ""
    for kind, count in different.items():
        m = worth.known if kind == "known" else worth.strangers
        for measured in sets:
            held, promised = measured.get(kind), measured["coverage"]
            if held is None or not count or not m:
                continue
            missed = np.floor(count * (1 - held) + 1e-9)
            chance = betabinom.sf(missed - 1, count, (m + 1) * (1 - promised), (m + 1) * promised)
            if chance < least:
                least = chance
                said = (
                    f"Sets that promise {100 * promised:.6g}% hold {held:.1%} of these {kind} queries: they are not "
                    "like those that the calibration rests on, and probabilities may be off, too. Index with some "
                    f"queries of this kind: {'--calibrate' if kind == 'known' else '--unknown'} FILE."
                )
    return [said] if said else []


def _in_set(answer: Answer, label: str | None) -> bool:
    if label is None:
        return bool(answer.set_has_no_match)
    return any(entry.label == label for entry in answer.prediction_set or [])
