"""What the nearest neighbours say about each label: the features every calibrator works on.

Of a query's top K hits with cosines s_1 >= s_2 >= ..., grouped by label c:
    best(c)   = max_{i in c} s_i
    pool_b(c) = s_1 + (1/b) log sum_{i in c} exp(b (s_i - s_1)),   b = 8, 32   (many close items weigh more than one)
    background = mean cosine of the hits that do not carry the best hit's label: what "close" means around here.
Two more features come from what is known of the label beforehand: its centroid's cosine and its cohesion
(`index.items.profile`). An item without a label is a label of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from index.items.profile import LabelProfile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHARPNESS = (8.0, 32.0)
FEATURES = ("best", "pooled at 8", "pooled at 32", "centroid", "cohesion")
TOP_K = 100
"""Hits that make the evidence; part of the calibrator's definition."""
_BLOCK_BYTES = 128 << 20


@dataclass(frozen=True)
class Evidence:
    """Candidate labels of n queries, m in all, each query's ordered by its best cosine (its top hit's label first).

    `features` (m, 5), named in `FEATURES`, and `background` (n,) are cosines; candidates of query i are
    `starts[i]:starts[i + 1]`; `codes` (m,) are the caller's label codes.
    """

    features: Floats
    codes: Ints
    starts: Ints
    background: Floats

    def __len__(self) -> int:
        return len(self.background)

    @cached_property
    def query(self) -> Ints:
        """(m,) the query each candidate belongs to."""
        return np.repeat(np.arange(len(self)), self.starts[1:] - self.starts[:-1])

    def candidate(self, codes: Ints) -> Ints:
        """(n,) position among the m candidates of each query's label `codes` (n,), -1 where it is not among them."""
        found = np.full(len(self), -1, np.int64)
        at = np.flatnonzero(self.codes == codes[self.query])
        found[self.query[at]] = at
        return found


def gather(
    scores: NDArray[np.floating],
    codes: Ints,
    queries: NDArray[np.float32] | None = None,
    profile: LabelProfile | None = None,
) -> Evidence:
    """Evidence from top hits: `scores` (n, K) cosines, descending, -inf where there is no hit; `codes` (n, K) >= 0.

    Every query needs at least one hit. With the `profile` of the labels and the `queries` (n, d); without them every
    label is taken for a single item at its best hit.
    """
    n, k = scores.shape
    present = np.isfinite(scores)
    if n and not present[:, 0].all():
        raise ValueError("every query needs at least one hit")
    background = backgrounds(scores, codes)

    # every request comes through here, most of them alone: each call of numpy counts, whatever the size
    s, c, q = scores.ravel().astype(np.float64), codes.ravel(), np.arange(n).repeat(k)
    if not present.all():
        at = present.ravel()
        s, c, q = s[at], c[at], q[at]
    order = np.lexsort((c, q))  # stable: hits of one label stay in descending order
    s, c, q = s[order], c[order], q[order]
    begins = np.ones(len(s), np.bool_)
    np.logical_or(q[1:] != q[:-1], c[1:] != c[:-1], out=begins[1:])
    first = begins.nonzero()[0]
    top = scores[:, 0].astype(np.float64)[q]
    best, label, owner, gap = s[first], c[first], q[first], s - top
    features = np.empty((len(first), len(FEATURES)))
    features[:, 0] = best
    for column, b in enumerate(SHARPNESS, 1):
        features[:, column] = top[first] + np.log(np.add.reduceat(np.exp(b * gap), first)) / b
    if profile is None or queries is None:
        features[:, 3], features[:, 4] = best, 0.0
    else:
        features[:, 3:] = profile.features(queries, owner, label, best)
    rank = np.lexsort((-best, owner))
    # ties with the top hit must not displace its label from the first place
    features, codes_found, owner = features[rank], label[rank], owner[rank]
    starts = owner.searchsorted(np.arange(n + 1))
    _top_label_first(features, codes_found, starts, codes[:, 0] if n else np.empty(0, np.int64))
    return Evidence(features, codes_found, starts, background)


def backgrounds(scores: NDArray[np.floating], codes: Ints) -> Floats:
    """(n,) mean cosine of the hits that carry another label than the best; the worst hit's where there are none."""
    present = np.isfinite(scores)
    other = present & (codes != codes[:, :1])
    count = other.sum(axis=1)
    others = scores.sum(axis=1, dtype=np.float64, where=other)
    found: Floats = others / np.maximum(count, 1)
    if not count.all():
        found = np.where(count > 0, found, scores.min(axis=1, initial=np.inf, where=present)).astype(np.float64)
    return found


def joined(evidence: Evidence, more: Evidence) -> Evidence:
    """The evidence with those candidates of `more`, for the same queries, that it does not have, each query's last.

    What is there already stays as it is, background included: one look further must not change what was known.
    """
    owner, other = evidence.query, more.query
    keys, added = (np.stack([q, e.codes]) for q, e in ((owner, evidence), (other, more)))
    span = 1 + max(keys[1].max(initial=0), added[1].max(initial=0))
    new = ~np.isin(added[0] * span + added[1], keys[0] * span + keys[1])
    owner = np.concatenate([owner, other[new]])
    order = np.argsort(owner, kind="stable")
    features = np.concatenate([evidence.features, more.features[new]])[order]
    codes = np.concatenate([evidence.codes, more.codes[new]])[order]
    starts = np.searchsorted(owner[order], np.arange(len(evidence) + 1))
    return Evidence(features, codes, starts, evidence.background)


def _top_label_first(features: Floats, codes: Ints, starts: Ints, top: Ints) -> None:
    for i in np.flatnonzero(codes[starts[:-1]] != top):
        at = int(starts[i] + np.flatnonzero(codes[starts[i] : starts[i + 1]] == top[i])[0])
        for array in (features, codes):
            array[[starts[i], at]] = array[[at, starts[i]]]


Hidden = Callable[[slice], NDArray[np.bool_]]
"""For a slice of queries, which gallery items each must not see: (queries, gallery) bool."""


def blocks(count: int, size: int) -> Iterator[slice]:
    """Slices of `count` queries, whose products with `size` items do not take too much memory at once."""
    block = max(1, _BLOCK_BYTES // (4 * max(size, 1)))
    for start in range(0, count, block):
        yield slice(start, min(start + block, count))


def exact_top(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], k: int, hidden: Hidden | None = None
) -> tuple[NDArray[np.float32], Ints]:
    """Exact top-k by blocked matrix products, with some items hidden from some queries.

    Returns scores (n, k') descending, -inf where fewer than k' items are visible, and gallery positions (n, k').
    """
    n, size = len(queries), len(gallery)
    k = min(k, size)
    scores = np.empty((n, k), np.float32)
    positions = np.empty((n, k), np.int64)
    for part in blocks(n, size):
        cosines = queries[part] @ gallery.T
        if hidden is not None:
            cosines[hidden(part)] = -np.inf
        near = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(cosines, near, 1), axis=1, kind="stable")
        positions[part] = np.take_along_axis(near, order, 1)
        scores[part] = np.take_along_axis(cosines, positions[part], 1)
    return scores, positions
