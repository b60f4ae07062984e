"""What is shown in a terminal is what is there: names, labels and texts of all kinds, and commands to paste."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from index.collection import Collection
from index.items.new_items import NewItem
from index.verbs.cli import index, search
from index.verbs.cli_items import delete
from tests.index.conftest import World


def with_item(collection: Path, id: str, label: str, text: str) -> str:
    opened = Collection.open(collection, writable=True)
    opened.upsert([NewItem(id, label, text)])
    opened.recalibrate(feedback=False)  # there may be more labels now
    opened.close()
    return text


@pytest.mark.parametrize("name", ["ns:x:card", "ns:o:y\\", "[/]", "[bold]card[/bold]"])
def test_names_are_shown_as_they_are(
    name: str, copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = with_item(copied, f"id {name}", name, f"my card {name}")
    assert search([str(copied), text, "--explain", "--coverage", "0.9"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"\n{text}\n")
    assert next(line.split() for line in shown.splitlines() if "1.000" in line)[-4:] == [name, "my", "card", name]
    assert f"id {name} " in shown  # in the explanation


def test_a_command_to_paste_holds_no_emoji(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied.rename(copied.with_name("c:x:d"))
    assert delete([str(path), with_item(path, "urn:x:9", "card", "my card"), "urn:x:9"]) == 0
    shown = capsys.readouterr().out
    assert f"surematch compact {path}`" in shown


@pytest.mark.parametrize("acts", ["\x1b[31m", "\x1b]0;title\x07", "\x9b2J", "\b", "\r", "\x7f", "\u202e", "\u2066"])
def test_what_a_terminal_would_obey_is_shown(
    acts: str, copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = with_item(copied, f"id{acts}1", f"label{acts}1", f"my card {acts}1")
    shown = json.dumps(acts)[1:-1]
    assert search([str(copied), text, "--explain", "--coverage", "0.9"]) == 0
    words = capsys.readouterr().out
    assert acts[0] not in words
    assert all(f"{part}{shown}1" in words for part in ("id", "label", "my card "))
    assert delete([str(copied), f"none{acts}", f"id{acts}1"]) == 0
    assert acts[0] not in capsys.readouterr().out
    assert search([str(copied), text, "--json"]) == 0
    written = capsys.readouterr().out
    assert acts[0] not in written
    assert json.loads(written)["answers"][0]["text"] == text


def test_commands_to_paste_are_never_broken(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = tmp_path / "a name that is longer" / "than the line of a terminal"
    assert index([str(world.encoder), str(world.items), "--out", str(out), "--label", "label"]) == 0
    asked, served = capsys.readouterr().out.splitlines()[-2:]
    assert shlex.split(asked.partition(": ")[2]) == ["surematch", "search", str(out), "..."]
    assert shlex.split(served.partition(": ")[2]) == ["surematch", "serve", str(out)]
