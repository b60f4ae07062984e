"""How many independent queries the calibration's are worth, kind by kind.

Known and unknown queries are counted apart: where few unknown ones stand for a fifth of all that will come, the sample
says no more of that fifth than those few can. Known queries ask for labels that will be asked for again. Unknown ones
that were really asked come as they came, but as strangers, of whom something is promised apart, a hundred photographs
of one are no hundred. Nor are a hundred queries whose one label was hidden: they stand for labels nobody has seen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from index.calibration.evidence import Floats, Ints
from index.metrics import effective

Flags = NDArray[np.bool_]
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Worth:
    """What queries are worth to prediction sets, in independent ones that weigh alike: the known ones, the unknown ones
    as they come among others, and the unknown ones as strangers."""

    known: float
    unknown: float
    strangers: float

    @classmethod
    def of(cls, scores: Floats, weight: Floats, group: Ints, identity: Ints, known: Flags) -> Worth:
        """All (n,): the truths' nonconformities, weights, which examples are of one query, which queries of one label,
        and which are known."""
        unknown = ~known
        count = effective(weight[unknown], group[unknown])
        scores, alone, named = scores[unknown], as_they_come(group, identity, known), identity[unknown]
        return cls(
            effective(weight[known], group[known]),
            count / design_effect(scores, group[unknown], alone),
            count if one_label(group, identity, known) else count / design_effect(scores, group[unknown], named),
        )

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, float]) -> Worth:
        """Raises TypeError or ValueError for what is no such record."""
        found = cls(**value)
        if not all(0 <= worth < np.inf for worth in value.values()):
            raise ValueError(f"queries cannot be worth {value}")
        return found


def as_they_come(group: Ints, identity: Ints, known: Flags) -> Ints:
    """(u,) the `identity` (n,) of the unknown queries, where each that was really asked is one of its own.

    An imitated one is made from a known one, and in its group.
    """
    imitated = np.isin(group[~known], group[known])
    return np.where(imitated, identity[~known], -1 - group[~known])


def one_label(group: Ints, identity: Ints, known: Flags) -> bool:
    """Whether all unknown queries that carry a label carry the same, which none has by being imitated: it may be a word
    for everything else."""
    labels, imitated = identity[~known], np.isin(group[~known], group[known])
    return len(np.unique(labels[labels >= 0])) == 1 and not imitated.any()


def design_effect(scores: Floats, group: Ints, identity: Ints) -> float:
    """How many queries are worth one of an identity of its own: 1 + (m - 1) rho (Kish 1965).

    m is the mean size of the identity a query belongs to, rho the upper 95 % bound of the intraclass correlation of the
    scores' ranks (one-way analysis of variance, F interval; Donner 1986, section 4), from 0 to 1: of two or three
    identities nobody can tell how alike theirs are, so they are worth two or three queries. Examples of one `group` are
    one query, of their mean score.
    """
    _, first, query, copies = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    scores = np.bincount(query, scores) / copies
    _, of, sizes = np.unique(identity[first], return_inverse=True, return_counts=True)
    n, k = len(scores), len(sizes)
    if n == k:  # none at all, too
        return 1.0
    if k == 1:  # of one nobody can tell
        return float(n)
    from scipy.special import fdtri  # scipy is only needed where something is fitted

    _, at, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[at]
    means = np.bincount(of, ranks) / sizes
    between = float(sizes @ (means - ranks.mean()) ** 2) / (k - 1)
    within = float(((ranks - means[of]) ** 2).sum()) / (n - k)
    size = (n - float(sizes @ sizes) / n) / (k - 1)
    if within <= 0:
        return float(sizes @ sizes) / n
    ratio = between / within / float(fdtri(k - 1, n - k, 1 - CONFIDENCE))
    rho = min(max((ratio - 1) / (ratio + size - 1), 0.0), 1.0)
    return 1 + (float(sizes @ sizes) / n - 1) * rho
