"""What a search returns: hits, and what they say about the query's identity.

`score` is a cosine in [-1, 1], higher is closer. `probability` is calibrated or it is None, never a guess:
see `Answer.calibrated` and `Answer.reason`.

None has slots: orjson writes a dataclass without them faster. Those of which an answer has many are not frozen, as
frozen ones take longer to be made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MapSpec = str | dict[str, float]
"""A map to probabilities: "softmax", "sparsemax", "entmax15", "taylor", or {"entmax": 1.3}, {"taylor": 6}."""


@dataclass
class Hit:
    """One retrieved item. `probability` is P(this item has the query's identity), None when uncalibrated
    or where the calibrator speaks of the first label alone."""

    id: str
    label: str | None
    score: float
    probability: float | None
    text: str | None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(unsafe_hash=True)
class LabelProbability:
    """One entry of the label distribution. An item without a label stands for itself: `label` None, `id` set."""

    label: str | None
    id: str | None
    probability: float


@dataclass(frozen=True)
class Decision:
    """The most probable outcome. `label` None with `id` None means "no match"."""

    label: str | None
    id: str | None
    probability: float

    def says(self, label: str | None) -> bool:
        """Whether this is the answer `label` (None: no match)."""
        return self.id is None and self.label == label


@dataclass(frozen=True)
class Contribution:
    """One of a label's items among the nearest, and its part of the label's pooled evidence at each sharpness."""

    id: str
    score: float
    share_8: float
    share_32: float


@dataclass(frozen=True)
class LabelEvidence:
    """Why a label has its probability, see `index.search.explain`.

    `evidence`: the cosines best, centroid and cohesion; pooled_8 and pooled_32, log-sums that may exceed 1. `terms`,
    which sum to `logit`: what each adds (None: this calibrator has no such terms). `logit` None: the calibrator cannot
    speak of this label. `answerable`: some item of it passes the filter, and its consent has not ended; else neither
    `label` nor `id` is told. `hidden_items` of those that count do not pass.
    """

    label: str | None
    id: str | None
    probability: float
    logit: float | None
    evidence: dict[str, float]
    terms: dict[str, float] | None
    answerable: bool
    items: list[Contribution]
    hidden_items: int


@dataclass(frozen=True)
class Explanation:
    """Why an answer says what it says: the map of `logit`s over `temperature` gives the probabilities.

    `background` is what "close" means around the query, and with `no_match_terms` makes the logit of no match.
    """

    temperature: float
    background: float
    no_match_logit: float
    no_match_terms: dict[str, float] | None
    labels: list[LabelEvidence]


@dataclass(frozen=True)
class Answer:
    """One query's answer.

    `labels` (descending, only nonzero entries) and `no_match` sum to 1. `prediction_set` holds the labels that contain
    the truth with probability >= `coverage`; `set_has_no_match` says whether "no match" belongs to it; no match
    alone is an abstention. `certified`: proven that labels without one of the nearest items get nothing. When
    `calibrated` is False every probability is None, `decision` too, and `reason` says why and what to do.
    `explanation` is there when asked for.
    """

    hits: list[Hit]
    labels: list[LabelProbability] | None
    no_match: float | None
    decision: Decision | None
    prediction_set: list[LabelProbability] | None
    set_has_no_match: bool | None
    coverage: float | None
    certified: bool
    calibrated: bool
    reason: str | None = None
    warnings: list[str] = field(default_factory=list)
    explanation: Explanation | None = None
