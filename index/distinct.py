"""Calibration queries that show something: each counts once, and none is an item of its own label.

A copy of a query is no second query, however often people ask it, and a query that is an item finds itself: with such
ones every figure looks better, or better supported, than it is. Queries are kept as vectors, so vectors are compared.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from index.evidence import Ints, exact_top
from index.examples import Queries

Vectors = NDArray[np.float32]
Flags = NDArray[np.bool_]
SAME = 1e-4
"""What the cosine of one text with itself may lack to 1, encoded at two times in different company."""

MANY = 0.05
"""Share of copies from which they are worth a warning: people do ask the same."""


def distinct(queries: Queries, gallery: Vectors, codes: Ints) -> tuple[Queries, list[str]]:
    """The queries without copies and items, and what to say of those left out; a few copies go without a word.

    Of the gallery (size, d) the label codes (size,) are needed. Queries taken from the gallery itself (`Queries.rows`)
    stay: they are hidden from themselves.
    """
    given = queries.rows < 0
    copies = given & repeated(queries.vectors, queries.codes)
    items = given & ~copies & _items(queries.vectors, queries.codes, gallery, codes)
    said = []
    if items.any():
        said.append(
            f"{items.sum()} of {given.sum()} calibration queries are items of the gallery to this encoder, and find "
            "themselves: not used. Give queries that are no items with --calibrate FILE."
        )
    if copies.sum() > MANY * given.sum():
        said.append(f"{copies.sum()} of {given.sum()} calibration queries are copies of others: each counts once.")
    left_out = copies | items
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


def _items(vectors: Vectors, codes: Ints, gallery: Vectors, of_item: Ints) -> Flags:
    """(n,) whether an item of the query's own label is the same vector; never for queries without one (code -1)."""
    found = np.zeros(len(vectors), np.bool_)
    order = np.argsort(of_item, kind="stable")
    for code in np.unique(codes[codes >= 0]):
        mine = np.flatnonzero(codes == code)
        start, end = np.searchsorted(of_item, [code, code + 1], sorter=order)
        if end > start:
            found[mine] = exact_top(vectors[mine], gallery[order[start:end]], 1)[0][:, 0] >= 1 - SAME
    return found
