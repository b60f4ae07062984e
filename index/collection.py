"""A collection opened for searching: gallery, vector engine, calibration and encoder as one verified unit.

collection.json            name, format, encoder fingerprint and dimension
encoder/                   the encoder's folder, so that a collection can be copied or mounted alone
items.sqlite               the truth
snapshots/, CURRENT        checksummed states of engine + calibration
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from index import respond
from index.answer import Answer, MapSpec
from index.calibrate import Calibration
from index.conformal import CoverageFor
from index.encoders import Encoder, load_encoder
from index.engine import Engine
from index.engines import engine_class, recall_warning
from index.errors import CalibrationError, CollectionError, DataError
from index.evidence import TOP_K
from index.faiss_engine import FaissFlat
from index.image_encoder import Source, image_encoder
from index.items import ItemStore
from index.outcome import map_name
from index.profile import LabelProfile
from index.snapshot import read_snapshot

FORMAT = 1
MAX_K = TOP_K
CONFIG, ENCODER, ITEMS, SNAPSHOTS, CALIBRATION, PROFILE = (
    "collection.json",
    "encoder",
    "items.sqlite",
    "snapshots",
    "calibration.json",
    "labels.safetensors",
)


@dataclass(frozen=True, slots=True)
class Gallery:
    """Labels of the indexed rows. Codes below `len(names)` are labels; an unlabelled row has a code of its own."""

    rows: NDArray[np.int64]
    codes: NDArray[np.int64]
    names: list[str]
    profile: LabelProfile

    @classmethod
    def of(cls, rows: NDArray[np.int64], labels: Sequence[str | None], vectors: NDArray[np.float32] | bytes) -> Gallery:
        """From ascending row numbers, their labels, and their vectors (n, d) or the profile stored of them (bytes).

        Raises `CollectionError` for a stored profile that does not belong to these labels.
        """
        names = sorted({label for label in labels if label is not None})
        code = {name: at for at, name in enumerate(names)}
        found = [len(names) + at if label is None else code[label] for at, label in enumerate(labels)]
        codes = np.array(found, np.int64).reshape(-1)
        if isinstance(vectors, bytes):
            return cls(rows, codes, names, LabelProfile.load(vectors, len(names)))
        return cls(rows, codes, names, LabelProfile.of(vectors, codes, len(names)))

    def codes_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Label codes of row numbers, any shape."""
        return self.codes[np.searchsorted(self.rows, rows)]

    def encode_labels(self, labels: Sequence[str | None]) -> NDArray[np.int64]:
        """Codes of labels, -1 for one that is not in the gallery."""
        code = {name: at for at, name in enumerate(self.names)}
        return np.array([-1 if label is None else code.get(label, -1) for label in labels], np.int64).reshape(-1)

    @property
    def label_count(self) -> int:
        """Distinct identities: labels, and unlabelled items."""
        return len(np.unique(self.codes))

    @property
    def largest(self) -> int:
        """Items of the most frequent label."""
        return int(np.bincount(self.codes).max(initial=0))


class Collection:
    """Open with `Collection.open`; searches are safe from several threads."""

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        encoder: Encoder,
        store: ItemStore,
        engine: Engine,
        gallery: Gallery,
        calibration: Calibration | None,
        snapshot_id: str,
        warnings: list[str],
    ) -> None:
        self.path = path
        self.name = str(config["name"])
        self.encoder = encoder
        self.model_id = encoder.fingerprint[:12]
        self.snapshot_id = snapshot_id
        self.engine = engine
        self.gallery = gallery
        self.calibration = calibration
        self.warnings = warnings
        self._store = store
        self._config = config

    @classmethod
    def open(cls, path: Path) -> Collection:
        """Verifies every checksum, then loads. A damaged snapshot gives way to an older one, then to a rebuild.

        Raises `CollectionError` when the folder is no collection, or its encoder is not the one it was built with.
        """
        config = _read_config(path)
        encoder = load_encoder(path / ENCODER)
        if encoder.fingerprint != config["encoder"]:
            raise CollectionError(
                f"{path / ENCODER}: this encoder ({encoder.fingerprint[:12]}) is not the one the collection was built "
                f"with ({config['encoder'][:12]}), so its vectors would mean nothing here. Restore that encoder, or "
                "build the collection again with `surematch index`."
            )
        if encoder.dimension != config["dimension"]:
            raise CollectionError(
                f"{path / CONFIG}: says {config['dimension']} dimensions, the encoder makes {encoder.dimension}. "
                "Restore the file from a backup, or build the collection again."
            )
        if not (path / ITEMS).is_file():
            raise CollectionError(
                f"{path / ITEMS}: the items are missing. Restore the file from a backup, or build the collection again."
            )
        store = ItemStore(path / ITEMS, int(config["dimension"]))
        try:
            engine, gallery, calibration, snapshot_id, warnings = _load_state(path, config, store)
        except BaseException:
            store.close()
            raise
        return cls(path, config, encoder, store, engine, gallery, calibration, snapshot_id, warnings)

    def close(self) -> None:
        self._store.close()

    @property
    def size(self) -> int:
        """Items that can be found."""
        return len(self.engine)

    def uncalibrated(self) -> str | None:
        """Why no probability can be shown, or None."""
        if self.calibration is None:
            why = self._config.get("uncalibrated") or " ".join(self.warnings)
            return str(why or "This collection's calibration is missing. Build it again.")
        return self.calibration.stale(self.size, self.gallery.label_count)

    def search(
        self,
        texts: Sequence[str],
        *,
        k: int = 10,
        map: MapSpec = "softmax",
        coverage: float | None = None,
        coverage_for: CoverageFor = "mixed",
    ) -> list[Answer]:
        """One answer a text. Raises `DataError` for an empty text, k out of range or an unknown map.

        `coverage` asks for prediction sets; `coverage_for` "known-unknown" makes it hold for known and unknown queries
        apart, not only for their mix.
        """
        for at, text in enumerate(texts):
            if not text.strip():
                raise DataError(f"Query {at + 1} is an empty text. Ask with at least one word.")
        return self.search_vectors(
            self.encoder.encode(texts), k=k, map=map, coverage=coverage, coverage_for=coverage_for
        )

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
    ) -> list[Answer]:
        """One answer a row of `vectors` (n, d), unit vectors of this collection's encoder. Raises `DataError`."""
        queries = self._checked(vectors)
        name = map_name(map)
        if not 1 <= k <= MAX_K:
            raise DataError(f"k must be from 1 to {MAX_K}, got {k}.")
        if coverage is not None and not 0 < coverage < 1:
            raise DataError(f"coverage must lie strictly between 0 and 1, got {coverage}. Try 0.95.")
        if coverage_for not in get_args(CoverageFor):
            raise DataError(f"coverage_for must be one of {', '.join(get_args(CoverageFor))}, got {coverage_for!r}.")
        if not self.size:
            raise DataError("This collection holds no items, so there is nothing to search. Index some rows first.")
        if not len(queries):
            return []
        scores, rows = self.engine.search(queries, TOP_K)
        codes = self.gallery.codes_of(rows)
        unlabelled = rows[codes >= len(self.gallery.names)]  # named by their id wherever they stand
        items = self._store.get({*rows[:, :k].ravel().tolist(), *unlabelled.tolist()})
        found = respond.Found(queries, scores, rows, codes, items, self.gallery)
        reason = self.uncalibrated()
        if reason is not None or self.calibration is None:
            told = [warning for warning in self.warnings if warning not in (reason or "")]
            return respond.without_probabilities(found, k, reason or "", told)
        warnings = [*self.warnings, *recall_warning(self.engine), *self.calibration.warnings]
        exact: Literal["all", "top", "no"] = "no" if not self.engine.exact else "all" if self.size <= TOP_K else "top"
        return respond.with_probabilities(found, k, self.calibration, name, coverage, coverage_for, exact, warnings)

    def _checked(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        queries = np.asarray(vectors, np.float32)
        expected = self.encoder.dimension
        if queries.ndim != 2 or queries.shape[1] != expected:
            raise DataError(
                f"A query vector has shape {queries.shape[1:]}, expected ({expected},): this collection's encoder "
                f"({self.model_id}) makes {expected} dimensions."
            )
        norms = np.linalg.norm(queries, axis=1)
        if not np.isfinite(queries).all() or (np.abs(norms - 1) > 1e-3).any():
            raise DataError(
                "A query vector is not finite or not of norm 1. Send vectors as this collection's encoder makes them."
            )
        return queries

    def describe(self) -> dict[str, Any]:
        """What is served: counts, encoder, snapshot, and what the calibration rests on."""
        calibration = self.calibration
        return {
            "name": self.name,
            "items": self.size,
            "labels": self.gallery.label_count,
            "encoder": {
                "name": self._config.get("encoder_name"),
                "id": self.model_id,
                "dim": self.encoder.dimension,
                "modality": self.encoder.modality,
            },
            "engine": self.engine.kind,
            "search": self.engine.describe(),
            "snapshot": self.snapshot_id,
            "created": self._config.get("created"),
            "calibrated": self.uncalibrated() is None,
            "reason": self.uncalibrated(),
            "calibration": calibration.report if calibration else None,
            "warnings": [*self.warnings, *(calibration.warnings if calibration else [])],
        }


def _read_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG
    if not file.is_file():
        raise CollectionError(
            f"{path}: not a collection (it has no {CONFIG}). Build one with: surematch index MODEL DATA --out {path}"
        )
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        newer = int(config["format"]) > FORMAT
        if not (isinstance(config["name"], str) and isinstance(config["encoder"], str)):
            raise ValueError("name or encoder is no text")
        if not isinstance(config["dimension"], int) or config["dimension"] < 1:
            raise ValueError(f"dimension is {config['dimension']!r}")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CollectionError(f"{file}: not readable ({error}). Restore it from a backup, or build again.") from error
    if newer:
        raise CollectionError(f"{file}: written by a newer surematch (format {config['format']}). Upgrade to open it.")
    return config


def _load_state(
    path: Path, config: dict[str, Any], store: ItemStore
) -> tuple[Engine, Gallery, Calibration | None, str, list[str]]:
    snapshot, warnings = read_snapshot(path / SNAPSHOTS)
    if snapshot is not None and snapshot.manifest.get("encoder") != config["encoder"]:
        warnings.append(f"Snapshot {snapshot.name} was made with another encoder and is not used.")
        snapshot = None
    calibration = None
    if snapshot is not None and CALIBRATION in snapshot.files:
        try:
            calibration = Calibration.from_json(json.loads(snapshot.files[CALIBRATION]))
        except CalibrationError as error:
            warnings.append(str(error))
    if snapshot is not None and snapshot.sequence == store.sequence:
        labels = store.labels()
        rows = np.array(sorted(labels), np.int64)
        try:
            engine = engine_class(str(snapshot.manifest.get("engine"))).load(snapshot.files)
            if engine.dimension != config["dimension"] or not np.array_equal(engine.rows, rows):
                raise CollectionError(f"Snapshot {snapshot.name} does not index the items of {store.path}.")
            gallery = Gallery.of(rows, [labels[int(row)] for row in rows], snapshot.files.get(PROFILE, b""))
            return engine, gallery, calibration, snapshot.name, warnings
        except CollectionError as error:
            warnings.append(f"{error} The index was rebuilt from the items.")
    if snapshot is None:
        warnings.append("No intact snapshot: the index was rebuilt from the items, and serves without probabilities.")
    rows, names, vectors = store.vectors()
    return (
        FaissFlat.build(vectors, rows),
        Gallery.of(rows, names, vectors),
        calibration,
        f"rebuilt-{store.sequence}",
        warnings,
    )
