"""CHANGELOG.md names verbs and flags that exist: people paste from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.cli import SUMMARIES, main

TEXT = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


@pytest.fixture
def flags(capsys: pytest.CaptureFixture[str]) -> dict[str, set[str]]:
    """Those of each verb, by its help."""
    found = {}
    for verb in SUMMARIES:
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        found[verb] = set(FLAG.findall(capsys.readouterr().out))
    return found


def test_verbs_and_flags_exist(flags: dict[str, set[str]]) -> None:
    assert not set(FLAG.findall(TEXT)) - set().union(*flags.values())
    for command in re.findall(r"`surematch ([^`]+)`", TEXT):
        verb = command.split()[0]
        assert set(FLAG.findall(command)) <= flags[verb], command
