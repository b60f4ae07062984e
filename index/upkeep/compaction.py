"""Compaction: a new base index of all live items, the calibration fitted again, written as a snapshot.

It works on a copy of one moment beside reads and writes. What was deleted before that moment is afterwards erased from
the tables, from the write-ahead log and from older snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.calibration.calibrate import DEFAULT, Calibration, calibrate
from index.calibration.calibrators import check_calibrator
from index.calibration.conditional_logit import FEW_QUERIES
from index.calibration.examples import Examples, Queries, examples
from index.calibration.sources import Progress, saying, stored_queries
from index.calibration.staleness import Seen
from index.encoders.encoder import Encoder
from index.engines.choice import make_engine
from index.engines.milvus_engine import leave
from index.errors import CalibrationError
from index.items.gallery import Gallery
from index.items.store import Changes, ItemStore, KeptQueries
from index.storage.loading import CALIBRATION, PROFILE
from index.storage.snapshot import clean, write_snapshot
from index.storage.state import State
from index.storage.versions import dump, id_of
from index.upkeep.maintenance import WRITING

UNKNOWN_SHARE = 0.2
"""Share of queries expected to match nothing, unless the user knows better."""
COMPACT_SHARE, COMPACT_LEAST = 0.05, 1_000
"""Compaction starts by itself when this share of the items, and at least so many rows, have changed since the last."""
SMALL_SHARE, SMALL_LEAST = 0.2, 50
"""Fewer rows suffice where they are this share, and at least so many: it takes seconds there. When 400 items had become
half as many more, probabilities were off by .105 on average, and by .044 once compacted."""


_LEFT_OUT = (
    "{} notes of users' feedback are not used: which calibration was chosen is not known, and whether it was fitted on "
    "them. `surematch recalibrate` takes them in."
)


def last_note(calibration: Calibration | None) -> int | None:
    """Number of the last note of users' feedback that a calibration was fitted on; None: it was on none."""
    queries = {} if calibration is None else calibration.report.get("queries", {})
    last: int | None = (queries.get("feedback") or {}).get("upto")
    return last


@dataclass(frozen=True, slots=True)
class Fitting:
    """How a collection's calibration is fitted, so that it can be fitted again the same way.

    `feedback`: users' notes up to this number are among its queries; None: none are, which is said where it is only
    because a choice was `lost`.
    """

    unknown_share: float = UNKNOWN_SHARE
    calibrator: str = DEFAULT
    seed: int = 0
    feedback: int | None = None
    lost: bool = False

    @classmethod
    def of(cls, stored: Any, calibration: Calibration | None) -> Fitting:
        """As `collection.json` has it; collections that did not keep it say most of it in their calibration."""
        report = {} if calibration is None else calibration.report
        told = stored if isinstance(stored, dict) else {}
        share = report.get("queries", {}).get("unknown_share", UNKNOWN_SHARE)
        return cls(
            float(told.get("unknown_share", share)),
            str(told.get("calibrator", report.get("calibrator", DEFAULT))),
            int(told.get("seed", 0)),
            last_note(calibration),
        )

    def queries(self, folder: Path, store: ItemStore, now: Changes, gallery: Gallery) -> tuple[Queries, list[str]]:
        """See `index.calibration.sources.stored_queries`; users' feedback is among them where this fitting uses it.

        Raises `SettingsError` where the calibrator cannot be fitted here: the calibration in use stays.
        """
        check_calibrator(self.calibrator)
        fed = None if self.feedback is None else store.feedback(self.feedback).distinct()
        queries, notes = stored_queries(folder, store, now, gallery, self.unknown_share, self.seed, fed)
        left_out = len(store.feedback().labels) if self.lost and fed is None else 0
        return queries, [*notes, *([_LEFT_OUT.format(left_out)] if left_out else [])]

    def calibration(self, queries: Queries, now: Changes, gallery: Gallery, warnings: list[str]) -> Calibration:
        """Fitted on `queries` against the gallery of the items `now`. Raises `CalibrationError`, which repeats the
        `warnings`."""
        with saying(warnings):
            return self.fitted(self.examples(queries, now, gallery), queries, gallery, warnings)

    def examples(self, queries: Queries, now: Changes, gallery: Gallery) -> Examples:
        """Raises `CalibrationError`."""
        return examples(queries, now.vectors, gallery.codes, len(gallery.names), self.unknown_share)

    def fitted(self, made: Examples, queries: Queries, gallery: Gallery, warnings: list[str]) -> Calibration:
        """Fitted on the examples made of `queries`. Raises `CalibrationError`."""
        found = calibrate(
            made,
            Seen.of(gallery),
            warnings=[*warnings, *queries.caveats],
            calibrator=self.calibrator,
            seed=self.seed,
        )
        if self.feedback is not None:
            found.report["queries"]["feedback"] = {
                "queries": len(queries.feedback),
                "upto": self.feedback,
            }
        return found


def keep_queries(store: ItemStore, queries: Queries) -> None:
    """Keeps those calibration queries that are no items, for the next fit."""
    own = queries.rows < 0
    store.keep_calibration_queries(KeptQueries(list(queries.names), queries.codes[own] >= 0, queries.vectors[own]))


def own_questions(queries: Queries) -> NDArray[np.float32] | None:
    """Queries that an engine's recall can be measured on: real ones, no items; None: there are none."""
    return None if queries.leave_one_out else queries.vectors[queries.rows < 0]


def compact(
    snapshots: Path,
    store: ItemStore,
    encoder: Encoder,
    folder: Path,
    fitting: Fitting,
    engine: str,
    progress: Progress,
    settings: str,
) -> State:
    """Writes a snapshot of what the store holds now; returns the state it makes, without what was written meanwhile.

    `settings` is the digest of `collection.json` as it was read: one that was changed since is not sealed by this.
    Without an honest calibration the snapshot says why it has none. Raises `CollectionError`, and `SettingsError`
    where the calibrator's package is missing; then nothing has changed.
    """
    check_calibrator(fitting.calibrator)
    progress("reading items", 0, 1)
    now = store.everything()
    gallery = Gallery.of(now.born, now.labels, now.vectors)
    files = {PROFILE: gallery.profile.dump()}
    progress("calibrating", 0, 1)
    calibration, why_not, asked = None, None, None
    try:
        queries, notes = fitting.queries(folder, store, now, gallery)
        asked = own_questions(queries)
        calibration = fitting.calibration(queries, now, gallery, notes)
        files[CALIBRATION] = dump(calibration)
    except CalibrationError as error:
        why_not = str(error)
    progress("building the index", 0, 1)
    built = make_engine(engine, now.vectors, now.born, queries=asked, seed=fitting.seed)
    files |= built.dump()
    progress(WRITING, 0, 1)
    # older snapshots hold what died, and will be erased: a copy then stands in should the new one be damaged
    for _ in range(2 if store.deaths(now.sequence) else 1):
        name = write_snapshot(
            snapshots,
            sequence=now.sequence,
            engine=built.kind,
            encoder=encoder.fingerprint,
            files=files,
            about={"store": store.id, "uncalibrated": why_not, "collection": settings},
            leaving=leave,
        )
    progress(WRITING, 1, 1)
    if encoder.modality == "image":  # with the last picture of a person goes everything that shows them
        store.forget_queries_of_labels_that_left()
    id = id_of(files[CALIBRATION]) if calibration is not None else None
    return State.of(built, gallery, calibration, name, now.sequence, why_not=why_not, calibration_id=id)


def due(state: State) -> bool:
    """Whether enough has changed, or the calibration might be fitted where it is missing or stale."""
    if not len(state):
        return False
    rebuilt = state.snapshot_id.startswith("rebuilt-")
    stale = state.calibration is not None and state.pending > 0 and state.uncalibrated() is not None
    # other items may be calibrated where those of then could not; fewer than a calibration needs change little
    enough = state.pending >= FEW_QUERIES or _second_label_came(state)
    again = state.calibration is None and enough and state.pending >= 0.01 * len(state.engine)
    items = len(state.engine)
    least = min(COMPACT_LEAST, max(SMALL_LEAST, SMALL_SHARE * items))
    return rebuilt or stale or again or state.pending > max(least, COMPACT_SHARE * items)


def _second_label_came(state: State) -> bool:
    """Whether all items of the last snapshot are of one label, and those since are not: that is what was missing."""
    if not len(state.delta_rows):
        return False
    gallery = state.gallery
    before = np.unique(gallery.codes[: np.searchsorted(gallery.rows, state.delta_rows[0])])
    return len(before) == 1 and before[0] < len(gallery.names) and len(gallery.names) > 1


def erase(snapshots: Path, store: ItemStore, upto: int) -> bool:
    """Erases what died up to that write, which a snapshot has left behind, from every file; safe to repeat.

    False while a reader elsewhere prevents it.
    """
    store.purge(upto)
    clean(snapshots, store.purged, leave)
    return store.erased[0] >= upto or store.scrub(upto)
