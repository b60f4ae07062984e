"""Progress: a bar for who looks on, a file for who waits, and then no bar."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from index import console


@pytest.mark.parametrize("noted", [False, True])
def test_a_bar_or_a_file(
    noted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUREMATCH_PROGRESS", str(tmp_path / "progress.json") if noted else "")
    with console.progress() as report:
        report("encoding", 3, 4)
    assert ("encoding" in capsys.readouterr().err) is not noted
    if noted:
        assert json.loads((tmp_path / "progress.json").read_text()) == {"what": "encoding", "done": 3, "of": 4}
