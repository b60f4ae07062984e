"""Rows to a collection: encode, store, index, calibrate, and put in place whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.calibrate import DEFAULT
from index.calibrators import CALIBRATORS
from index.collection import CONFIG, ENCODER, FORMAT, ITEMS, SNAPSHOTS, Collection
from index.compaction import UNKNOWN_SHARE, Fitting, keep_queries, own_questions
from index.encoder_files import training_settings
from index.encoders import Encoder, install_encoder
from index.engines import check_name, make_engine
from index.errors import CalibrationError, CollectionError, DataError, SettingsError
from index.gallery import Gallery
from index.items import Item, ItemStore
from index.loading import CALIBRATION, PROFILE
from index.rows import SHOWN, Row
from index.snapshot import write_snapshot
from index.sources import BATCH, NO_QUERIES, Held, Progress, calibration_queries, encode_rows


def _silent(what: str, done: int, of: int) -> None: ...


def build_collection(
    model: str,
    rows: Sequence[Row],
    out: Path,
    *,
    id_column: str | None = None,
    held: Held = NO_QUERIES,
    unknown_share: float = UNKNOWN_SHARE,
    calibrator: str = DEFAULT,
    engine: str = "auto",
    overwrite: bool = False,
    seed: int = 0,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Builds the collection `out` of `rows`, encoded by `model` (a folder, `static`, `minilm` or a hub id).

    Everything is written beside `out` and renamed, so a failure leaves nothing behind. Returns the description of
    `Collection.describe`. When no honest calibration is possible the collection is built without one and says why;
    other faults raise `DataError`, `EncoderError` or `CollectionError`.
    """
    if calibrator not in CALIBRATORS:
        raise SettingsError(f"--calibrator {calibrator}: there is none of this name. Use {', '.join(CALIBRATORS)}.")
    check_name(engine)
    _check_out(out, overwrite)
    if not rows:
        raise DataError("There are no rows to index. Give at least one file with labelled texts.")
    with _beside(out) as folder:
        encoder = install_encoder(model, folder / ENCODER)
        vectors = encode_rows(encoder, rows, progress)
        items = _items(rows, vectors, id_column)
        with closing(ItemStore(folder / ITEMS, encoder.dimension)) as store:
            for start in range(0, len(items), 10 * BATCH):
                store.upsert(items[start : start + 10 * BATCH])
                progress("storing", min(start + 10 * BATCH, len(items)), len(items))
            now = store.everything()
            gallery = Gallery.of(now.born, now.labels, now.vectors)
            fitting = Fitting(unknown_share, calibrator, seed)
            why_not = None
            files = {PROFILE: gallery.profile.dump()}
            asked = None
            try:
                queries, warnings = calibration_queries(
                    folder / ENCODER, encoder, rows, now.vectors, gallery, held, seed, progress
                )
                keep_queries(store, queries)
                asked = own_questions(queries)
                progress("calibrating", 0, 1)
                fitted = fitting.calibration(queries, now, gallery, warnings)
                files[CALIBRATION] = json.dumps(fitted.to_json(), allow_nan=False).encode()
                progress("calibrating", 1, 1)
            except CalibrationError as error:
                why_not = str(error)
        progress("building the index", 0, 1)
        built = make_engine(engine, now.vectors, now.born, queries=asked, seed=seed)
        files |= built.dump()
        progress("building the index", 1, 1)
        config = {
            "format": FORMAT,
            "name": out.name,
            "encoder": encoder.fingerprint,
            "encoder_name": _encoder_name(model, folder / ENCODER),
            "dimension": encoder.dimension,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "uncalibrated": why_not,
            "calibrate": asdict(fitting),
            "engine": engine,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        write_snapshot(
            folder / SNAPSHOTS,
            sequence=now.sequence,
            engine=built.kind,
            encoder=encoder.fingerprint,
            files=files,
            about={"store": store.id, "uncalibrated": why_not},
        )
    collection = Collection.open(out)
    collection.close()
    described = collection.describe()
    return {**described, "warnings": [*_cut_texts(encoder, rows), *described["warnings"]]}


def _cut_texts(encoder: Encoder, rows: Sequence[Row]) -> list[str]:
    """A warning that names the rows whose texts are longer than the encoder reads, or nothing."""
    cut = [rows[at] for at in encoder.too_long([row.text for row in rows])]
    if not cut:
        return []
    named = ", ".join(f"{row.file} line {row.line}" for row in cut[:SHOWN]) + (", ..." if len(cut) > SHOWN else "")
    return [f"{len(cut)} texts are longer than this encoder reads; their ends are ignored: {named}."]


def _items(rows: Sequence[Row], vectors: NDArray[np.float32], id_column: str | None) -> list[Item]:
    items = []
    seen: dict[str, Row] = {}
    for row, vector in zip(rows, vectors, strict=True):
        if id_column is not None and id_column not in row.extra:
            raise DataError(
                f"{row.file}: line {row.line} has no column '{id_column}' beside the text and the label. Name the "
                "right one with --id COLUMN."
            )
        given = None if id_column is None else row.extra[id_column]
        name = f"{Path(row.file).name}:{row.line}" if id_column is None else "" if given is None else str(given)
        if not name:
            raise DataError(f"{row.file}: line {row.line}: the column '{id_column}' holds no id. Give every row one.")
        if name in seen:
            other = seen[name]
            raise DataError(
                f"{row.file}: line {row.line}: the id {name!r} was already used at {other.file} line {other.line}. "
                "Give every row an id of its own and name the column with --id COLUMN."
            )
        seen[name] = row
        items.append(Item(name, row.label, row.text, vector, {k: v for k, v in row.extra.items() if k != id_column}))
    return items


def _encoder_name(model: str, folder: Path) -> str:
    return str(training_settings(folder).get("encoder", model))


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise CollectionError(f"{out}: already exists. Choose another --out, or replace it with --overwrite.")
    if not (out / CONFIG).is_file():
        raise CollectionError(f"{out}: exists and is not a collection, so it is not replaced. Choose another --out.")


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder next to `out` that takes its place on success and disappears on failure.

    Its name carries our process number, so that what a killed run left behind is recognised and removed.
    """
    created = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-{os.getpid()}-", dir=out.parent))
    except OSError as error:
        raise CollectionError(f"{out}: cannot be created ({error.strerror}). Choose another --out.") from error
    folder.chmod(0o755)
    try:
        yield folder
        _replace(out, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
        raise


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sweep(out: Path) -> None:
    for left in out.parent.glob(f".{out.name}-*-*"):
        process = left.name.removeprefix(f".{out.name}-").partition("-")[0]
        # a folder ending in -old is a collection that was being replaced: never ours to delete
        if process.isdigit() and not _alive(int(process)) and not left.name.endswith("-old"):
            shutil.rmtree(left, ignore_errors=True)


def _replace(out: Path, folder: Path) -> None:
    if not out.exists():
        folder.rename(out)
        return
    old = folder.with_name(folder.name + "-old")
    out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)
