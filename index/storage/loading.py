"""From files to a state: the newest intact snapshot and what was written since, or a rebuild from the items."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from index.calibration.calibrate import Calibration
from index.engines.choice import engine_class
from index.engines.engine import Engine
from index.engines.faiss_flat import FaissFlat
from index.errors import CalibrationError, CollectionError
from index.items.gallery import Gallery
from index.items.store import ItemStore
from index.storage import signing
from index.storage.snapshot import Snapshot, current_name, read_snapshot
from index.storage.state import State
from index.storage.versions import Versions, chosen_calibration, dump, id_of

CALIBRATION, PROFILE = "calibration.json", "labels.safetensors"
_TRIES = 5
_GOLDEN = 16
"""Items that an exact index must find by their own vectors before it is trusted."""


def load_state(snapshots: Path, encoder: str, store: ItemStore, why_not: str | None = None) -> State:
    """The state of a collection whose encoder has that fingerprint. `why_not`: why it was built uncalibrated.

    A snapshot that is damaged, of another store or of a later time than the items gives way to an older one, then to
    a rebuild, and the state's warnings say so.
    Should a compaction take away what is being read, it is read again. Where a signing key is set nothing is rebuilt:
    raises `CollectionError` without a signed snapshot.
    """
    for _ in range(_TRIES):
        named = current_name(snapshots)
        state = _load_once(snapshots, encoder, store, why_not)
        if not state.warnings or current_name(snapshots) == named:
            break
    if signing.signing() and state.snapshot_id.startswith("rebuilt-"):
        told = " ".join(state.warnings)
        raise CollectionError(f"{told} As {signing.KEY} is set, what was not signed is not served. Restore a backup.")
    return state


def _load_once(snapshots: Path, encoder: str, store: ItemStore, why_not: str | None) -> State:
    snapshot, faults = read_snapshot(snapshots)
    warnings = list(faults)
    if snapshot is not None and (other := _foreign(snapshot, encoder, store)):
        warnings.append(other)
        snapshot = None
    if snapshot is not None:
        calibration, id, of_choice = _calibration(snapshot, snapshots.parent, warnings)
        why_not = snapshot.manifest.get("uncalibrated", why_not)
        try:
            state = caught_up(_of_snapshot(snapshot, store, calibration, why_not, tuple(warnings)), store)
            if state is not None:
                return replace(state, calibration_id=id, choice_faults=of_choice)
            warnings.append(f"{store.path} was compacted while it was opened.")
        except CollectionError as error:
            warnings.append(f"{error} The index was rebuilt from the items.")
    else:
        calibration, id = None, None
        warnings.append(
            "No intact snapshot: the index was rebuilt from the items, and serves without probabilities until the "
            "collection is compacted (surematch compact), which a service that writes does by itself."
        )
    now = store.everything()
    return State.of(
        FaissFlat.build(now.vectors, now.born),
        Gallery.of(now.born, now.labels, now.vectors),
        calibration,
        f"rebuilt-{now.sequence}",
        now.sequence,
        warnings=tuple(warnings),
        calibration_id=id,
    )


def caught_up(state: State, store: ItemStore) -> State | None:
    """The state with what was written since; None where that cannot be told, and the state must be loaded anew."""
    changes = store.changes(state.sequence)
    if changes is None:
        return None
    try:
        return state.after(changes, store.vectors_of)
    except CollectionError:  # compacted between the two reads
        return None


def _foreign(snapshot: Snapshot, encoder: str, store: ItemStore) -> str | None:
    """Why a snapshot does not belong to these items and this encoder, or None."""
    if snapshot.manifest.get("encoder") != encoder:
        return f"Snapshot {snapshot.name} was made with another encoder and is not used."
    if snapshot.manifest.get("store", store.id) != store.id:
        return f"Snapshot {snapshot.name} was made of another item store than {store.path} and is not used."
    if snapshot.sequence > store.sequence:
        return (
            f"Snapshot {snapshot.name} is of a later time than {store.path} (write {store.sequence}), which was put "
            "back to an older state, and is not used."
        )
    return None


def _calibration(
    snapshot: Snapshot, folder: Path, warnings: list[str]
) -> tuple[Calibration | None, str | None, tuple[str, ...]]:
    """The calibration to serve with a snapshot of the collection `folder`, and its id: the chosen one, else its own.

    And which of the `warnings` that were added are of the choice.
    """
    found, id, faults = chosen_calibration(Versions(folder), snapshot.name)
    faults = [f"{fault} The snapshot's own calibration serves in its place." for fault in faults]
    warnings += faults
    if found is not None or CALIBRATION not in snapshot.files:
        return found, id, tuple(faults)
    try:
        own = Calibration.from_json(json.loads(snapshot.content(CALIBRATION)))
        return own, id_of(dump(own)), tuple(faults)
    except CalibrationError as error:
        warnings.append(str(error))
        return None, None, tuple(faults)


def _of_snapshot(
    snapshot: Snapshot,
    store: ItemStore,
    calibration: Calibration | None,
    why_not: str | None,
    warnings: tuple[str, ...],
) -> State:
    """Raises `CollectionError` when the snapshot's index is not one of the items as they were then."""
    labels = store.labels_at(snapshot.sequence)
    engine = engine_class(str(snapshot.manifest.get("engine"))).load(snapshot.files)
    rows = np.array(list(labels or ()), np.int64)
    if labels is None or engine.dimension != store.dimension or not np.array_equal(engine.rows, rows):
        raise CollectionError(f"Snapshot {snapshot.name} does not index the items of {store.path}.")
    _golden(engine, snapshot, store)
    gallery = Gallery.of(rows, list(labels.values()), snapshot.content(PROFILE))
    return State.of(engine, gallery, calibration, snapshot.name, snapshot.sequence, why_not=why_not, warnings=warnings)


def _golden(engine: Engine, snapshot: Snapshot, store: ItemStore) -> None:
    """An exact index finds an item by its own vector: same rows with other vectors are caught here."""
    if not engine.exact or not len(engine):
        return
    some = engine.rows[np.linspace(0, len(engine) - 1, min(_GOLDEN, len(engine))).astype(np.int64)]
    _, vectors = store.vectors_of(some.tolist())
    scores, _ = engine.search(vectors, 1)
    if len(vectors) < len(np.unique(some)) or (np.abs(scores - 1) > 1e-3).any():
        raise CollectionError(f"Snapshot {snapshot.name} does not find the items of {store.path} by their own vectors.")
