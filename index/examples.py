"""Where calibration's examples come from: queries, what the gallery shows them, and what the right answer was.

An example is a query with its evidence, its true candidate (or `NO_MATCH`) and a weight. Known queries see the gallery
as it is. Unknown queries are real ones if the user has some; class-removed ones stand in: a known query from which its
own label's items are hidden. The two kinds are weighted to the share of unknown queries expected in use, because a
probability is a promise about a mix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.calibration import MIN_QUERIES, NO_MATCH
from index.errors import CalibrationError
from index.evidence import TOP_K, Evidence, Floats, Ints, exact_top, gather
from index.profile import LabelProfile

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Queries:
    """Calibration queries: unit vectors (n, d) and label codes (n,), -1 for a label that is not in the gallery.

    `source` says where they come from, for the report. `rows` (n,) gives the gallery position of a query that is itself
    an item, -1 otherwise: those items are hidden from all queries.
    """

    vectors: Vectors
    codes: Ints
    rows: Ints
    source: str


@dataclass(frozen=True, slots=True)
class Examples:
    """What a calibrator is fitted on and measured with. `group` (n,) ties the twins made from one query together."""

    evidence: Evidence
    target: Ints
    codes: Ints
    weight: Floats
    group: Ints
    unknown_share: float
    source: str
    unknowns: str


def examples(queries: Queries, gallery: Vectors, codes: Ints, labels: int, unknown_share: float) -> Examples:
    """Examples of `queries` against the gallery (size, d) with codes (size,), of which those below `labels` are labels.

    Raises `CalibrationError`.
    """
    known = np.flatnonzero(queries.codes >= 0)
    real = np.flatnonzero(queries.codes < 0)
    if len(known) < MIN_QUERIES:
        raise CalibrationError(
            f"{len(known)} calibration queries have their label in the gallery; at least {MIN_QUERIES} are needed for "
            "probabilities that mean something. Give more labelled queries with --calibrate FILE."
        )
    removed = known if len(real) < MIN_QUERIES else known[:0]
    shown = _visible(queries, codes)
    # of what the queries see: a reserved query must not have moved its label's centroid
    profile = LabelProfile.of(gallery[shown], codes[shown], labels)
    asked = ((known, False), (real, False), (removed, True))
    parts = [_evidence(queries, part, gallery, codes, shown, profile, hide) for part, hide in asked]
    evidence = concatenate([part for part in parts if len(part)])
    truth = np.concatenate([queries.codes[known], np.full(len(real) + len(removed), -1)])
    target = np.where(truth >= 0, evidence.candidate(truth), NO_MATCH)
    return Examples(
        evidence,
        target,
        truth,
        _weights(len(known), len(real), len(removed), unknown_share),
        np.concatenate([known, real, removed]),
        unknown_share,
        queries.source,
        _describe_unknowns(len(real), len(removed)),
    )


def concatenate(parts: list[Evidence]) -> Evidence:
    """The evidence of several batches of queries, one after the other."""
    offsets = np.cumsum([0] + [len(part.codes) for part in parts])
    starts = [part.starts[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
    return Evidence(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.codes for part in parts]),
        np.concatenate([*starts, offsets[-1:]]),
        np.concatenate([part.background for part in parts]),
    )


def select(evidence: Evidence, queries: Ints) -> Evidence:
    """The evidence of some of the queries, in the order asked for."""
    sizes = np.diff(evidence.starts)[queries]
    starts = np.concatenate(([0], np.cumsum(sizes)))
    at = np.arange(starts[-1]) - np.repeat(starts[:-1] - evidence.starts[queries], sizes)
    return Evidence(evidence.features[at], evidence.codes[at], starts, evidence.background[queries])


def _visible(queries: Queries, codes: Ints) -> NDArray[np.bool_]:
    shown = np.ones(len(codes), np.bool_)
    shown[queries.rows[queries.rows >= 0]] = False
    if len(np.unique(codes[shown])) < 2:
        raise CalibrationError(
            "Fewer than two labels are left in the gallery beside the calibration queries, so there is nothing to tell "
            "apart. Give calibration queries that are not items, with --calibrate FILE."
        )
    return shown


def _evidence(
    queries: Queries,
    part: Ints,
    gallery: Vectors,
    codes: Ints,
    shown: NDArray[np.bool_],
    profile: LabelProfile,
    hide_own: bool,
) -> Evidence:
    vectors, own = queries.vectors[part], queries.codes[part]
    visible = np.flatnonzero(shown)
    seen = codes[visible]
    hidden = (lambda block: own[block, None] == seen[None]) if hide_own else None
    scores, positions = exact_top(vectors, gallery[visible], TOP_K, hidden)
    return gather(scores, seen[positions], vectors, profile)


def _weights(known: int, real: int, removed: int, share: float) -> Floats:
    """Weights that give unknown queries the mass `share`, halved between the two kinds where both exist."""
    total = known + real + removed
    kinds = (real > 0) + (removed > 0)
    each = [share / kinds / count if count else 0.0 for count in (real, removed)]
    return total * np.repeat([(1 - share) / known, *each], [known, real, removed])


def _describe_unknowns(real: int, removed: int) -> str:
    said = [f"{real} real unknown queries"] if real else []
    said += [f"{removed} class-removed queries (the query's own label hidden)"] if removed else []
    return " and ".join(said)
