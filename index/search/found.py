"""What the engine found for queries, with the items to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from index.answer import Hit
from index.errors import DataError
from index.items.item import StoredItem
from index.search.asked import Asked

if TYPE_CHECKING:
    from index.items.gallery import Gallery

Exact = Literal["all", "top", "no"]
"""Whether hits are the whole gallery, its true top, or, of an approximate engine, perhaps neither."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What passes a filter: the best of it (n, K') by score, row and label code, and every label that has some of it.

    Evidence is gathered over the whole gallery all the same, so that the calibration holds: the filter only says what
    may be shown and answered. Labels of which nothing passes count as no match.
    """

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    codes: NDArray[np.int64]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Found:
    """What the engine found for n queries (n, d): scores, rows, label codes (n, K), and the items to be shown.

    `shown` is what passes the filter, None without one.
    """

    queries: NDArray[np.float32]
    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    codes: NDArray[np.int64]
    items: dict[int, StoredItem]
    gallery: Gallery
    exact: Exact
    shown: Shown | None = None

    def identity(self, code: int) -> tuple[str | None, str | None]:
        """(label, None), or (None, id) of an item that stands for itself."""
        return self.identities([code])[0]

    def identities(self, codes: list[int]) -> list[tuple[str | None, str | None]]:
        """`identity` of each."""
        names, rows = self.gallery.names, self.gallery.rows
        labels = len(names)
        return [
            (names[code], None) if code < labels else (None, self.items[int(rows[code - labels])].id) for code in codes
        ]

    def best(self, k: int) -> list[list[tuple[int, float, int]]]:
        """For each query the k best to be shown: row, score and label code."""
        best = self.shown or self
        # rounding in the inner product can leave [-1, 1] by an ulp
        scores = best.scores[:, :k].clip(-1.0, 1.0)
        columns = (best.rows[:, :k].tolist(), scores.tolist(), best.codes[:, :k].tolist())
        return [list(zip(*of_query, strict=True)) for of_query in zip(*columns, strict=True)]

    def characters(self, k: int) -> int:
        """Of the labels, texts and metadata of the k best of all queries together."""
        rows = (self.shown or self).rows[:, :k].ravel().tolist()
        sizes = {row: len(item.json) + len(item.text or "") + len(item.label or "") for row, item in self.items.items()}
        return sum(sizes.get(row, 0) for row in rows)

    def hits(self, best: list[tuple[int, float, int]], probability: dict[int, float | None] | None) -> list[Hit]:
        """Of one query's `best`; `probability` by label code."""
        return [
            Hit(
                item.id,
                item.label,
                score,
                None if probability is None else probability[code],
                item.text,
                item.metadata,
            )
            for row, score, code in best
            if (item := self.items.get(row)) is not None
        ]


def check_length(found: Found, asked: Asked) -> None:
    """Raises `DataError` where the hits would be longer than `asked.most_characters`."""
    if asked.most_characters is None:
        return
    length = found.characters(asked.k)
    if length > asked.most_characters:
        raise DataError(
            f"The labels, texts and metadata of the hits have {length:,} characters; at most {asked.most_characters:,} "
            "are answered at once. Ask for fewer hits (k), or fewer queries at a time."
        )
