"""Why an answer says what it says: the evidence behind each label's probability, and the items behind the evidence.

Everything can be checked by hand. A label's pooled evidence is made of its items among the nearest
(`index.calibration.evidence`); `share_8` and `share_32` are each item's part of it, the derivative of the pooled
evidence by the item's cosine:
    share_b(i) = exp(b s_i) / sum over the label's items of exp(b s)
Its logit is the sum of its `terms`, where the calibrator is one of sums, and the probabilities are the map of all
logits divided by the temperature; of Taylor softmax's zero see `index.calibration.outcome.distribution`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from index.answer import Contribution, Explanation, LabelEvidence
from index.calibration.calibrators import Calibrator
from index.calibration.conditional_logit import UNIT, ConditionalLogit
from index.calibration.evidence import FEATURES, SHARPNESS, Evidence, Floats

if TYPE_CHECKING:
    from index.search.found import Found

NAMES = tuple(name.replace(" at ", "_") for name in FEATURES)
"""As members of a JSON object: best, pooled_8, pooled_32, centroid, cohesion."""


def explain(
    found: Found,
    query: int,
    evidence: Evidence,
    calibrator: Calibrator,
    logits: Floats,
    p: Floats,
    barred: NDArray[np.bool_],
    temperature: float,
) -> Explanation:
    """The explanation of one query's answer: `logits` and `p` (1 + L) of no match and its candidates.

    Candidates `barred` (L,) have no item that may be shown, for a filter or because consent has ended: their mass went
    to no match. They keep their numbers, of which the answer is the map, and are not named; nor are items that do not
    pass, which are counted.
    """
    part = slice(evidence.starts[query], evidence.starts[query + 1])
    labels = []
    for at, (code, features) in enumerate(zip(evidence.codes[part], evidence.features[part], strict=True)):
        items, hidden = _items(found, query, int(code))
        label, id = (None, None) if barred[at] else found.identity(int(code))
        labels.append(
            LabelEvidence(
                label,
                id,
                float(p[1 + at]),
                _finite(logits[1 + at]),
                dict(zip(NAMES, features.tolist(), strict=True)),
                _terms(calibrator, features),
                not barred[at],
                items,
                hidden,
            )
        )
    background = float(evidence.background[query])
    return Explanation(
        temperature,
        background,
        float(logits[0]),
        _no_match_terms(calibrator, background),
        sorted(labels, key=lambda entry: (-entry.probability, not entry.answerable)),
    )


def _items(found: Found, query: int, code: int) -> tuple[list[Contribution], int]:
    """A label's items among the query's nearest, closest first, and how many of them the filter hides.

    A label that only the filter brought in has its items among what passes.
    """
    nearest = found if found.shown is None or code in found.codes[query] else found.shown
    at = np.flatnonzero((nearest.codes[query] == code) & np.isfinite(nearest.scores[query]))
    scores, rows = nearest.scores[query, at].astype(np.float64), nearest.rows[query, at]
    parts = [np.exp(b * (scores - scores[0])) for b in SHARPNESS]
    low, high = (part / part.sum() for part in parts)
    visible = np.ones(len(at), np.bool_) if found.shown is None else np.isin(rows, found.shown.rows[query])
    items = [
        # rounding in the inner product can leave [-1, 1] by an ulp
        Contribution(found.items[int(rows[i])].id, float(np.clip(scores[i], -1.0, 1.0)), float(low[i]), float(high[i]))
        for i in np.flatnonzero(visible)
    ]
    return items, int((~visible).sum())


def _terms(calibrator: Calibrator, features: Floats) -> dict[str, float] | None:
    if not isinstance(calibrator, ConditionalLogit):
        return None
    terms = np.array(calibrator.weights) * (features - np.array(calibrator.feature_mean)) / UNIT
    return dict(zip(NAMES, terms.tolist(), strict=True))


def _no_match_terms(calibrator: Calibrator, background: float) -> dict[str, float] | None:
    if not isinstance(calibrator, ConditionalLogit):
        return None
    slope = calibrator.slope * (background - calibrator.background_mean) / UNIT
    return {"intercept": calibrator.intercept, "background": slope}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
