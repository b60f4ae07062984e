"""`surematch recalibrate` and `surematch calibrations`."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from index.collection import Collection, NewItem
from index.errors import CalibrationError
from index.verbs import cli_calibrations, cli_items
from tests.index.conftest import write_csv
from tests.index.feedback import give
from tests.index.helpers import sentences


def test_the_verbs(live: Collection, capsys: pytest.CaptureFixture[str]) -> None:
    give(live)
    own = str(live.state.calibration_id)
    live.close()
    assert cli_calibrations.recalibrate([str(live.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["replaced"] == own
    assert told["change"]["after"]["ece"] < 0.2
    assert cli_calibrations.calibrations([str(live.path)]) == 0
    said = capsys.readouterr().out
    assert own in said
    assert told["id"] in said
    assert cli_calibrations.calibrations([str(live.path), "--use", own]) == 0
    capsys.readouterr()
    assert cli_calibrations.calibrations([str(live.path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["in_use"] == own
    assert [entry["id"] for entry in listed["calibrations"]] == [own, told["id"]]
    assert cli_calibrations.recalibrate([str(live.path), "--no-feedback"]) == 0
    assert "fitted again" in capsys.readouterr().out


def test_the_verbs_compact_nothing_by_the_way(
    live: Collection, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.upkeep.compaction.COMPACT_LEAST", 10)
    compacted: list[Any] = []
    monkeypatch.setattr(Collection, "snapshot", lambda *arguments: compacted.append(arguments))
    give(live)
    own, snapshot_id, path = str(live.state.calibration_id), live.snapshot_id, str(live.path)
    live.close()
    more = write_csv(tmp_path / "more.csv", sentences(20, ["card"], 9))
    assert cli_items.add([path, str(more), "--label", "label"]) == 0
    assert "Compaction is due: surematch compact" in " ".join(capsys.readouterr().out.split())
    assert cli_calibrations.recalibrate([path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["replaced"], told["snapshot"]) == (own, snapshot_id)
    assert cli_items.delete([path, "--where", '{"$label": "card"}', "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compaction_due"]
    assert cli_items.delete([path, "items.csv:70"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Without probabilities: " in said
    assert "Compaction is due: surematch compact" in said
    with pytest.raises(CalibrationError, match="not put in use"):
        cli_calibrations.calibrations([path, "--use", own])
    with closing(Collection.open(Path(path))) as reader:
        assert (reader.snapshot_id, reader.state.calibration_id) == (snapshot_id, told["id"])
    assert not compacted


def test_the_list_marks_what_does_not_fit_any_more_and_says_why_there_is_no_probability(
    live: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    live.maintenance.close()
    own, fits = str(live.state.calibration_id), live.recalibrate(feedback=False).id
    path, mark = str(live.path), "does not fit the items as they are now"
    assert live.stale_calibrations() == {}
    assert cli_calibrations.calibrations([path]) == 0
    assert mark not in capsys.readouterr().out
    live.upsert([NewItem(f"m{at}", "music", text) for at, (text, _) in enumerate(sentences(20, ["music"], 8))])
    reason = str(live.uncalibrated())
    assert cli_calibrations.calibrations([path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["in_use"], told["reason"], told["stale"]) == (fits, reason, [own, fits])
    assert cli_calibrations.calibrations([path]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(mark) == 2
    assert f"Without probabilities: {reason}" in said
    live.snapshot()
    assert live.state.calibration_id not in live.stale_calibrations()
    assert set(live.stale_calibrations()) == {own, fits}


def test_the_verb_says_what_it_left_out(live: Collection, capsys: pytest.CaptureFixture[str]) -> None:
    give(live)
    gone = next(label for label in live._store.feedback().labels if label is not None)
    live.delete_where({"$label": gone})
    path = live.path
    live.close()
    assert cli_calibrations.recalibrate([str(path)]) == 0
    assert "carry a label that is not in the gallery" in " ".join(capsys.readouterr().out.split())
