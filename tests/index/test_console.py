"""Progress: a bar for who looks on, a file for who waits, and then no bar."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from index.verbs import console


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


@pytest.mark.parametrize(
    ("probability", "said"),
    [
        (0.0, "0.0%"),
        (1e-6, "<0.1%"),
        (0.001, "0.1%"),
        (0.5, "50.0%"),
        (0.999, "99.9%"),
        (0.99996, ">99.9%"),
        (1.0, "100.0%"),
    ],
)
def test_what_is_not_certain_never_reads_so(probability: float, said: str) -> None:
    assert console.in_percent(probability) == said
    assert console.bar(probability).endswith(f" {said:>6}")
