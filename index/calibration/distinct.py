"""Calibration queries that show something: each counts once, and none is an item of its own label.

A copy of a query is no second query, however often people ask it, and a query that is an item finds itself: with such
ones every figure looks better, or better supported, than it is. Queries are kept as vectors, so vectors are compared.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from index.calibration.evidence import Ints, exact_top
from index.calibration.examples import Queries

Vectors = NDArray[np.float32]
Flags = NDArray[np.bool_]
SAME = 1e-4
"""What the cosine of one text with itself may lack to 1, encoded at two times in different company."""

MANY = 0.05
"""Share of copies from which they are worth a warning: people do ask the same."""

NEARLY, EXCESS = 0.95, 0.3
"""Cosine to an item of the own label from which a query is nearly that item, and by how much the share of such queries
may exceed that of such items. The shares of real queries and of items differ by less than .1, and five of six items are
that near once a mark is appended (tests/index/test_distinct.py measures both, on BANKING77 and CLINC150).
"""
ALONE = 0.8
"""The share of such queries from which they are told where labels have one item each, which are near to nothing."""

SAMPLE, OF_LABEL, LEAST = 1000, 50, 20
"""Items that tell how near items of one label are, how many of one label, and how few say nothing."""

ONE_ITEM, ITS_OWN, SURELY = 0.6, 0.75, 4.0
"""How often the gap between the nearest and the second item of the own label is wider for a query than for an item (by
chance half of the time), from which queries are told, and from which not used; and by how many standard deviations of
chance it must be more than half. Of BANKING77 and CLINC150 neither forty nor a thousand real queries are told, and
items with a greeting before them are not used (tests/index/test_distinct.py).
"""


def distinct(queries: Queries, gallery: Vectors, codes: Ints) -> tuple[Queries, list[str]]:
    """The queries without copies and items, and what to say of those left out; a few copies go without a word.

    Of the gallery (size, d) the label codes (size,) are needed. Queries taken from the gallery itself (`Queries.rows`)
    stay: they are hidden from themselves. Known queries that look made out of items all go: next to them every real
    query would look unknown.
    """
    given = queries.rows < 0
    copies = given & repeated(queries.vectors, queries.codes)
    own = _Own(gallery, codes)
    two = own.nearest(queries.vectors, queries.codes)
    items = given & ~copies & (two[:, 0] >= 1 - SAME)
    strangers = np.flatnonzero(given & ~copies & (queries.codes < 0))
    named = np.zeros(len(given), np.bool_)
    if len(gallery):
        named[strangers] = exact_top(queries.vectors[strangers], gallery, 1)[0][:, 0] >= 1 - SAME
    said = []
    if items.any():
        are, find = ("is an item", "finds itself") if items.sum() == 1 else ("are items", "find themselves")
        said.append(
            f"{items.sum()} of {given.sum()} calibration queries {are} of the gallery to this encoder, and {find}: "
            "not used. Give queries that are no items with --calibrate FILE."
        )
    if named.any():
        said.append(
            f"{named.sum()} of {len(strangers)} unknown queries are items of the gallery to this encoder, and so not "
            "unknown any more: not used."
        )
    if copies.sum() > MANY * given.sum():
        said.append(f"{copies.sum()} of {given.sum()} calibration queries are copies of others: each counts once.")
    left_out = copies | items | named
    known = given & ~left_out & (queries.codes >= 0)
    made, told = own.made_of_items(two[known])
    said += told
    left_out |= known & made
    return (queries.only(~left_out) if left_out.any() else queries), said


def last_word(queries: Queries) -> Queries:
    """Without the queries that feedback, which comes last, gives another answer to."""
    first = len(queries.codes) - len(queries.feedback)
    corrected = np.zeros(len(queries.codes), np.bool_)
    if len(queries.feedback):
        scores, at = exact_top(queries.vectors[:first], queries.vectors[first:], 1)
        corrected[:first] = (scores[:, 0] >= 1 - SAME) & (queries.codes[:first] != queries.codes[first:][at[:, 0]])
    return queries.only(~corrected) if corrected.any() else queries


def repeated(vectors: Vectors, codes: Ints) -> Flags:
    """(n,) whether an earlier row of `vectors` (n, d) with the same code is the same vector, up to `SAME`."""
    found = np.zeros(len(vectors), np.bool_)
    for code in np.unique(codes):
        mine = np.flatnonzero(codes == code)
        nearest, _ = exact_top(vectors[mine], vectors[mine], 1, partial(_not_earlier, np.arange(len(mine))))
        found[mine] = nearest[:, 0] >= 1 - SAME
    return found


def _not_earlier(rows: Ints, part: slice) -> Flags:
    hidden: Flags = rows >= rows[part, None]
    return hidden


class _Own:
    """The items of a gallery (size, d) by their label codes (size,)."""

    def __init__(self, gallery: Vectors, codes: Ints) -> None:
        self.gallery, self.codes = gallery, codes
        self._order = np.argsort(codes, kind="stable")

    def of(self, code: int) -> Ints:
        """Positions of the label's items."""
        start, end = np.searchsorted(self.codes, [code, code + 1], sorter=self._order)
        return self._order[start:end]

    def nearest(self, vectors: Vectors, codes: Ints) -> Vectors:
        """(n, 2) the best cosines to two items of the own label; -inf where it has none or one (or the code is -1)."""
        found = np.full((len(vectors), 2), -np.inf, np.float32)
        for code in np.unique(codes[codes >= 0]):
            mine, items = np.flatnonzero(codes == code), self.of(code)
            if len(items):
                best = exact_top(vectors[mine], self.gallery[items], 2)[0]
                found[mine, : best.shape[1]] = best
        return found

    def among_themselves(self) -> Vectors:
        """(m, 2) the best cosines of a sample of the items to two others of their label, copies left aside."""
        random = np.random.default_rng(0)
        found: list[Vectors] = []
        several, count = np.unique(self.codes, return_counts=True)
        for code in random.permutation(several[count > 1]):
            if sum(map(len, found)) >= SAMPLE:
                break
            items = self.gallery[self.of(code)]
            cosines = items[random.permutation(len(items))[:OF_LABEL]] @ items.T
            found.append(-np.sort(-np.where(cosines >= 1 - SAME, -np.inf, cosines), axis=1)[:, :2])
        return np.concatenate([np.empty((0, 2), np.float32), *found])

    def made_of_items(self, two: Vectors) -> tuple[bool, list[str]]:
        """Whether known queries, by the cosines of their nearest items (n, 2), were made by changing items, and what to
        say of it."""
        items = self.among_themselves()
        made, said = self._nearly_items(two[:, 0], items[:, 0])
        return (made, said) if said else self._near_to_one_item(two, items)

    def _near_to_one_item(self, two: Vectors, items: Vectors) -> tuple[bool, list[str]]:
        """By the gap to the second item: what was made of one item lies nearer to it than to its fellows."""
        of_queries, of_items = (found[np.isfinite(found).all(axis=1)] for found in (two, items))
        n, m = len(of_queries), len(of_items)
        if min(n, m) < LEAST:
            return False, []
        gaps = np.sort(of_items[:, 0] - of_items[:, 1])
        wider = float(np.searchsorted(gaps, of_queries[:, 0] - of_queries[:, 1]).mean() / m)  # Mann & Whitney 1947
        chance = 0.5 + SURELY * np.sqrt((n + m + 1) / (12 * n * m))
        if wider <= max(ONE_ITEM, chance):
            return False, []
        said = (
            f"The calibration queries look made by changing items: next to one item of their label they are farther "
            f"from its others than items are, in {wider:.0%} of comparisons (real ones: in about half). "
        )
        if wider <= max(ITS_OWN, chance):
            return False, [
                f"{said}Where they were, real queries will look unknown, and their probabilities be too low: give real "
                "ones with --calibrate FILE."
            ]
        return True, [
            f"{said}Next to them real queries would look unknown: none of the known ones is used. Give real queries "
            "with --calibrate FILE."
        ]

    def _nearly_items(self, nearest: Vectors, items: Vectors) -> tuple[bool, list[str]]:
        nearly = nearest >= NEARLY
        if nearly.sum() <= EXCESS * len(nearest):
            return False, []
        said = f"{nearly.sum()} of {len(nearest)} calibration queries are nearly an item of their label (cosine "
        if len(items) < LEAST and nearly.mean() <= ALONE:
            return False, []
        if len(items) < LEAST:
            return False, [
                f"{said}{NEARLY} or more). If they were made by changing items, real queries will look unknown, and "
                "their probabilities be far too low: then give real ones with --calibrate FILE."
            ]
        share = float((items >= NEARLY).mean())
        if nearly.mean() <= share + EXCESS:
            return False, []
        return True, [
            f"{said}{NEARLY} or more), as only {share:.0%} of the items are to each other, so they look made by "
            "changing items. Next to them real queries would look unknown: none of the known ones is used. Give real "
            "queries with --calibrate FILE."
        ]
