"""Every calibration a collection has had, kept beside its snapshots, and which of them was chosen.

    calibrations/<id>-<digest>.json    two lines: what it is (`Version`), and the calibration itself
    calibrations/CURRENT               {"snapshot": ..., "calibration": id}: the choice made under that snapshot

An id is the digest of the calibration's own bytes, so the one inside a snapshot has it too. The choice holds for the
snapshot it was made under: a compaction fits anew, and what it fits is served. Files are written beside their place,
fsynced and renamed; their name carries the SHA-256 of all their bytes, or where a key is set their signature
(`index.signing`), which is checked before any is believed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from index import signing
from index.calibrate import Calibration
from index.errors import CalibrationError, CollectionError, NotFound
from index.snapshot import make_folder, replace_durably, storing

CALIBRATIONS = "calibrations"
KEPT = 20
"""Versions that are kept; of more the oldest go, never the one in use."""
_CURRENT = "CURRENT"
_ID, _DIGEST = 12, 16


@dataclass(frozen=True, slots=True)
class Version:
    """One calibration: when it was made, under which snapshot and write, and why: "build or compaction", "feedback" or
    "refit". `change` is what it changed, see `index.recalibrate`."""

    id: str
    made: str
    cause: str
    snapshot: str
    sequence: int
    queries: dict[str, Any] = field(default_factory=dict)
    ece: float | None = None
    change: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        calibration: Calibration,
        id: str,
        made: str,
        cause: str,
        snapshot: str,
        sequence: int,
        change: dict[str, Any] | None,
    ) -> Version:
        """With what the calibration's own report says."""
        report = calibration.report
        return cls(id, made, cause, snapshot, sequence, report.get("queries", {}), report.get("ece"), change)


def dump(calibration: Calibration) -> bytes:
    """A calibration's bytes, in snapshots and here."""
    return json.dumps(calibration.to_json(), allow_nan=False).encode()


def id_of(content: bytes) -> str:
    """The id of the calibration with these bytes."""
    return hashlib.sha256(content).hexdigest()[:_ID]


class Versions:
    """The calibrations of one collection. One process writes, any number read."""

    def __init__(self, collection: Path) -> None:
        self.folder = collection / CALIBRATIONS

    def listed(self) -> tuple[list[Version], list[str]]:
        """Oldest first, and what is wrong with files that are damaged."""
        found, faults = [], []
        for path in self._files():
            try:
                about, _ = _read(path)
                found.append(Version(**about))
            except (CollectionError, TypeError) as error:
                faults.append(str(error))
        return sorted(found, key=lambda version: (version.made, version.id)), faults

    def load(self, id: str) -> Calibration:
        """Raises `NotFound` for an unknown id, `CollectionError` for damage, `CalibrationError` for an old form."""
        for path in self._files():
            if path.name.partition("-")[0] == id:
                return Calibration.from_json(json.loads(_read(path)[1]))
        raise NotFound(f"{self.folder}: has no calibration {id[:40]!r}. `surematch calibrations` lists them.")

    def keep(self, about: Version, content: bytes) -> None:
        """Adds a version, unless it is there. Raises `DiskFull` or another `CollectionError`; nothing is left then."""
        if any(path.name.startswith(f"{about.id}-") for path in self._files()):
            return
        whole = json.dumps(asdict(about), allow_nan=False).encode() + b"\n" + content
        digest = signing.seal(whole)[:_DIGEST]
        with storing(self.folder, "calibration"):
            make_folder(self.folder)
            replace_durably(self.folder / f"{about.id}-{digest}.json", whole)

    def prune(self, used: set[str | None]) -> None:
        """Removes the oldest beyond `KEPT`, and what is damaged; those `used` stay."""
        versions, _ = self.listed()
        kept = {version.id for version in versions[-KEPT:]} | used
        with storing(self.folder, "calibration"):
            for path in self._files():
                if path.name.partition("-")[0] not in kept:
                    path.unlink()

    def choose(self, snapshot: str, id: str) -> None:
        """Makes the version `id` the one that is served with this snapshot. Raises as `keep` does."""
        content = json.dumps({"snapshot": snapshot, "calibration": id}).encode()
        with storing(self.folder, "choice of a calibration"):
            make_folder(self.folder)
            replace_durably(self.folder / _CURRENT, content)

    def chosen(self, snapshot: str) -> str | None:
        """The id chosen under this snapshot; None: the snapshot's own."""
        try:
            told = json.loads((self.folder / _CURRENT).read_bytes())
            return str(told["calibration"]) if told["snapshot"] == snapshot else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def clean(self) -> None:
        """Removes what a killed writer left half written. For the writer only."""
        with storing(self.folder, "calibrations"):
            for path in self.folder.glob(".*"):
                path.unlink()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{'?' * _ID}-{'?' * _DIGEST}.json"))


def copy(source: Path, target: Path) -> None:
    """Copies the calibrations of the collection `source` to the folder of another, while they may be added to.

    The choice goes first: what it names was written before it, and is never pruned.
    """
    if (source / CALIBRATIONS).is_dir():
        (target / CALIBRATIONS).mkdir(exist_ok=True)
        for path in (source / CALIBRATIONS / _CURRENT, *Versions(source)._files()):
            with suppress(FileNotFoundError):  # no choice was made; pruned meanwhile
                shutil.copy2(path, target / CALIBRATIONS / path.name)


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """What a file says of its calibration, and the calibration's bytes, verified. Raises `CollectionError`."""
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise CollectionError(f"{path}: cannot be read ({error.strerror}).") from error
    head, _, content = whole.partition(b"\n")
    id, _, digest = path.stem.partition("-")
    if signing.seal(whole)[:_DIGEST] != digest or id_of(content) != id:
        raise CollectionError(f"{path}: is damaged: it does not match the digest in its name. Remove it.")
    about: dict[str, Any] = json.loads(head)
    return about, content


def chosen_calibration(versions: Versions, snapshot: str) -> tuple[Calibration | None, str | None, list[str]]:
    """The calibration chosen under a snapshot with its id, or (None, None); and what is wrong with it."""
    id = versions.chosen(snapshot)
    if id is None:
        return None, None, []
    try:
        return versions.load(id), id, []
    except (CollectionError, CalibrationError) as error:
        return None, None, [f"{error} The snapshot's own calibration serves in its place."]
