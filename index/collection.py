"""An opened collection: gallery, vector engine, calibration and encoder as one verified unit.

Every read takes one immutable `State` and answers from it alone; every write is committed to the items first and then
swaps the state. A reader never waits for a writer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from index.answer import Answer, MapSpec
from index.calibration.calibrate import Calibration
from index.calibration.conformal import CoverageFor
from index.calibration.drift import Drift
from index.calibration.sources import Progress
from index.encoders.encoder import Encoder
from index.encoders.image_encoder import Source, image_encoder
from index.engines.engine import Engine
from index.engines.milvus_engine import leave
from index.errors import CollectionError, DataError, DiskFull, ReadOnly
from index.items.filters import Filter, says_something
from index.items.gallery import Gallery as Gallery
from index.items.item import StoredItem
from index.items.new_items import NewItem as NewItem
from index.items.new_items import Receipt as Receipt
from index.items.new_items import encoded
from index.items.store import Item, ItemStore
from index.memory import give_back, given_back_after
from index.search import respond
from index.search.asked import MAX_K as MAX_K
from index.search.asked import Asked, texts_asked, vectors_asked
from index.search.finding import Finder
from index.search.found import check_length
from index.stages import stage
from index.storage.folder import CONFIG, ENCODER, ITEMS, SNAPSHOTS, checked_encoder, read_config
from index.storage.live import LiveState
from index.storage.snapshot import clean, current_name, digest_of, refuse_altered, refuse_newer, refuse_unsigned
from index.storage.state import State
from index.storage.versions import Version
from index.storage.writer_lock import WriterLock
from index.upkeep import compaction
from index.upkeep.calibrations import Calibrations
from index.upkeep.maintenance import Maintenance


def _silent(what: str, done: int, of: int) -> None: ...


class Collection:
    """Open with `Collection.open`; everything is safe from several threads."""

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        encoder: Encoder,
        store: ItemStore,
        lock: WriterLock | None,
        compacts: bool,
    ) -> None:
        self.path = path
        self.name: str = config["name"]
        self.encoder = encoder
        self.model_id = encoder.fingerprint[:12]
        self.drift = Drift()
        self._config = config
        self._settings = digest_of(path / CONFIG)
        self._store = store
        self._live = LiveState(path, config, store)
        self._finder = Finder(self._live, store)
        self._calibrations = Calibrations(path, config, store, self._live)
        self._lock = lock
        self._compacts = compacts
        self._closed = False
        self._compacting = threading.Lock()
        self.maintenance = Maintenance(self.snapshot, self._due)

    @classmethod
    def open(cls, path: Path, *, writable: bool = False, compacts: bool = True) -> Collection:
        """Verifies every checksum, then loads. A damaged snapshot gives way to an older one, then to a rebuild.

        `writable` takes the one writer's place, until `close` or the process's death; then it `compacts` by itself.
        Raises `CollectionError` when the folder is no collection, or its encoder is not the one it was built with;
        `WriterBusy` and `ReadOnly`.
        """
        path = Path(path)
        config = read_config(path)
        if writable:
            refuse_newer(path / SNAPSHOTS)
            refuse_altered(path / SNAPSHOTS)
        refuse_unsigned(path / SNAPSHOTS)
        lock = WriterLock(path) if writable else None
        try:
            encoder = checked_encoder(path, config)
            store = ItemStore(path / ITEMS, int(config["dimension"]), create=False)
        except BaseException:
            _release(lock)
            raise
        try:
            found = cls(path, config, encoder, store, lock, compacts)
            if writable:
                found._tidy()
        except BaseException:
            store.close()
            _release(lock)
            raise
        return found

    def prepare(self) -> None:
        """Makes what speeds up all searches of this index and of later ones: for a process that is asked many times.

        Costs memory and seconds, both in proportion to a large exact index, see `index.engines.eight_bits`.
        """
        self._live.prepare()

    def _tidy(self) -> None:
        """What a killed writer left undone: half-written files, an erasure, a snapshot that is missing or damaged."""
        try:
            clean(self.path / SNAPSHOTS, leaving=leave)
        except CollectionError as error:  # the next compaction tries again, and fails with this
            self._live.state = replace(self.state, warnings=(*self.state.warnings, str(error)))
        self._calibrations.versions.clean()
        if self.state.snapshot_id.startswith("rebuilt-"):
            self._store.renew()  # no snapshot belongs to these items: none shall by chance of numbers ever
        if self.state.snapshot_id == current_name(self.path / SNAPSHOTS):
            with suppress(DiskFull):  # the next compaction tries again
                compaction.erase(self.path / SNAPSHOTS, self._store, self.state.base)
        self.maintenance.poke()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what runs in the background, and lets the next writer in. Nothing can be written any more; what was
        read already may still be asked."""
        self.maintenance.close()
        self._store.close()
        _release(self._lock)
        self._lock, self._closed = None, True

    @property
    def state(self) -> State:
        """What is served now: immutable, and whole."""
        return self._live.state

    @property
    def engine(self) -> Engine:
        return self.state.engine

    @property
    def gallery(self) -> Gallery:
        return self.state.gallery

    def answerable(self) -> list[str]:
        """The labels that may be answered: some item of theirs is there, and its consent has not ended."""
        return self._finder.answerable()

    def findable(self, ids: Sequence[str]) -> list[StoredItem]:
        """Those of these items that are not deleted, and whose consent has not ended, as they stand now, in this
        order."""
        return self._finder.findable(ids)

    def keys(self) -> NDArray[np.uint64]:
        """`index.data.rows.text_key` of what each item was made of, see `ItemStore.keys`."""
        return self._store.keys(self.state.gallery.rows)

    @property
    def calibration(self) -> Calibration | None:
        return self.state.calibration

    @property
    def snapshot_id(self) -> str:
        return self.state.snapshot_id

    @property
    def warnings(self) -> list[str]:
        return list(self.state.warnings)

    @property
    def sequence(self) -> int:
        """Of the last write that is searchable."""
        return self.state.sequence

    @property
    def writable(self) -> bool:
        return self._lock is not None

    @property
    def size(self) -> int:
        """Items that can be found."""
        return len(self.state)

    def compaction_due(self) -> bool:
        """Whether so much has changed that a writer compacts by itself."""
        return compaction.due(self.state)

    def uncalibrated(self) -> str | None:
        """Why no probability can be shown, or None."""
        return self.state.uncalibrated()

    def upsert(self, items: Iterable[NewItem]) -> Receipt:
        """Writes all items or none, encoding those without a vector. When it returns they are durable and searchable.

        Raises `DataError` for an item that cannot be used, `ReadOnly`, `DiskFull`.
        """
        self._must_write()
        if not isinstance(items, Iterable):
            raise DataError(f"upsert takes a list of items, got a {type(items).__name__}. Put the item in brackets.")
        whole = encoded(list(items), self.encoder, self.gallery.spelled)
        with self._live.swapping:
            sequence, replaced = self._store.upsert(whole)
            self._live.catch_up()
        self.maintenance.poke()
        return Receipt(sequence, written=len(whole), replaced=replaced)

    def delete(self, ids: Iterable[str]) -> Receipt:
        """Deletes those of the ids that exist: not searchable when it returns, erased from all files by compaction.

        `describe()["erased"]` tells up to which receipt that has happened, and when. Raises `ReadOnly`, `DiskFull`.
        """
        self._must_write()
        if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):  # an id is a sequence of its letters
            raise DataError(f"delete takes a list of ids. For this one alone: [{str(ids)[:40]!r}].")
        ids = list(ids)
        if wrong := [id for id in ids if not isinstance(id, str)]:
            raise DataError(f"An id to delete is a {type(wrong[0]).__name__}, expected a string.")
        with self._live.swapping:
            sequence, deleted = self._store.delete(ids)
            self._live.catch_up()
        self.maintenance.poke()
        return Receipt(sequence, deleted=deleted)

    def delete_where(self, filter: dict[str, Any]) -> Receipt:
        """Deletes the items that pass the filter now, see `delete`. Raises `DataError` for an empty or wrong filter."""
        self._must_write()
        condition = Filter.parse(filter)
        if not says_something(filter):
            raise DataError("An empty filter would delete every item. Name the ids, or filter on something.")
        with self._live.swapping:
            rows = self._store.rows_where(condition)
            names = [] if rows is None else [item.id for item in self._store.get(rows.tolist()).values()]
            sequence, deleted = self._store.delete(names)
            self._live.catch_up()
        self.maintenance.poke()
        return Receipt(sequence, deleted=deleted)

    def item(self, name: str, *, vector: bool = False) -> Item | None:
        """The item with this id; its vector is empty unless asked for. Raises `DataError` for what is no id."""
        if not isinstance(name, str):
            raise DataError(f"An item's id is a string, got a {type(name).__name__}.")
        return self._store.item(name, vector=vector)

    def feedback(self, query: NDArray[np.float32], label: str | None, query_id: str | None = None) -> int:
        """Notes what the right answer to a query vector (d,) was, None for "nothing in the gallery", for the next
        calibration; returns the note's number. Raises `DataError`, `ReadOnly`, `DiskFull`."""
        self._must_write()
        for what, value in (("label", label), ("query_id", query_id)):
            if value is not None and not isinstance(value, str):
                raise DataError(f"The {what} of feedback is a {type(value).__name__}, expected a string or None.")
        label = None if label is None else self.gallery.spelled(label)
        if label == "":
            raise DataError("The label of feedback is empty. Name one, or None for nothing in the gallery.")
        if label is not None and not self.gallery.has_label(label):
            raise DataError(f"No item has the label {label!r}. Name one that is there, or None: nothing here matches.")
        vector = vectors_asked(np.asarray(query)[None], self.encoder.dimension, self.model_id)[0]
        return self._store.add_feedback(vector, label, query_id)

    def check_place(self) -> None:
        """Raises `CollectionError` when another collection lies in the folder now, or none: nothing can be written."""
        self._store.check_place("nothing is written. Open the collection again: a service is started anew")

    def refresh(self) -> bool:
        """Follows what another process has written; returns whether anything had changed.

        Raises `CollectionError` when another collection lies in the folder now; what was opened is served on.
        """
        self._store.check_place("it is not followed. Open the collection again: a service is told to reload")
        with self._live.swapping:
            before = _version(self.state)
            compacted = not self.writable and self._live.follow_compaction()
            if not compacted:
                self._live.catch_up()
            self._calibrations.follow()
            changed = _version(self.state) != before
        if compacted:  # the old state is gone now
            give_back()
        return changed

    @given_back_after
    def snapshot(self, progress: Progress | None = None) -> str:
        """Compacts: a new base index, the calibration fitted again, deleted items erased. Returns the snapshot's name.

        Reads and writes go on meanwhile. Raises `ReadOnly`, `DiskFull`, `CollectionError`, and `SettingsError` where
        the calibrator's package is missing; the old state then stays, unless only the new calibration could not be kept
        for later.
        """
        self._must_write()
        snapshots = self.path / SNAPSHOTS
        with self._compacting:
            refuse_altered(snapshots)
            self._calibrations.versions.check_writable()
            self._calibrations.keep_served()
            fitting = self._calibrations.fitting()
            made = compaction.compact(
                snapshots,
                self._store,
                self.encoder,
                self.path / ENCODER,
                fitting,
                self._config.get("engine", "auto"),
                progress or _silent,
                self._settings,
            )
            self._live.take(made)
            compaction.erase(snapshots, self._store, made.base)  # first: it was promised, whatever becomes of the rest
            with suppress(DiskFull):  # it is in the snapshot, and is kept with the next one
                self._calibrations.keep_served()
                self._calibrations.versions.prune({made.calibration_id})
        return made.snapshot_id

    @given_back_after
    def recalibrate(self, *, feedback: bool = True) -> Version:
        """Fits the calibration again, for the items as they are and with what users said was right; serves it.

        The index stays as it is. The version's `change` tells what it changed, see `index.upkeep.recalibrate`. Raises
        `CalibrationError` when there is too little feedback or no honest query, `ReadOnly`, `DiskFull`; then the old
        calibration stays.
        """
        self._must_write()
        with self._compacting:
            return self._calibrations.fit_again(feedback=feedback)

    def calibrations(self) -> list[Version]:
        """Every calibration that is kept, oldest first; `state.calibration_id` is the one in use.

        Damaged ones are left out, and told of in `warnings` once they are asked for. Raises `CollectionError` when the
        folder cannot be listed.
        """
        return self._calibrations.listed()

    def stale_calibrations(self) -> dict[str, str]:
        """Of `calibrations` those that do not fit the gallery as it is now, which `use_calibration` refuses: id to
        reason."""
        return self._calibrations.stale()

    def use_calibration(self, id: str) -> None:
        """Serves the calibration of this id, until another is chosen or a compaction fits a new one.

        Raises `NotFound`, `ReadOnly`, `DiskFull`, and `CalibrationError` for one that no longer fits the gallery.
        """
        self._must_write()
        with self._compacting:
            self._calibrations.use(id)

    def _due(self) -> bool:
        return self.writable and self._compacts and self.compaction_due()

    def _must_write(self) -> None:
        if self._closed:
            raise CollectionError(f"{self.path}: was closed. Open the collection again.")
        if self._lock is None:
            raise ReadOnly(f"{self.path}: open for reading only. Open it with writable=True to change it.")

    def search(
        self,
        texts: Sequence[str],
        *,
        k: int = 10,
        map: MapSpec = "softmax",
        coverage: float | None = None,
        coverage_for: CoverageFor = "mixed",
        filter: dict[str, Any] | None = None,
        explain: bool = False,
    ) -> list[Answer]:
        """One answer a text. Raises `DataError` for an empty text, k out of range or an unknown map.

        `coverage` asks for prediction sets; `coverage_for` "known-unknown" makes it hold for known and unknown queries
        apart, not only for their mix. `filter` (see `index.items.filters`) says which items may be shown and which
        labels answered; a label of which nothing passes counts as no match. `explain` adds why, see
        `index.search.explain`.
        """
        asked = Asked.checked(k, map, coverage, coverage_for, filter, explain)  # before anything is encoded
        return self.answered(self.encoder.encode(texts_asked(texts)), asked)[0]

    def search_images(self, images: Sequence[Source], **how: Any) -> list[Answer]:
        """One answer a picture (its bytes or its file); `how` as in `search_vectors`. Raises `DataError`.

        The pictures are encoded and forgotten.
        """
        return self.search_vectors(image_encoder(self.encoder).encode_images(images), **how)

    def search_vectors(
        self,
        vectors: NDArray[np.floating],
        *,
        k: int = 10,
        map: MapSpec = "softmax",
        coverage: float | None = None,
        coverage_for: CoverageFor = "mixed",
        filter: dict[str, Any] | None = None,
        explain: bool = False,
    ) -> list[Answer]:
        """One answer a row of `vectors` (n, d), unit vectors of this collection's encoder. Raises `DataError`."""
        return self.answered(vectors, Asked.checked(k, map, coverage, coverage_for, filter, explain))[0]

    def answered(self, vectors: NDArray[np.floating], asked: Asked) -> tuple[list[Answer], State]:
        """As `search_vectors`, with the state that all of the answers come from."""
        queries = vectors_asked(vectors, self.encoder.dimension, self.model_id)
        before = self.state
        if not len(queries):
            return [], before
        try:
            found, state = self._finder.found(queries, asked)
        except CollectionError:  # an index that lies elsewhere (Milvus), and went with a compaction?
            if self.state is before and not self.refresh():
                raise
            found, state = self._finder.found(queries, asked)
        check_length(found, asked)
        reason = state.uncalibrated()
        if reason is not None or state.calibration is None:
            told = [warning for warning in state.warnings if warning not in (reason or "")]
            return respond.without_probabilities(found, asked.k, reason or "", told), state
        with stage("calibrate"):
            evidence = respond.evidence_of(found)
            self.drift.observe(found.scores[:, 0], evidence.background, state.calibration)
            return respond.with_probabilities(found, evidence, asked, state.calibration, state.caveats), state

    def drift_report(self) -> dict[str, Any]:
        """How far recent queries are from the calibration's, see `index.calibration.drift`."""
        calibration = self.state.calibration
        return self.drift.report(calibration.reference if calibration else None, calibration)

    def describe(self) -> dict[str, Any]:
        """What is served: counts, encoder, snapshot, and what the calibration rests on."""
        state = self.state
        erased, at = self._store.erased
        return {
            "name": self.name,
            "items": len(state),
            "labels": state.gallery.label_count,
            "encoder": {
                "name": self._config.get("encoder_name"),
                "id": self.model_id,
                "dim": self.encoder.dimension,
                "modality": self.encoder.modality,
            },
            "engine": state.engine.kind,
            "search": state.engine.describe(),
            "snapshot": state.snapshot_id,
            "sequence": state.sequence,
            "pending": state.pending,
            "erased": {"sequence": max(erased, 0), "at": at},
            "compaction": self.maintenance.describe(),
            "created": self._config.get("created"),
            "calibrated": state.uncalibrated() is None,
            "reason": state.uncalibrated(),
            "stale": state.calibration is not None and state.uncalibrated() is not None,
            "calibration": state.calibration.report if state.calibration else None,
            "calibration_id": state.calibration_id,
            "drift": self.drift_report(),
            "warnings": [*state.warnings, *(state.calibration.warnings if state.calibration else [])],
        }


def _version(state: State) -> tuple[int, str, str | None]:
    return state.sequence, state.snapshot_id, state.calibration_id


def _release(lock: WriterLock | None) -> None:
    if lock is not None:
        lock.release()
