"""Calibrations have versions to choose and to go back to; a choice that is damaged, lost or altered is told of."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from index.backup import copy_collection
from index.collection import Collection, NewItem
from index.errors import CalibrationError, CollectionError, NotFound
from index.verbs import cli_calibrations
from tests.index.feedback import answers, damage, give
from tests.index.helpers import sentences


def test_a_reader_follows_the_way_back_to_what_it_served_before_a_compaction(live: Collection) -> None:
    give(live)
    reader = Collection.open(live.path)
    version = live.recalibrate()
    reader.refresh()
    live.delete(["items.csv:3"])
    live.snapshot()
    reader.refresh()
    assert reader.state.calibration_id == live.state.calibration_id != version.id
    live.use_calibration(version.id)
    reader.refresh()
    assert (reader.state.calibration_id, reader.warnings) == (version.id, [])
    reader.close()


def test_rolling_back_restores_every_answer_and_forward_again(live: Collection) -> None:
    give(live)
    before, own = answers(live), str(live.state.calibration_id)
    version = live.recalibrate()
    after = answers(live)
    live.use_calibration(own)
    assert answers(live) == before
    live.use_calibration(version.id)
    assert answers(live) == after


def test_a_reader_elsewhere_follows_the_choice(live: Collection) -> None:
    reader = Collection.open(live.path)
    give(live)
    own = str(live.state.calibration_id)
    live.recalibrate()
    reader.refresh()
    assert answers(reader) == answers(live)
    assert reader.refresh() is False
    live.use_calibration(own)
    assert reader.refresh() is True
    assert (answers(reader), reader.state.calibration_id) == (answers(live), own)
    reader.close()


def test_a_choice_holds_for_the_copy_that_stands_in_for_its_snapshot(live: Collection) -> None:
    own = str(live.state.calibration_id)
    live.delete(["items.csv:3"])
    live.snapshot()
    give(live)
    version = live.recalibrate()
    before = answers(live)
    file = damage(live.path)
    with closing(Collection.open(live.path)) as reader:
        (warning,) = reader.warnings
        assert warning.startswith(str(file))
        assert (reader.state.calibration_id, answers(reader)) == (version.id, before)
        reader.refresh()
        assert (reader.state.calibration_id, reader.warnings) == (version.id, [warning])
    live.use_calibration(own)
    live.snapshot()
    with closing(Collection.open(live.path)) as reader:
        assert reader.state.calibration_id == live.state.calibration_id != own


def test_where_an_older_snapshot_serves_the_choice_made_under_the_newer_one_is_told_of(live: Collection) -> None:
    live.upsert([NewItem("new", "card", "my bank card chip")])
    live.snapshot()
    give(live)
    version = live.recalibrate()
    path = live.path
    live.close()
    damage(path)
    with closing(Collection.open(path, writable=True)) as opened:
        assert opened.state.calibration_id != version.id
        assert f"does not serve, and calibration {version.id} was chosen with it" in opened.warnings[1]
        opened.refresh()
        assert len(opened.warnings) == 2
        opened.use_calibration(version.id)
        assert len(opened.warnings) == 1
        opened.snapshot()
        assert opened.warnings == []


def test_a_choice_of_an_earlier_build_is_followed(live: Collection) -> None:
    give(live)
    told = live.recalibrate().queries["feedback"]
    current = live.path / "calibrations" / "CURRENT"
    current.write_text(json.dumps({key: json.loads(current.read_text())[key] for key in ("snapshot", "calibration")}))
    live.snapshot()
    assert live.calibration is not None
    assert live.calibration.report["queries"]["feedback"] == told


def test_an_unknown_id_and_one_that_no_longer_fits_are_refused(live: Collection) -> None:
    with pytest.raises(NotFound, match="'nobody'"):
        live.use_calibration("nobody")
    own = str(live.state.calibration_id)
    live.upsert([NewItem(f"n{at}", "card", text) for at, (text, _) in enumerate(sentences(300, ["card"], 9))])
    live.snapshot()
    with pytest.raises(CalibrationError, match=r"180 items.*not put in use"):
        live.use_calibration(own)
    assert live.state.calibration_id != own


@pytest.mark.parametrize("place", [0.001, 0.5, 0.999])
def test_a_damaged_choice_gives_way_to_the_snapshots_own_and_says_so(live: Collection, place: float) -> None:
    give(live)
    before = answers(live)
    version = live.recalibrate()
    live.close()
    (file,) = (live.path / "calibrations").glob(f"{version.id}-*.json")
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)
    reader = Collection.open(live.path)
    assert any("damaged" in warning and "own calibration" in warning for warning in reader.warnings)
    assert answers(reader) == before
    assert version.id not in [entry.id for entry in reader.calibrations()]
    reader.close()


def test_a_damaged_choice_that_was_repaired_is_served_without_opening_it_again(live: Collection) -> None:
    give(live)
    following = Collection.open(live.path)
    version = live.recalibrate()
    chosen = answers(live)
    (file,) = (live.path / "calibrations").glob(f"{version.id}-*.json")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    opened = Collection.open(live.path)
    for reader in (opened, following):
        assert [reader.refresh() for _ in range(3)] == [False] * 3
        (warning,) = reader.warnings
        assert "is damaged" in warning
        state = reader.state
        reader.refresh()
        assert reader.state is state
    file.write_bytes(content)
    for reader in (opened, following):
        assert reader.refresh()
        assert (reader.warnings, reader.state.calibration_id, answers(reader)) == ([], version.id, chosen)
        reader.close()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"snapshot": "x"}', b'{"snapshot": 3, "calibration": "y"}']
)
def test_a_choice_that_says_nothing_is_told_of_until_one_is_made(live: Collection, content: bytes) -> None:
    give(live)
    before = answers(live)
    version = live.recalibrate()
    (live.path / "calibrations" / "CURRENT").write_bytes(content)
    reader = Collection.open(live.path)
    assert answers(reader) == before
    (warning,) = reader.warnings
    assert f"{live.path}/calibrations/CURRENT: is damaged" in warning
    assert f"surematch calibrations {live.path} --use ID" in warning
    assert warning.endswith("The snapshot's own calibration serves in its place.")
    assert warning in reader.search(["my card"])[0].warnings
    assert warning in reader.describe()["warnings"]
    reader.refresh()
    assert reader.warnings == [warning]
    live.use_calibration(version.id)
    assert reader.refresh()
    assert (reader.warnings, reader.state.calibration_id) == ([], version.id)
    reader.close()


def test_a_choice_that_may_not_be_read_is_told_of_while_that_lasts(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, whom permissions do not stop."""
    give(live)
    before = answers(live)
    version = live.recalibrate()
    real, following = Path.read_bytes, Collection.open(live.path)

    def refuse(path: Path) -> bytes:
        if path == live.path / "calibrations" / "CURRENT":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        opened = Collection.open(live.path)
        for _ in range(2):
            following.refresh()
            opened.refresh()
        (warning,) = opened.warnings
        assert "CURRENT: cannot be read (Permission denied), so which calibration was chosen is not known" in warning
        (warning,) = following.warnings
        assert warning.endswith("The calibration that was in use goes on serving.")
        assert answers(opened) == before
        assert following.state.calibration_id == version.id
    for reader in (opened, following):
        reader.refresh()
        assert (reader.warnings, reader.state.calibration_id) == ([], version.id)
        reader.close()


def test_calibrations_that_cannot_be_listed_are_not_taken_for_none(
    live: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(live)
    live.recalibrate()
    real = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == "calibrations":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    reader = Collection.open(live.path)
    assert any("calibrations: cannot be read (Permission denied)" in warning for warning in reader.warnings)
    for use in (reader.calibrations, lambda: copy_collection(live.path, tmp_path / "copy", lambda *_: None)):
        with pytest.raises(CollectionError, match=r"calibrations: cannot be read \(Permission denied\)"):
            use()
    reader.close()


def test_the_choice_of_another_collection_is_told_of(live: Collection) -> None:
    live.recalibrate(feedback=False)
    live.close()
    current = live.path / "calibrations" / "CURRENT"
    told = json.loads(current.read_text()) | {"snapshot": "000000000009-12345678", "calibration": "0123456789ab"}
    current.write_text(json.dumps(told))
    reader = Collection.open(live.path)
    assert any("names a calibration that is not here" in said and "--use ID" in said for said in reader.warnings)
    reader.close()


def test_a_choice_that_was_lost_is_told_of_until_a_compaction(
    live: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    give(live)
    version = live.recalibrate()
    (live.path / "calibrations" / "CURRENT").unlink()
    assert cli_calibrations.calibrations([str(live.path)]) == 0
    said = capsys.readouterr().out
    assert f"CURRENT: is missing, though calibration {version.id} was fitted since the last compaction" in said
    live.snapshot()
    reader = Collection.open(live.path)
    assert reader.warnings == [], "what a compaction fits is served without a choice"
    reader.close()


def test_a_compaction_removes_a_damaged_choice(live: Collection) -> None:
    give(live)
    live.recalibrate()
    (live.path / "calibrations" / "CURRENT").write_bytes(b"#")
    live.snapshot()
    reader = Collection.open(live.path)
    assert reader.warnings == []
    reader.close()
