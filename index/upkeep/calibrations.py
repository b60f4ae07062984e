"""The calibrations of an opened collection: which is in use, and how it is kept, followed, chosen and fitted again.

How they lie on disk is said in `index.storage.versions`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from index.calibration.calibrate import Calibration
from index.errors import CalibrationError, CollectionError
from index.items.gallery import Gallery
from index.items.store import ItemStore
from index.storage.folder import ENCODER, SNAPSHOTS
from index.storage.live import LiveState
from index.storage.snapshot import created
from index.storage.state import State
from index.storage.versions import BUILT, Version, Versions, chosen_calibration, dump, id_of
from index.upkeep.compaction import Fitting, last_note
from index.upkeep.recalibrate import recalibrated

_GOES_ON = "The calibration that was in use goes on serving."


class Calibrations:
    """`keep_served`, `fit_again` and `use` are for the writer, who lets no compaction run meanwhile."""

    def __init__(self, path: Path, config: dict[str, Any], store: ItemStore, live: LiveState) -> None:
        self.versions = Versions(path)
        self._path = path
        self._config = config
        self._store = store
        self._live = live

    def listed(self) -> list[Version]:
        """See `Collection.calibrations`."""
        found, _ = self.versions.listed()
        served = self._served(self._live.state)
        return found if served is None or served.id in {version.id for version in found} else [*found, served]

    def stale(self) -> dict[str, str]:
        """See `Collection.stale_calibrations`."""
        state, found = self._live.state, dict[str, str]()
        for version in self.listed():
            try:
                served = state.calibration if version.id == state.calibration_id else None
                why = (served or self.versions.load(version.id)).stale(state.gallery)
            except (CalibrationError, CollectionError) as error:
                why = str(error)
            if why is not None:
                found[version.id] = why
        return found

    def keep_served(self) -> None:
        """The calibration inside the snapshot joins the others, so that there is a way back to it."""
        state = self._live.state
        served = self._served(state)
        if served is not None and state.calibration is not None:
            self.versions.keep(served, dump(state.calibration))

    def follow(self) -> None:
        """Serves the calibration that another process chose. For whoever holds `LiveState.swapping`."""
        state = self._live.state
        if state.snapshot_id.startswith("rebuilt-"):  # no choice is of it
            return
        try:
            id = self.versions.chosen(state.snapshot_id)
        except CollectionError as error:
            if not state.choice_faults:
                faults = [f"{error} {_GOES_ON}"]
                self._live.state = state.choosing(state.calibration, state.calibration_id, faults)
            return
        if id in (None, state.calibration_id):
            if state.choice_faults and not chosen_calibration(self.versions, state.snapshot_id)[2]:
                self._live.state = state.choosing(state.calibration, state.calibration_id)  # it can be read again
            return
        found, id, faults = chosen_calibration(self.versions, state.snapshot_id)
        if found is None:
            found, id = state.calibration, state.calibration_id
            faults = [f"{fault} {_GOES_ON}" for fault in faults]
            if tuple(faults) == state.choice_faults:  # until it is mended, or another is chosen
                return
        self._live.state = state.choosing(found, id, faults)

    def fitting(self) -> Fitting:
        """How a compaction fits: on the feedback of the choice made last, whichever calibration serves now, if any."""
        calibration = self._live.state.calibration
        found = Fitting.of(self._config.get("calibrate"), calibration)
        try:
            choice = self.versions.choice()
            if "feedback" in choice:
                return replace(found, feedback=choice["feedback"])
            lost = (not choice or calibration is None) and bool(self.versions.fitted())
        except CollectionError:
            lost = True
        return replace(found, feedback=None, lost=True) if lost else found

    def fit_again(self, *, feedback: bool) -> Version:
        """See `Collection.recalibrate`."""
        state = self._with_snapshot()
        fitting = replace(self.fitting(), feedback=self._store.last_feedback if feedback else None, lost=False)
        now = self._store.everything()
        gallery = Gallery.of(now.born, now.labels, now.vectors)
        found, change = recalibrated(self._path / ENCODER, self._store, now, gallery, fitting, state.calibration)
        content = dump(found)
        cause = "feedback" if feedback else "refit"
        made = datetime.now(UTC).isoformat(timespec="microseconds")
        version = Version.of(found, id_of(content), made, cause, state.snapshot_id, now.sequence, change)
        self.keep_served()
        self.versions.expect()
        self.versions.keep(version, content)
        self._choose(version.id, found)
        self.versions.prune({version.id, state.calibration_id})
        return version

    def use(self, id: str) -> None:
        """See `Collection.use_calibration`."""
        self._with_snapshot()
        self.keep_served()
        found = self.versions.load(id)
        stale = found.stale(self._live.state.gallery)
        if stale is not None:
            raise CalibrationError(f"{stale} It was not put in use: recalibrate instead.")
        self._choose(id, found)

    def _with_snapshot(self) -> State:
        if self._live.state.snapshot_id.startswith("rebuilt-"):
            raise CollectionError(f"{self._path}: has no intact snapshot to go with a calibration. Compact it first.")
        return self._live.state

    def _choose(self, id: str, found: Calibration) -> None:
        self.versions.choose(self._live.state.snapshot_id, id, last_note(found))
        with self._live.swapping:
            self._live.state = self._live.state.choosing(found, id)

    def _served(self, state: State) -> Version | None:
        if state.calibration is None or state.calibration_id is None:
            return None
        made = created(self._path / SNAPSHOTS, state.snapshot_id)
        return Version.of(state.calibration, state.calibration_id, made, BUILT, state.snapshot_id, state.base, None)
