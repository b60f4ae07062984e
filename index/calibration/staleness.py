"""Whether a calibration still fits the gallery it was made for.

Rows are immutable and their numbers only rise (`index.items.store`), so the last row of then tells the items of then
from those that came since, and a label with an item of then is a label of then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from index.items.gallery import Gallery

ITEMS, LABELS = 1.5, 0.1
"""Limits: items may grow by that factor and as many may go; that share of the labels may go, and as many may come."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A gallery of then: its `items`, its `labels` (an unlabelled item counts as one), and the number of its last row.

    Without a `last_row` (calibrations of older versions) only numbers are compared.
    """

    items: int
    labels: int
    last_row: int | None = None

    @classmethod
    def of(cls, gallery: Gallery) -> Seen:
        rows = gallery.rows
        return cls(len(rows), gallery.label_count, int(rows[-1]) if len(rows) else -1)

    def stale(self, now: Seen, left: tuple[int, int] | None = None) -> str | None:
        """Why a calibration for this gallery no longer fits the one of `now`, or None while it does.

        `left`: how many items, and how many labels with one of them, are of then; None: only numbers are compared.
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
                f"for {self.labels} labels, of which {labels_left} still have an item of then; of those it has now "
                f"{now.labels - labels_left} have none"
            )
        return None

    def stale_for(self, gallery: Gallery) -> str | None:
        """`stale`, against a gallery as it is now."""
        if self.last_row is None:
            return self.stale(Seen.of(gallery))
        items = int(np.searchsorted(gallery.rows, self.last_row, side="right"))
        return self.stale(Seen.of(gallery), (items, int(np.count_nonzero(np.bincount(gallery.codes[:items])))))

    def to_json(self) -> dict[str, Any]:
        return {"items": self.items, "labels": self.labels, "last_row": self.last_row}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Seen:
        last = value.get("last_row")
        return cls(int(value["items"]), int(value["labels"]), None if last is None else int(last))


def _told(then: str) -> str:
    return (
        f"The calibration was made {then}, so its probabilities would mislead. Compact the collection (surematch "
        "compact, POST /v1/admin/snapshot), which calibrates it again; a service that writes does so by itself."
    )
