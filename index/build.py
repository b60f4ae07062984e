"""Rows to a collection: check, encode, store, index, calibrate, and put in place whole or not at all.

The corpus is never in memory, only its vectors are, while the index is built: rows stream from their files through the
encoder into the item store. The store's transactions are the progress that a killed build resumes from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.calibration.calibrate import DEFAULT
from index.calibration.calibrators import check_calibrator
from index.calibration.sources import NO_QUERIES, Held, Progress, calibration_queries
from index.collection import Collection
from index.data.rows import SHOWN, Row, text_key
from index.encoders.by_name import encoder_folder, load_encoder
from index.encoders.encode import Encoded, encode_stream, workers_for
from index.encoders.encoder import Encoder
from index.encoders.files import fingerprint, training_settings
from index.encoders.onnx_export import LEAST_AGREEMENT, Backend, install_encoder
from index.engines.choice import check_name, make_engine
from index.errors import CalibrationError, CollectionError
from index.intake import item_id, metadata_of, take_in
from index.items.gallery import Gallery
from index.items.store import Changes, Item, ItemStore
from index.storage.folder import CONFIG, ENCODER, FORMAT, ITEMS, SNAPSHOTS
from index.storage.loading import CALIBRATION, PROFILE
from index.storage.place import STATE, begin, building, prepare
from index.storage.snapshot import write_snapshot
from index.storage.versions import CALIBRATIONS
from index.storage.writer_lock import LOCK, WriterLock
from index.upkeep.compaction import UNKNOWN_SHARE, Fitting, keep_queries, own_questions

_CHUNK = 8
"""Batches that are stored in one transaction."""
_VERIFIED = 256
"""Texts an export is verified on."""
_CUT = "cut.txt"


def _silent(what: str, done: int, of: int) -> None: ...


def build_collection(
    model: str,
    rows: Iterable[Row],
    out: Path,
    *,
    id_column: str | None = None,
    label_column: str | None = None,
    held: Held = NO_QUERIES,
    unknown_share: float = UNKNOWN_SHARE,
    calibrator: str = DEFAULT,
    engine: str = "auto",
    backend: Backend = "auto",
    least_agreement: float = LEAST_AGREEMENT,
    overwrite: bool = False,
    resume: bool | None = False,
    workers: int | None = None,
    seed: int = 0,
    progress: Progress = _silent,
    opened: Encoder | None = None,
) -> dict[str, Any]:
    """Builds the collection `out` of `rows`, encoded by `model` (a folder, `static`, `minilm` or a hub id).

    `rows` is iterated more than once: a list, or `index.data.rows.RowFiles`, which streams. Everything is written
    beside `out` and renamed: bad input leaves nothing behind, and a killed build is continued with `resume` (None:
    refuse to start over where one lies). `workers` processes encode; None takes as many as there are cores and
    work for.

    `backend` says how the encoder is served, see `index.encoders.onnx_export`. `opened` is an encoder that may know
    some of the rows already (`index.verbs.usable`); it encodes, in this process, if it is the one that will be served.

    Returns the description of `Collection.describe`. When no honest calibration is possible the collection is built
    without one and says why; other faults raise `DataError`, `EncoderError` or `CollectionError`; `WriterBusy` while a
    collection that would be replaced is written to.
    """
    check_calibrator(calibrator)
    check_name(engine)
    check = partial(check_out, out, overwrite)
    check()
    taken = take_in(rows, id_column, progress)
    with encoder_folder(model) as source, _no_writer(out), building(out, check) as folder:
        inputs = {
            "encoder": fingerprint(source),
            "backend": backend,
            "ids": id_column or "file and line",
            "rows": taken.files,
        }
        told: list[str] = []
        if not prepare(folder, inputs, resume):
            told = install_encoder(source, folder / ENCODER, backend, _sample(rows), least_agreement)
            begin(folder, inputs)
        encoder = load_encoder(folder / ENCODER)
        if opened is not None and opened.fingerprint == encoder.fingerprint:
            encoder, workers = opened, 1
        fitting = Fitting(unknown_share, calibrator, seed)
        with closing(ItemStore(folder / ITEMS, encoder.dimension)) as store:
            _store(encoder, folder, store, rows, taken.count, id_column, workers, progress)
            now = store.everything()
            learned = _learn(folder / ENCODER, encoder, store, now, taken.keys, held, fitting, progress)
        config = {
            "format": FORMAT,
            "name": out.name,
            "encoder": encoder.fingerprint,
            "encoder_name": _encoder_name(model, folder / ENCODER),
            "dimension": encoder.dimension,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "uncalibrated": learned.why_not,
            "calibrate": asdict(fitting),
            "engine": engine,
            "label": label_column,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        _index(folder / SNAPSHOTS, engine, encoder.fingerprint, store.id, now, learned, seed, progress)
        cut = _cut_texts(rows, folder)
        del now, learned  # the collection is opened below; it need not stand in memory twice
        for name in (_CUT, STATE):
            (folder / name).unlink(missing_ok=True)
    collection = Collection.open(out)
    collection.close()
    described = collection.describe()
    return {**described, "warnings": [*told, *cut, *described["warnings"]]}


@dataclass(frozen=True, slots=True)
class _Learned:
    """What a snapshot says beside its index: files, why there is no calibration, and questions to tune the index by."""

    files: dict[str, bytes]
    why_not: str | None
    asked: NDArray[np.float32] | None


def _learn(
    folder: Path,
    encoder: Encoder,
    store: ItemStore,
    now: Changes,
    keys: NDArray[np.uint64],
    held: Held,
    fitting: Fitting,
    progress: Progress,
) -> _Learned:
    """Profile and calibration of the items `now`; keeps the queries in `store`. Rows (n,) of the data have `keys`."""
    gallery = Gallery.of(now.born, now.labels, now.vectors)
    files, asked, why_not = {PROFILE: gallery.profile.dump()}, None, None
    try:
        queries, warnings = calibration_queries(
            folder, encoder, keys, now.vectors, gallery, held, fitting.unknown_share, fitting.seed, progress
        )
        keep_queries(store, queries)
        asked = own_questions(queries)
        progress("calibrating", 0, 1)
        fitted = fitting.calibration(queries, now, gallery, warnings)
        files[CALIBRATION] = json.dumps(fitted.to_json(), allow_nan=False).encode()
        progress("calibrating", 1, 1)
    except CalibrationError as error:
        why_not = str(error)
    return _Learned(files, why_not, asked)


def _index(
    snapshots: Path,
    engine: str,
    encoder: str,
    store: str,
    now: Changes,
    learned: _Learned,
    seed: int,
    progress: Progress,
) -> None:
    """Builds the index of the items `now` and writes the first snapshot."""
    progress("building the index", 0, 1)
    built = make_engine(engine, now.vectors, now.born, queries=learned.asked, seed=seed)
    files = learned.files | built.dump()
    progress("building the index", 1, 1)
    shutil.rmtree(snapshots, ignore_errors=True)  # of a build that was killed here
    write_snapshot(
        snapshots,
        sequence=now.sequence,
        engine=built.kind,
        encoder=encoder,
        files=files,
        about={"store": store, "uncalibrated": learned.why_not},
    )


def _store(
    encoder: Encoder,
    folder: Path,
    store: ItemStore,
    rows: Iterable[Row],
    count: int,
    id_column: str | None,
    workers: int | None,
    progress: Progress,
) -> None:
    """Encodes and stores the rows that are not stored yet: row number n of the store is the n-th row of the data."""
    done = len(store)
    with (
        closing(
            encode_stream(encoder, folder / ENCODER, islice(rows, done, None), workers_for(count - done, workers))
        ) as stream,
        (folder / _CUT).open("a", encoding="utf-8") as cut,
    ):
        while chunk := list(islice(stream, _CHUNK)):
            for encoded in chunk:
                cut.writelines(f"{done + at}\n" for at in encoded.too_long)
                done += len(encoded.rows)
            cut.flush()  # before the rows count as done; rows encoded twice are only named twice
            store.upsert([item for encoded in chunk for item in _items(encoded, id_column)])
            progress("encoding", done, count)


def _items(encoded: Encoded, id_column: str | None) -> list[Item]:
    return [
        Item(
            item_id(row, id_column),
            row.label,
            row.text if row.image is None else None,  # pictures are not kept, nor what would betray them
            vector,
            metadata_of(row, id_column),
            None if row.image is None else text_key(row.text),
        )
        for row, vector in zip(encoded.rows, encoded.vectors, strict=True)
    ]


def _sample(rows: Iterable[Row]) -> list[str]:
    return [row.text for row in islice(rows, _VERIFIED)]


def _cut_texts(rows: Iterable[Row], folder: Path) -> list[str]:
    """A warning that names the rows whose texts are longer than the encoder reads, or nothing."""
    cut = sorted({int(line) for line in (folder / _CUT).read_text(encoding="utf-8").splitlines()})
    if not cut:
        return []
    shown = set(cut[:SHOWN])
    places = [f"{row.file} line {row.line}" for at, row in enumerate(islice(rows, cut[:SHOWN][-1] + 1)) if at in shown]
    named = ", ".join(places) + (", ..." if len(cut) > SHOWN else "")
    return [f"{len(cut)} texts are longer than this encoder reads; their ends are ignored: {named}."]


def _encoder_name(model: str, folder: Path) -> str:
    return str(training_settings(folder).get("encoder", model))


@contextmanager
def _no_writer(out: Path) -> Iterator[None]:
    """Keeps writers away from a collection that is being replaced: what they wrote would be lost with it.

    Raises `WriterBusy` where one is at work.
    """
    lock = WriterLock(out) if out.exists() else None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


_OWN = (CONFIG, ENCODER, ITEMS, SNAPSHOTS, CALIBRATIONS, LOCK, STATE)
"""How the names of what belongs to a collection begin: SQLite adds endings to its file's."""


def check_out(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not (out / CONFIG).is_file():
        raise CollectionError(f"{out}: exists and is not a collection, so it is not replaced. Choose another --out.")
    if not overwrite:
        raise CollectionError(f"{out}: already exists. Choose another --out, or replace it with --overwrite.")
    foreign = sorted(path.name for path in out.iterdir() if not path.name.startswith(_OWN))
    if foreign:
        raise CollectionError(
            f"{out}: beside the collection it holds {', '.join(foreign[:5])}{' and more' if len(foreign) > 5 else ''}, "
            "which --overwrite would delete. Move that away, or choose another --out."
        )
