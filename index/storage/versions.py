"""Every calibration a collection has had, kept beside its snapshots, and which of them was chosen.

    calibrations/<id>-<digest>.json    two lines: what it is (`Version`), and the calibration itself
    calibrations/CURRENT               {"snapshot": ..., "stand_ins": [...], "calibration": id, "feedback": ...}: the
                                       choice made under that snapshot (of none: not made yet) and copies of it

An id is the digest of the calibration's own bytes, so the one inside a snapshot has it too. The choice holds for the
snapshot it was made under: a compaction fits anew, and what it fits is served. On which feedback, the choice says: up
to the note of that number, or on none. `CURRENT` is there before the first version that is fitted for a choice, so
where such a one is and it is not, it was lost. Files are written beside their place, fsynced and renamed; their name
carries the SHA-256 of all their bytes, or where a key is set their signature (`index.storage.signing`), which is
checked before any is believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from index.calibration.calibrate import Calibration
from index.errors import CalibrationError, CollectionError, Damaged, NotFound, ReadOnly
from index.storage import signing
from index.storage.folder import SNAPSHOTS
from index.storage.snapshot import alike, current_name, make_folder, replace_durably, storing

CALIBRATIONS = "calibrations"
KEPT = 20
"""Versions that are kept; of more the oldest go, never the one in use."""
BUILT = "build or compaction"
"""Why a snapshot's own calibration was made; the others were made to be chosen."""
_CURRENT = "CURRENT"
_ID, _DIGEST = 12, 16


@dataclass(frozen=True, slots=True)
class Version:
    """One calibration: when it was made, under which snapshot and write, and why: "build or compaction", "feedback" or
    "refit". `change` is what it changed, see `index.upkeep.recalibrate`."""

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
        self._snapshots = collection / SNAPSHOTS

    def listed(self) -> tuple[list[Version], list[str]]:
        """Oldest first, and what is wrong with files that are damaged. Raises `CollectionError` for the folder."""
        found, faults = [], []
        for path in self._files():
            try:
                about, _ = _read(path)
                found.append(Version(**about))
            except (CollectionError, TypeError) as error:
                faults.append(str(error))
        return sorted(found, key=lambda version: (version.made, version.id)), faults

    def fitted(self) -> list[Version]:
        """Those that were made to be chosen, oldest first. Raises as `listed` does."""
        return [version for version in self.listed()[0] if version.cause != BUILT]

    def load(self, id: str) -> Calibration:
        """Raises `NotFound` for an unknown id, `CollectionError` for damage, `CalibrationError` for an old form."""
        for path in self._files_of(id):
            return Calibration.from_json(json.loads(_read(path)[1]))
        raise NotFound(f"{self.folder}: has no calibration {id[:40]!r}. `surematch calibrations` lists them.")

    def keep(self, about: Version, content: bytes) -> None:
        """Adds a version, unless it is there whole. Raises `DiskFull` or another `CollectionError`; nothing is left
        then."""
        there = self._files_of(about.id)
        if any(map(_whole, there)):
            return
        whole = json.dumps(asdict(about), allow_nan=False).encode() + b"\n" + content
        path = self.folder / f"{about.id}-{signing.seal(whole)[:_DIGEST]}.json"
        with storing(self.folder, "calibration"):
            make_folder(self.folder)
            replace_durably(path, whole)
            for damaged in set(there) - {path}:
                damaged.unlink()

    def prune(self, used: set[str | None]) -> None:
        """Removes the oldest beyond `KEPT`, and what is damaged; those `used` stay, and those that another key signed.

        For after a choice or a compaction: a choice that is damaged is an older one, and goes too.
        """
        versions, _ = self.listed()
        kept = {version.id for version in versions[-KEPT:]} | used
        with storing(self.folder, "calibration"):
            for path in self._files():
                if path.name.partition("-")[0] not in kept and (_whole(path) or not _is_its_own(path)):
                    path.unlink()
            try:
                self.choice()
            except Damaged:
                (self.folder / _CURRENT).unlink()
            except CollectionError:  # it may be whole
                pass

    def sign(self) -> None:
        """Signs them as they lie: whoever signed them before, or nobody. Damaged ones stay as they are."""
        with storing(self.folder, "signature"):
            for path in filter(_is_its_own, self._files()):
                id, sealed = path.name.partition("-")[0], signing.seal(path.read_bytes())
                path.rename(self.folder / f"{id}-{sealed[:_DIGEST]}.json")

    def check_writable(self) -> None:
        """Raises `ReadOnly` where what a compaction fits could not be kept."""
        place = self.folder if self.folder.exists() else self.folder.parent
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            raise ReadOnly(
                f"{place}: cannot be written to, so the new calibration could not be kept. Nothing was compacted. "
                "Repair its permissions, then compact again."
            )

    def choose(self, snapshot: str, id: str, feedback: int | None) -> None:
        """Makes the version `id` the one that is served with this snapshot, and later ones to be fitted on `feedback`
        up to that note (None: on none). Raises as `keep` does."""
        stand_ins = alike(self._snapshots, snapshot)
        self._note({"snapshot": snapshot, "stand_ins": stand_ins, "calibration": id, "feedback": feedback})

    def _note(self, choice: dict[str, Any]) -> None:
        content = json.dumps(choice).encode()
        with storing(self.folder, "choice of a calibration"):
            make_folder(self.folder)
            replace_durably(self.folder / _CURRENT, content)

    def expect(self) -> None:
        """Notes that a choice is coming, unless one was made: from now on its loss is told. Raises as `keep` does."""
        with storing(self.folder, "choice of a calibration"):
            made = (self.folder / _CURRENT).exists()
        if not made:
            self._note({"snapshot": "", "calibration": ""})

    def chosen(self, snapshot: str) -> str | None:
        """The id chosen under this snapshot; None: the snapshot's own, or it is lost, see `check_not_lost`.

        Raises `CollectionError` when it cannot be read or is of a newer snapshot, which does not serve, `Damaged` when
        it says nothing.
        """
        choice = self.choice()
        under, id = choice.get("snapshot"), choice.get("calibration")
        if snapshot == under or snapshot in choice.get("stand_ins", ()):
            return id
        if under and under == current_name(self._snapshots):
            raise CollectionError(
                f"{self._snapshots / under}: does not serve, and calibration {id} was chosen with it."
            )
        return None

    def choice(self) -> dict[str, Any]:
        """What `CURRENT` says, nothing where there is none; earlier builds said no "feedback" and no "stand_ins".

        Raises as `chosen`.
        """
        path = self.folder / _CURRENT
        try:
            told: dict[str, Any] = json.loads(path.read_bytes())
            under, id, last = told["snapshot"], told["calibration"], told.get("feedback")
            if not (isinstance(under, str) and isinstance(id, str) and isinstance(last, int | None)):
                raise ValueError(f"{under!r}, {id!r} or {last!r} is no name or number")
            if not isinstance(told.get("stand_ins", []), list):
                raise ValueError("stand_ins is no list")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CollectionError(f"{path}: cannot be read ({error.strerror}){self._unknown(repair=True)}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Damaged(f"{path}: is damaged{self._unknown()}") from error
        return told

    def check_not_lost(self, snapshot: str) -> None:
        """Raises `Damaged` where there is no choice at all, or one of a calibration that was never here, though a
        version was fitted for one under this snapshot."""
        choice = self.choice()
        if choice and (not choice["calibration"] or self._files_of(choice["calibration"])):
            return
        under = (snapshot, current_name(self._snapshots))
        fitted = [version for version in self.fitted() if version.snapshot in under]
        if fitted and self.choice() == choice:  # else another process chose meanwhile
            what = "names a calibration that is not here" if choice else "is missing"
            raise Damaged(
                f"{self.folder / _CURRENT}: {what}, though calibration {fitted[-1].id} was fitted since the last "
                f"compaction{self._unknown()}"
            )

    def _unknown(self, *, repair: bool = False) -> str:
        first = "Repair its permissions, or choose" if repair else "Choose"
        return (
            ", so which calibration was chosen is not known. "
            f"{first} one: surematch calibrations {shlex.quote(str(self.folder.parent))} --use ID."
        )

    def clean(self) -> None:
        """Removes what a killed writer left half written. For the writer only."""
        with storing(self.folder, "calibrations"):
            for path in self.folder.glob(".*"):
                path.unlink()

    def _files_of(self, id: str) -> list[Path]:
        return [path for path in self._files() if path.name.partition("-")[0] == id]

    def _files(self) -> list[Path]:
        """Raises `CollectionError` where the folder cannot be listed; `glob` would find nothing in it."""
        try:
            found = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CollectionError(
                f"{self.folder}: cannot be read ({error.strerror}). Repair its permissions, or restore it."
            ) from error
        return [path for path in found if path.match(f"{'?' * _ID}-{'?' * _DIGEST}.json")]


def copy(source: Path, target: Path) -> None:
    """Copies the calibrations of the collection `source` to the folder of another, while they may be added to.

    The choice goes before what it names, which was written before it and is never pruned. Where none was made yet, what
    was fitted since stays behind: without its choice it would look like one whose choice was lost.
    """
    there = Versions(source)
    if there.folder.exists():
        (target / CALIBRATIONS).mkdir(exist_ok=True)
        files = there._files()
        with suppress(FileNotFoundError):  # no choice was made
            shutil.copy2(there.folder / _CURRENT, target / CALIBRATIONS / _CURRENT)
            files = there._files()
        for path in files:
            with suppress(FileNotFoundError):  # pruned meanwhile
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


def _is_its_own(path: Path) -> bool:
    """Whether a file's calibration is the one of its id, whoever signed it."""
    try:
        head, _, content = path.read_bytes().partition(b"\n")
        json.loads(head)
    except (OSError, ValueError, RecursionError):
        return False
    return id_of(content) == path.name.partition("-")[0]


def _whole(path: Path) -> bool:
    try:
        _read(path)
    except CollectionError:
        return False
    return True


def chosen_calibration(versions: Versions, snapshot: str) -> tuple[Calibration | None, str | None, list[str]]:
    """The calibration chosen under a snapshot with its id, or (None, None); and what is wrong with the choice."""
    try:
        id = versions.chosen(snapshot)
        if id is None:
            versions.check_not_lost(snapshot)
        return None if id is None else versions.load(id), id, []
    except (CollectionError, CalibrationError) as error:
        return None, None, [str(error)]
