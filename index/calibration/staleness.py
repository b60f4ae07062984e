"""Whether a calibration still fits the gallery it was made for.

Rows are immutable and their numbers only rise (`index.items.store`), so the last row of then tells the items of then
from those that came since, and a label that still has its items of then, or most of them, is a label of then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from index.items.gallery import Gallery

Ints = NDArray[np.int64]

ITEMS, LABELS = 1.5, 0.1
"""Limits: items may grow by that factor and as many may go; that share of the labels may go, and as many may come."""
LEFT = 1 / 3
"""Share of a label's items that must be left, or it counts as gone: sets asked for 90 % held 75 % where 19 of 61 labels
had one item left of forty. Few labels fall below it while a third of all items goes wherever it may."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A gallery of then: its `items`, its `labels` (an unlabelled item counts as one), and the number of its last row.

    `sizes` are the numbers of items that labels have, ascending, each with the number of labels that have so many.
    Without a `last_row` (calibrations of older versions) only numbers are compared, without `sizes` one item makes a
    label.
    """

    items: int
    labels: int
    last_row: int | None = None
    sizes: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def of(cls, gallery: Gallery) -> Seen:
        rows = gallery.rows
        labels = np.bincount(_sizes(gallery.codes))
        sizes = tuple((int(size), int(labels[size])) for size in np.flatnonzero(labels))
        return cls(len(rows), gallery.label_count, int(rows[-1]) if len(rows) else -1, sizes)

    def stale(self, now: Seen, left: tuple[int, int] | None = None) -> str | None:
        """Why a calibration for this gallery no longer fits the one of `now`, or None while it does.

        `left`: how many items, and how many labels with enough of them, are of then; None: only numbers are compared.
        """
        if not self.items / ITEMS <= now.items <= self.items * ITEMS:
            return _told(f"for a gallery of {self.items} items; it has {now.items} now")
        if abs(now.labels - self.labels) > LABELS * self.labels:
            return _told(f"for a gallery of {self.labels} labels; it has {now.labels} now")
        items_left, labels_left = left or (self.items, min(self.labels, now.labels))
        if items_left < self.items / ITEMS:
            return _told(f"for {self.items} items, of which {items_left} are left; the others were replaced or deleted")
        if max(self.labels, now.labels) - labels_left > LABELS * self.labels:
            return _told(
                f"for {self.labels} labels, of which {labels_left} still have {self._enough()} of then; of those it "
                f"has now {now.labels - labels_left} have not"
            )
        return None

    def stale_for(self, gallery: Gallery) -> str | None:
        """`stale`, against a gallery as it is now."""
        now = Seen(len(gallery.rows), gallery.label_count)
        if self.last_row is None:
            return self.stale(now)
        items = int(np.searchsorted(gallery.rows, self.last_row, side="right"))
        return self.stale(now, (items, self._labels_left(gallery.codes[:items])))

    def _labels_left(self, codes: Ints) -> int:
        """How many labels have `LEFT` of their items, of which those with these `codes` are there still.

        Which label had how many is not kept, so each is taken for one that had as few as possible: no label whose items
        are all there ever counts as gone.
        """
        left = np.sort(_sizes(codes))
        if self.sizes is None:
            return len(left)
        sizes, labels = np.array(self.sizes, np.int64).reshape(-1, 2).T
        then = np.repeat(sizes, labels)
        # the i-th smallest of those left takes the first size that is free and not below it
        at = np.searchsorted(then, left)
        at = np.maximum.accumulate(at - np.arange(len(at))) + np.arange(len(at))
        at = np.minimum(at, len(then) - 1)
        return int((left >= LEFT * then[at]).sum())

    def _enough(self) -> str:
        return "an item" if self.sizes is None else "a third of their items"

    def to_json(self) -> dict[str, Any]:
        return {"items": self.items, "labels": self.labels, "last_row": self.last_row, "sizes": self.sizes}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Seen:
        last, sizes = value.get("last_row"), value.get("sizes")
        return cls(
            int(value["items"]),
            int(value["labels"]),
            None if last is None else int(last),
            None if sizes is None else tuple((int(size), int(labels)) for size, labels in sizes),
        )


def _sizes(codes: Ints) -> Ints:
    """How many items each label has, of those that have any."""
    count: Ints = np.bincount(codes)
    return count[count > 0]


def _told(then: str) -> str:
    return (
        f"The calibration was made {then}, so its probabilities would mislead. Compact the collection (surematch "
        "compact, POST /v1/admin/snapshot), which calibrates it again; a service that writes does so by itself."
    )
