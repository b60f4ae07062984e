"""Calibration queries that show something: each counts once, and none is an item of its own label.

A copy of a query is no second query, however often people ask it, and a query that is an item finds itself: with such
ones every figure looks better, or better supported, than it is. Queries are kept as vectors, so vectors are compared.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index.evidence import Ints
from index.examples import Queries

Vectors = NDArray[np.float32]
Flags = NDArray[np.bool_]
SAME = 1e-4
"""What the cosine of one text with itself may lack to 1, encoded at two times in different company."""


def distinct(queries: Queries, gallery: Vectors, codes: Ints) -> tuple[Queries, list[str]]:
    """The queries without copies and items, and what to say of those left out; the gallery (size, d) with its label
    codes (size,). Queries taken from the gallery itself (`Queries.rows`) stay: they are hidden from themselves."""
    given = queries.rows < 0
    copies = given & repeated(queries.vectors, queries.codes)
    items = given & ~copies & _items(queries.vectors, queries.codes, gallery, codes)
    said = []
    if items.any():
        said.append(
            f"{items.sum()} of {given.sum()} calibration queries are items of the gallery, which find themselves: not "
            "used. Give queries that are no items with --calibrate FILE."
        )
    if copies.any():
        said.append(f"{copies.sum()} of {given.sum()} calibration queries are copies of others: each counts once.")
    return (queries.only(~(copies | items)), said) if said else (queries, [])


def repeated(vectors: Vectors, codes: Ints) -> Flags:
    """(n,) whether an earlier row of `vectors` (n, d) with the same code is the same vector, up to `SAME`.

    Rows that are the same lie together along any direction, so each is compared with its neighbours on one alone.
    """
    found = np.zeros(len(vectors), np.bool_)
    if len(vectors) < 2:
        return found
    direction = np.random.default_rng(0).standard_normal(vectors.shape[1])
    along = vectors @ (direction / np.linalg.norm(direction)).astype(np.float32)
    order = np.argsort(along, kind="stable")
    reach = np.sqrt(2 * SAME)  # two unit vectors of that cosine are no farther apart
    for step in range(1, len(order)):
        near = np.flatnonzero(along[order[step:]] - along[order[:-step]] <= reach)
        if not len(near):
            break
        one, other = order[near], order[near + step]
        alike = (codes[one] == codes[other]) & (np.einsum("ij,ij->i", vectors[one], vectors[other]) >= 1 - SAME)
        found[np.maximum(one, other)[alike]] = True
    return found


def _items(vectors: Vectors, codes: Ints, gallery: Vectors, of_item: Ints) -> Flags:
    """(n,) whether an item of the query's own label is the same vector; never for queries without one (code -1)."""
    found = np.zeros(len(vectors), np.bool_)
    order = np.argsort(of_item, kind="stable")
    for code in np.unique(codes[codes >= 0]):
        mine = np.flatnonzero(codes == code)
        start, end = np.searchsorted(of_item, [code, code + 1], sorter=order)
        if end > start:
            found[mine] = (vectors[mine] @ gallery[order[start:end]].T).max(axis=1) >= 1 - SAME
    return found
