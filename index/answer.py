"""What a search returns: hits, and what they say about the query's identity.

`score` is a cosine in [-1, 1], higher is closer. `probability` is calibrated or it is None, never a guess:
see `Answer.calibrated` and `Answer.reason`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MapSpec = str | dict[str, float]
"""A map to probabilities: "softmax", "sparsemax", "entmax15", "taylor", or {"entmax": 1.3}, {"taylor": 4}."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One retrieved item. `probability` is P(this item has the query's identity), None when uncalibrated."""

    id: str
    label: str | None
    score: float
    probability: float | None
    text: str | None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelProbability:
    """One entry of the label distribution. An item without a label stands for itself: `label` None, `id` set."""

    label: str | None
    id: str | None
    probability: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The most probable outcome. `label` None with `id` None means "no match"."""

    label: str | None
    id: str | None
    probability: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One query's answer.

    `labels` (descending, only nonzero entries) and `no_match` sum to 1. `prediction_set` holds the labels that contain
    the truth with probability >= `coverage`; `set_has_no_match` says whether "no match" belongs to it, and an empty set
    is an abstention. `certified`: proven equal to the answer over the whole gallery. When `calibrated` is False every
    probability is None, `decision` too, and `reason` says why and what to do.
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
