"""What is shown in a terminal is what is there: names, labels and texts of all kinds, and commands to paste."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from index.cli import index, search
from index.cli_items import delete
from index.collection import Collection
from index.new_items import NewItem
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


def test_commands_to_paste_are_never_broken(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = tmp_path / "a name that is longer" / "than the line of a terminal"
    assert index([str(world.encoder), str(world.items), "--out", str(out), "--label", "label"]) == 0
    asked, served = capsys.readouterr().out.splitlines()[-2:]
    assert shlex.split(asked.partition(": ")[2]) == ["surematch", "search", str(out), "..."]
    assert shlex.split(served.partition(": ")[2]) == ["surematch", "serve", str(out)]
