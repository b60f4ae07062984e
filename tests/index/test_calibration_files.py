"""The files of calibrations survive full disks, kills, backups and what may not be read; old ones go."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from index.backup import copy_collection
from index.collection import Collection
from index.errors import DiskFull, ReadOnly
from index.storage import snapshot, versions
from tests.index.feedback import answers, give


def test_what_is_fitted_again_is_kept_where_it_lies_damaged(live: Collection) -> None:
    """An id is the calibration's own, so what is fitted on the same queries again has that of the damaged one."""
    own, version = live.state.calibration_id, live.recalibrate(feedback=False)
    live.use_calibration(str(own))
    (file,) = (live.path / "calibrations").glob(f"{version.id}-*.json")
    file.write_bytes(file.read_bytes()[:-1])
    assert live.recalibrate(feedback=False).id == version.id
    reader = Collection.open(live.path)
    assert (reader.warnings, reader.state.calibration_id) == ([], version.id)
    assert len(list((live.path / "calibrations").glob(f"{version.id}-*.json"))) == 1
    reader.close()


def test_a_compaction_that_could_not_keep_its_calibration_is_refused(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, whom permissions do not stop."""
    give(live)
    version = live.recalibrate()
    live.delete(["items.csv:3"])
    before, folder = live.state, live.path / "calibrations"
    with monkeypatch.context() as patch:
        patch.setattr(versions.os, "access", lambda path, mode: path != folder)
        with pytest.raises(ReadOnly, match=r"calibrations: cannot be written to.*Nothing was compacted"):
            live.snapshot()
    assert live.state is before
    assert live.state.calibration_id == version.id
    live.snapshot()
    assert live.state.calibration_id in {entry.id for entry in live._calibrations.versions.listed()[0]} - {version.id}


def test_what_was_deleted_is_erased_though_the_calibration_cannot_be_kept(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(live)
    live.recalibrate()
    sequence = live.delete(["items.csv:3"]).sequence

    def refuse(*arguments: Any) -> None:
        raise ReadOnly("not now")

    monkeypatch.setattr(live._calibrations.versions, "prune", refuse)
    with pytest.raises(ReadOnly, match="not now"):
        live.snapshot()
    assert live.describe()["erased"]["sequence"] >= sequence


def test_a_backup_made_while_the_first_choice_is_made_is_of_before_it_or_after(
    live: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.snapshot()  # now there are calibrations, and no choice
    give(live)
    own, real, chosen = live.state.calibration_id, shutil.copy2, list[str]()

    def slow(source: Path, target: Path) -> Any:
        try:
            return real(source, target)
        except FileNotFoundError:
            chosen.append(live.recalibrate().id)
            raise

    monkeypatch.setattr(versions.shutil, "copy2", slow)
    copy_collection(live.path, tmp_path / "copy", lambda *_: None)
    assert len(chosen) == 1
    opened = Collection.open(tmp_path / "copy")
    assert (opened.warnings, opened.state.calibration_id) == ([], own)
    opened.close()


def test_a_reader_cannot_choose(collection: Collection) -> None:
    for write in (collection.recalibrate, lambda: collection.use_calibration("x")):
        with pytest.raises(ReadOnly):
            write()


@pytest.mark.parametrize("step", ["_write_durably", "_sync"])
@pytest.mark.parametrize("nth", range(8))
def test_a_full_disk_at_any_step_leaves_a_whole_calibration(
    live: Collection, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    give(live)
    before = answers(live)
    real, count = getattr(snapshot, step), iter(range(99))

    def full(*arguments: Any) -> None:
        if next(count) == nth:
            raise OSError(errno.ENOSPC, "no room")
        real(*arguments)

    monkeypatch.setattr(snapshot, step, full)
    try:
        live.recalibrate()
    except DiskFull:
        assert answers(live) == before
    monkeypatch.undo()
    reader = Collection.open(live.path)
    found = answers(reader)
    assert not reader.warnings
    reader.close()
    live.recalibrate()
    assert found in (before, answers(live))


def test_old_versions_go_but_never_the_one_in_use(live: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "KEPT", 2)
    own = str(live.state.calibration_id)
    give(live)
    for at in range(3):
        give(live, known=2, unknown=2, seed=80 + at)
        live.recalibrate()
        live.use_calibration(own)
    listed = [entry.id for entry in live.calibrations()]
    assert own in listed
    assert len(listed) == 3
    assert len(list((live.path / "calibrations").glob("*.json"))) == 3


def test_a_backup_carries_the_versions_and_the_choice(live: Collection, tmp_path: Path) -> None:
    give(live)
    version = live.recalibrate()
    copy_collection(live.path, tmp_path / "copy", lambda *_: None)
    opened = Collection.open(tmp_path / "copy")
    assert opened.state.calibration_id == version.id
    assert [entry.id for entry in opened.calibrations()] == [entry.id for entry in live.calibrations()]
    opened.close()


def test_a_killed_writer_leaves_a_whole_calibration(copied: Path, tmp_path: Path) -> None:
    """kill -9 at every durable step of a recalibration: old or new, never a mixture, never a warning."""
    opened = Collection.open(copied, writable=True)
    give(opened)
    before = answers(opened)
    opened.close()
    seen = set()
    for nth in range(0, 12, 2):
        path = Path(shutil.copytree(copied, tmp_path / f"killed-{nth}"))
        code = (
            "import os, signal, sys; from pathlib import Path; from index.storage import snapshot\n"
            "from index.collection import Collection\n"
            "real, left = snapshot._sync, [int(sys.argv[2])]\n"
            "def dying(folder):\n"
            "    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    left[0] -= 1; real(folder)\n"
            "opened = Collection.open(Path(sys.argv[1]), writable=True)\n"
            "snapshot._sync = dying; opened.recalibrate(); print('done')\n"
        )
        subprocess.run([sys.executable, "-c", code, str(path), str(nth)], check=False, capture_output=True)
        reader = Collection.open(path)
        assert not reader.warnings
        seen.add(answers(reader) == before)
        reader.close()
        again = Collection.open(path, writable=True)
        assert not list((path / "calibrations").glob(".*"))
        again.close()
    assert seen == {True, False}
