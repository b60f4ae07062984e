"""The pair task: are these two texts, or pictures, of one class? Calibrated from the cosine of the pair, and measured.

There is no gallery and so no neighbourhood: the cosine is all there is. A logistic regression on it (Platt 1999, with
his smoothed targets) is cross-fitted in five folds; pairs of one first text share a fold.
Where the encoder cannot tell, the honest probability is the base rate, and the report says how much better it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index import metrics
from index.calibration.calibrators import logistic
from index.calibration.conditional_logit import MIN_QUERIES
from index.calibration.sources import Progress, encode_rows
from index.data.rows import Row, cell_text, text_key
from index.encoders.encoder import Encoder
from index.errors import CalibrationError, DataError

FOLDS = 5
YES, NO = ("1", "1.0", "true", "yes", "same"), ("0", "0.0", "false", "no", "different")
"""What a label column may say of a pair."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


def is_same(pair: Row) -> bool:
    """What the pair's label says. Raises `DataError` for anything but `YES` and `NO`."""
    said = (pair.label or "").casefold()
    if said not in (*YES, *NO):
        raise DataError(
            f"{pair.file}: line {pair.line} says {pair.label!r} about its pair. Write 1 (of one class) or 0, or name "
            "another column with --label."
        )
    return said in YES


def second_text(pair: Row, column: str) -> str:
    """The pair's other text, read as the first is. Raises `DataError` for no such column, and for what is no text."""
    if column not in pair.extra:
        others = ", ".join(map(repr, pair.extra))
        raise DataError(
            f"{pair.file}: line {pair.line} has no column '{column}'; besides text and label it has {others}. Name "
            "the column of the second text with --pair-text COLUMN."
        )
    return cell_text(pair.extra[column], Path(pair.file), pair.line, column)


def seconds_of(pairs: Sequence[Row], column: str) -> list[Row]:
    """The pairs' other texts, or paths, from the column of this name. Raises `DataError` for an empty one."""
    others = [Row(second_text(pair, column), pair.label, pair.file, pair.line) for pair in pairs]
    for row in others:
        if not row.text.strip():
            raise DataError(f"{row.file}: line {row.line}: the second text is empty. Fill it or delete the row.")
    return others


def evaluate_pairs(
    encoder: Encoder, pairs: Sequence[Row], others: Sequence[Row], trained: NDArray[np.uint64], progress: Progress
) -> dict[str, Any]:
    """Calibrated probabilities that both texts or pictures of each pair are of one class, and how honest they are.

    The first of each pair and its label are in `pairs`, the second in `others`; `trained` are the `text_key`s the
    encoder was trained on. Raises `DataError` for pairs that cannot be read and `CalibrationError` for too few.
    """
    same = np.array([is_same(pair) for pair in pairs], np.bool_)
    what = "picture" if encoder.modality == "image" else "text"
    a = encode_rows(encoder, pairs, progress, f"encoding first {what}s")
    b = encode_rows(encoder, others, progress, f"encoding second {what}s")
    cosine = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    keys = [np.array([text_key(row.text) for row in part], np.uint64) for part in (pairs, others)]
    p, base = cross_fitted(cosine, same, np.unique(keys[0], return_inverse=True)[1])
    return {
        "model": encoder.fingerprint[:12],
        "pairs": len(pairs),
        "same_share": float(same.mean()),
        **_report(p, base, cosine, same),
        "warnings": _seen_warning(keys, trained, what),
    }


def _seen_warning(keys: Sequence[NDArray[np.uint64]], trained: NDArray[np.uint64], what: str) -> list[str]:
    seen = int(np.logical_or(*(np.isin(part, trained) for part in keys)).sum())
    if not seen:
        return []
    return [
        f"{seen} of {len(keys[0])} pairs hold a {what} the encoder was trained on, so these measures look better than "
        f"life. Use pairs of {what}s it has never seen."
    ]


def cross_fitted(cosine: Floats, same: Flags, group: Ints, seed: int = 0) -> tuple[Floats, Floats]:
    """(n,) each: the pair's probability, and the base rate, both from folds that hold none of its `group`.

    Raises `CalibrationError` for fewer than `MIN_QUERIES` pairs of either kind.
    """
    if min(same.sum(), (~same).sum()) < MIN_QUERIES:
        raise CalibrationError(
            f"{same.sum()} pairs of one class and {(~same).sum()} of two; at least {MIN_QUERIES} of each are needed "
            "for probabilities that mean something. Give more pairs."
        )
    groups, of_group = np.unique(group, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(np.arange(len(groups)) % FOLDS)[of_group]
    p, base = np.empty(len(same)), np.empty(len(same))
    for number in range(FOLDS):
        rest, part = fold != number, fold == number
        if same[rest].all() or not same[rest].any():
            raise CalibrationError(
                f"Nearly all pairs share their first text, so no held-out part of them is left. Give pairs of at least "
                f"{FOLDS} first texts of either kind."
            )
        slope, intercept = logistic(cosine[rest], same[rest], np.ones(int(rest.sum())))
        p[part] = 1 / (1 + np.exp(-(intercept + slope * cosine[part])))
        base[part] = same[rest].mean()
    return p, base


def _report(p: Floats, base: Floats, cosine: Floats, same: Flags) -> dict[str, Any]:
    low, high = np.percentile(p, [5, 95])
    return {
        "ece": metrics.ece(p, same),
        "ece_floor": metrics.ece_floor(p),
        "brier": metrics.brier(p, same),
        "nll": metrics.event_nll(p, same),
        "base_rate": {"brier": metrics.brier(base, same), "nll": metrics.event_nll(base, same)},
        "auroc": metrics.auroc(p, same),
        "tar_at_far": [metrics.tar_at_far(cosine, same, far) for far in metrics.RATES],
        "probabilities": {"5%": float(low), "median": float(np.median(p)), "95%": float(high)},
        "raw_cosine_ece": metrics.ece(np.clip(cosine, 0, 1), same),
        "reliability": metrics.reliability(p, same),
    }
