"""What a collection answers from: one immutable value, swapped whole by every write (read-copy-update).

    an engine over the rows of the last snapshot  -  the rows that died since  +  a small delta, searched exactly

Whoever took the state before a write goes on with it and is not disturbed: nothing that is searched is ever changed
(measured: FAISS crashes or answers wrongly when it is).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from index.calibration.calibrate import Calibration
from index.calibration.evidence import exact_top
from index.engines.choice import recall_warning
from index.engines.engine import Engine, Selection
from index.items.gallery import Gallery, VectorsOf
from index.items.read_items import ReadItems
from index.items.store import Changes

Scores = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class State:
    """The base `engine` with its rows that are `dead` (sorted), the delta, and what turns hits into probabilities.

    `sequence` is the last write that is in it, `base` the one its snapshot was made at. `why_not` tells why there is
    no calibration, `calibration_id` which of `index.storage.versions` it is. `choice_faults`: those of the `warnings`
    that say why this may not be the one that was chosen.
    """

    engine: Engine
    dead: Rows
    delta_rows: Rows
    delta: NDArray[np.float32]
    gallery: Gallery
    calibration: Calibration | None
    why_not: str | None
    snapshot_id: str
    base: int
    sequence: int
    warnings: tuple[str, ...] = ()
    calibration_id: str | None = None
    choice_faults: tuple[str, ...] = ()
    read: ReadItems = field(default_factory=ReadItems, compare=False, repr=False)
    """Items that answers from this state have shown."""

    @classmethod
    def of(
        cls,
        engine: Engine,
        gallery: Gallery,
        calibration: Calibration | None,
        snapshot_id: str,
        sequence: int,
        *,
        why_not: str | None = None,
        warnings: tuple[str, ...] = (),
        calibration_id: str | None = None,
    ) -> State:
        """A state without a delta: the engine holds exactly the gallery's rows."""
        none, empty = np.empty(0, np.int64), np.empty((0, engine.dimension), np.float32)
        return cls(
            engine,
            none,
            none,
            empty,
            gallery,
            calibration,
            why_not,
            snapshot_id,
            sequence,
            sequence,
            warnings,
            calibration_id,
        )

    def __len__(self) -> int:
        return len(self.gallery.rows)

    @property
    def pending(self) -> int:
        """Changed rows that compaction would fold into the base."""
        return len(self.delta_rows) + len(self.dead)

    def uncalibrated(self) -> str | None:
        """Why no probability can be shown, or None."""
        return self._uncalibrated

    @cached_property
    def _uncalibrated(self) -> str | None:
        if self.calibration is not None:
            return self.calibration.stale(self.gallery)
        if self.why_not and self.pending:
            return (
                f"When it was last indexed or compacted: {self.why_not} Since then {self.pending} rows of items have "
                "changed. Compact the collection (surematch compact, POST /v1/admin/snapshot), which tries to "
                "calibrate it again."
            )
        why = self.why_not or " ".join(self.warnings)
        return why or "This collection's calibration is missing. Build it again."

    @cached_property
    def caveats(self) -> list[str]:
        """What every calibrated answer says."""
        return [*self.warnings, *recall_warning(self.engine), *(self.calibration.warnings if self.calibration else ())]

    def choosing(self, calibration: Calibration | None, id: str | None, faults: Sequence[str] = ()) -> State:
        """The state with this calibration; `faults` of its choice stand in for those of the last one."""
        warnings = [warning for warning in self.warnings if warning not in self.choice_faults]
        return replace(
            self,
            calibration=calibration,
            calibration_id=id,
            warnings=(*warnings, *faults),
            choice_faults=tuple(faults),
        )

    def search(self, queries: NDArray[np.float32], k: int, allowed: Rows | None = None) -> tuple[Scores, Rows]:
        """Scores (n, k') descending and rows (n, k') of live items, k' = min(k, how many), for unit queries (n, d).

        `allowed`: rows of live items, the only ones to be found; each stands once.
        """
        delta_rows, delta, selection = self.delta_rows, self.delta, None
        if allowed is not None and len(delta_rows):  # numpy would sort what is allowed, though there be nothing to find
            inside = np.isin(delta_rows, allowed)
            delta_rows, delta = delta_rows[inside], delta[inside]
        if allowed is not None or len(self.dead):
            selection = Selection(allowed, self.dead)
        scores, rows = self.engine.search(queries, k, selection)
        if len(delta_rows):
            fresh, at = exact_top(queries, delta, k)
            scores, rows = np.hstack([scores, fresh]), np.hstack([rows, delta_rows[at]])
            order = np.argsort(-scores, axis=1, kind="stable")
            scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        k = min(k, len(self) if allowed is None else len(allowed))
        return scores[:, :k], rows[:, :k]

    def after(self, changes: Changes, vectors_of: VectorsOf) -> State:
        """The state after the changes that follow this one. Raises `CollectionError`, see `Gallery.after`."""
        if not len(changes.born) and not len(changes.died):
            return self if changes.sequence == self.sequence else replace(self, sequence=changes.sequence)
        kept = ~np.isin(self.delta_rows, changes.died)
        of_base = changes.died[~np.isin(changes.died, self.delta_rows)]
        return replace(
            self,
            dead=np.union1d(self.dead, of_base),
            delta_rows=np.concatenate([self.delta_rows[kept], changes.born]),
            delta=np.concatenate([self.delta[kept], changes.vectors]),
            gallery=self.gallery.after(changes, vectors_of, len(self.engine)),
            sequence=changes.sequence,
            read=ReadItems(),
        )
