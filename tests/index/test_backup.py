"""Back-ups of a live collection, and the verbs that keep one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import backup as module
from index.backup import copy_collection
from index.build import build_collection
from index.collection import Collection, NewItem
from index.errors import CollectionError, Damaged, DataError, DiskFull, SettingsError
from index.items.store import Item, ItemStore
from index.verbs import cli_items
from tests.index.conftest import World, write_csv
from tests.index.helpers import unit


def quiet(what: str, done: int, of: int) -> None: ...


def contents(opened: Collection) -> dict[str, Any]:
    now = opened._store.everything()
    items = opened._store.get(now.born.tolist())
    return {
        items[row].id: (items[row].label, items[row].text, vector.tobytes())
        for row, vector in zip(now.born.tolist(), now.vectors, strict=True)
    }


def test_a_copy_made_while_it_is_written_to_is_one_of_its_states(copied: Path, tmp_path: Path) -> None:
    opened = Collection.open(copied, writable=True)
    states = {opened.sequence: contents(opened)}
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            opened.upsert([NewItem(f"w{number % 7}", "card", None, unit(1, 16, seed=number)[0])])
            states[opened.sequence] = contents(opened)
            if number % 3 == 0:
                opened.delete([f"w{(number + 3) % 7}"])
                states[opened.sequence] = contents(opened)
            if number % 5 == 0:
                opened.snapshot()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            acknowledged = opened.sequence
            copied_state = copy_collection(copied, tmp_path / f"copy-{number}", quiet)
            assert copied_state.sequence >= acknowledged
            copy = Collection.open(tmp_path / f"copy-{number}", writable=True)
            assert copy.warnings == []
            assert copy.calibration is not None
            while copy.sequence not in states:
                pass
            assert contents(copy) == states[copy.sequence]
            assert np.array_equal(copy.gallery.rows, copy._store.everything().born)
            copy.upsert([NewItem("of the copy", "card", "bank")])
            copy.close()
    finally:
        stop.set()
        writer.join()
    assert opened.item("of the copy") is None
    opened.close()
    assert not [entry for entry in tmp_path.iterdir() if "copying" in entry.name]


def test_a_damaged_backup_is_not_restored(copied: Path, tmp_path: Path) -> None:
    file = next(iter(sorted((copied / "snapshots").glob("0*/vectors*"))))
    file.write_bytes(file.read_bytes()[:-1] + b"#")
    with pytest.raises(Damaged, match="surematch compact"):
        copy_collection(copied, tmp_path / "restored", quiet)
    assert not (tmp_path / "restored").exists()
    assert {entry.name for entry in tmp_path.iterdir()} == {"topics"}


def test_a_backup_with_a_torn_item_page_is_not_restored(copied: Path, tmp_path: Path) -> None:
    with (copied / "items.sqlite").open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(b"\xff" * 4096)
    with pytest.raises(Damaged, match=rf"{copied}/items\.sqlite: .*malformed.*an older back-up") as raised:
        copy_collection(copied, tmp_path / "restored", quiet)
    assert "restore it" not in str(raised.value)
    assert {entry.name for entry in tmp_path.iterdir()} == {"topics"}


@pytest.mark.parametrize(
    "damage",
    [
        "vector = CAST(substr(vector, 1, 15) || x'01' || substr(vector, 17) AS BLOB)",
        "vector = CAST(vector AS TEXT)",
        "vector = 5",
        "label = CAST(label AS BLOB)",
        "vector = substr(vector, 1, 12)",
        "label = 'travel'",
        "label = CAST(x'ff' AS TEXT)",
    ],
)
@pytest.mark.parametrize("row", [1, 5], ids=["which opening looks at", "which opening does not read"])
def test_a_damaged_item_is_named_and_not_copied(copied: Path, tmp_path: Path, damage: str, row: int) -> None:
    damage_items(copied, f"UPDATE items SET {damage} WHERE row = {row}")
    said = rf"{copied}/items\.sqlite: the vector or the label of 'items\.csv:{row + 1}' \(row {row}\) is not what was"
    with pytest.raises(Damaged, match=said) as raised:
        copy_collection(copied, tmp_path / "copy", quiet)
    assert "an older back-up" in str(raised.value)
    assert "copying" not in str(raised.value)
    assert {entry.name for entry in tmp_path.iterdir()} == {"topics"}


def test_a_damaged_item_that_was_deleted_is_no_fault_of_a_copy(copied: Path, tmp_path: Path) -> None:
    damage_items(copied, "UPDATE items SET vector = substr(vector, 1, 12) WHERE row = 5")
    opened = Collection.open(copied, writable=True)
    opened.delete(["items.csv:6"])
    opened.close()
    assert copy_collection(copied, tmp_path / "copy", quiet).items == 179


def test_of_many_damaged_items_some_are_named(copied: Path, tmp_path: Path) -> None:
    damage_items(copied, "UPDATE items SET vector = substr(vector, 1, 12)")
    with pytest.raises(Damaged, match=r"'items\.csv:11' \(row 10\).*written\. 170 more items are damaged") as raised:
        copy_collection(copied, tmp_path / "copy", quiet)
    assert "items.csv:12'" not in str(raised.value)


def test_a_check_holds_no_more_than_a_row_of_the_items(tmp_path: Path) -> None:
    with closing(ItemStore(tmp_path / "items.sqlite", 256)) as store:
        store.upsert([Item(f"i{at}", "a", None, vector) for at, vector in enumerate(unit(4_000, 256))])
        tracemalloc.start()
        assert store.check() == []
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 2**20, "the vectors alone have 4 MB"


def damage_items(collection: Path, statement: str) -> None:
    with closing(sqlite3.connect(collection / "items.sqlite")) as connection:
        connection.execute(statement)
        connection.commit()


def test_a_full_disk_leaves_nothing_of_a_copy(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.shutil, "copytree", full)
    with pytest.raises(DiskFull, match="Nothing was left there"):
        copy_collection(copied, tmp_path / "copy", quiet)
    assert {entry.name for entry in tmp_path.iterdir()} == {"topics"}


@pytest.mark.parametrize("content", [b"\0\0\0", b"../../elsewhere", b""], ids=["NUL", "a path", "nothing"])
def test_a_copy_does_without_the_name_of_the_snapshot(copied: Path, tmp_path: Path, content: bytes) -> None:
    """As whoever opens the collection does: the newest intact snapshot is found by looking."""
    (copied / "snapshots" / "CURRENT").write_bytes(content)
    assert copy_collection(copied, tmp_path / "copy", quiet).calibrated
    with pytest.raises(SettingsError, match="lies in the collection that it would be a copy of"):
        copy_collection(copied, copied / "copy", quiet)
    assert not (copied / "copy").exists()


def test_a_copy_replaces_nothing(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(SettingsError, match="already exists"):
        copy_collection(copied, tmp_path / "there", quiet)
    with pytest.raises(CollectionError, match="not a collection"):
        copy_collection(tmp_path / "there", tmp_path / "copy", quiet)


def told(verb: str, capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert getattr(cli_items, verb)([str(word) for word in words] + ["--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_verbs_end_to_end(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("my bank card", "card", "a"), ("lemon soup", "food", "b"), ("hotel seat", "travel", "c")]
    data = write_csv(tmp_path / "new.csv", rows, ("text", "label", "sku"))
    added = told("add", capsys, copied, data, "--label", "label", "--id", "sku")
    assert (added["written"], added["replaced"], added["items"], added["calibrated"]) == (3, 0, 183, True)
    assert told("add", capsys, copied, data, "--label", "label", "--id", "sku")["replaced"] == 3
    twice = write_csv(tmp_path / "twice.csv", [*rows, ("my card", "card", "a")], ("text", "label", "sku"))
    with pytest.raises(DataError, match=r"twice\.csv: line 5: the id 'a' was already used at .*twice\.csv line 2"):
        cli_items.add([str(copied), str(twice), "--label", "label", "--id", "sku"])
    told("backup", capsys, copied, tmp_path / "copy")
    gone = told("delete", capsys, copied, "a", "nobody")
    assert (gone["deleted"], gone["items"]) == (1, 182)
    assert told("delete", capsys, copied, "--where", '{"$label": "food"}')["deleted"] == 61
    compacted = told("compact", capsys, copied)
    assert compacted["snapshot"] == (copied / "snapshots" / "CURRENT").read_text().strip()
    assert compacted["erased"]["sequence"] >= gone["sequence"]
    shutil.rmtree(copied)
    assert told("restore", capsys, tmp_path / "copy", copied)["items"] == 183
    opened = Collection.open(copied)
    assert opened.search(["lemon soup"])[0].hits[0].id == "b"
    opened.close()
    for verb in ("add", "delete", "compact", "backup", "restore"):
        words = {"add": [copied, data, "--label", "label"], "delete": [copied, "b"], "compact": [copied]}.get(verb)
        words = words or [copied, tmp_path / f"for people-{verb}"]
        capsys.readouterr()
        assert getattr(cli_items, verb)([str(word) for word in words]) == 0
        assert capsys.readouterr().out.strip()


def test_a_write_that_ends_the_probabilities_says_so(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.upkeep.maintenance.Maintenance.poke", lambda *_: None)
    data = write_csv(tmp_path / "new.csv", [("my bank card", "card")], ("text", "label"))
    more = write_csv(tmp_path / "more.csv", [("the storm", "weather")], ("text", "label"))
    gone = json.dumps({"$label": "weather"})
    for verb, words, ends in (("add", [data], False), ("add", [more], True), ("delete", ["--where", gone], False)):
        label = ["--label", "label"] if verb == "add" else []
        assert getattr(cli_items, verb)([str(copied), *map(str, words), *label]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert ("Without probabilities: The calibration was made for a gallery of 3 labels" in said) == ends, said
    assert cli_items.delete([str(copied), "--where", '{"$label": "food"}']) == 0
    assert "Without probabilities:" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Name the items to delete"),
        (["a", "--where", "{}"], "named twice: give their ids, or --where FILTER, not both"),
        (["--where", "{"], "cannot be read as JSON"),
        (["--where", "[]"], "expected an object"),
        (["--where", "null"], "expected an object"),
        (["--where", '{"price": {"gte": 3}, "price": {"lt": 5}}'], "'price' stands twice"),
    ],
)
def test_delete_wants_ids_or_a_filter(copied: Path, words: list[str], said: str) -> None:
    with pytest.raises((SettingsError, DataError), match=said):
        cli_items.delete([str(copied), *words])


def test_ids_that_nothing_has_are_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_items.delete([str(copied), "items.csv:2", "nobody"]) == 0
    assert "1 item deleted." in (said := " ".join(capsys.readouterr().out.split()))
    assert "No item has the id 'nobody'." in said
    assert told("delete", capsys, copied, "items.csv:3", "items.csv:2")["missing"] == ["items.csv:2"]


def test_a_file_of_the_same_name_replaces_nothing_unasked(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv(tmp_path / "items.csv", [("something else", "card")])
    with pytest.raises(DataError, match=r"line 2: would replace the item 'items.csv:2'.*--replace"):
        cli_items.add([str(copied), str(data), "--label", "label"])
    assert told("add", capsys, copied, data, "--label", "label", "--replace")["replaced"] == 1
    assert told("add", capsys, copied, data, "--label", "label")["written"] == 1


def labels(path: Path, *ids: str) -> list[str | None]:
    with closing(Collection.open(path)) as opened:
        return [item.label for item in map(opened.item, ids) if item is not None]


def test_what_a_killed_copy_left_is_swept_by_the_next_and_what_another_copies_is_not(
    copied: Path, tmp_path: Path
) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from index.backup import copy_collection
def at(what, done, of):
    if done == 2:
        print("there", flush=True)
        sys.stdin.readline()
copy_collection(Path(sys.argv[1]), Path(sys.argv[2]), at)
"""
    place = tmp_path / "copies"
    commands = [[sys.executable, "-c", script, str(copied), str(place / name)] for name in ("monday", "tuesday")]
    killed, other = (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        for command in commands
    )
    for process in (killed, other):
        assert process.stdout
        assert process.stdout.readline() == "there\n"
    killed.kill()
    killed.communicate()
    (place / ".mine-copying-01234567" / "diary").mkdir(parents=True)
    assert len(list(place.glob(".*-copying-*"))) == 3
    copy_collection(copied, place / "wednesday", quiet)
    assert sorted(left.name.split("-")[0] for left in place.glob(".*-copying-*")) == [".mine", ".tuesday"]
    other.communicate("go on\n")
    assert sorted(left.name for left in place.iterdir()) == [".mine-copying-01234567", "tuesday", "wednesday"]


def test_a_source_that_cannot_be_read_is_named(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(source))

    monkeypatch.setattr("index.backup.shutil.copytree", refused)  # the tests may run as root, whom nothing stops
    with pytest.raises(CollectionError, match=r"topics/encoder: cannot be read \(Permission denied\)"):
        copy_collection(copied, tmp_path / "copy", quiet)
    assert not (tmp_path / "copy").exists()


def test_snapshots_that_may_not_be_read_are_not_taken_for_none(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.listdir

    def barred(path: Any) -> Any:
        if Path(path) == copied / "snapshots":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return before(path)

    (copied / "snapshots" / "CURRENT").unlink()  # as it looks to whom nothing there is shown
    monkeypatch.setattr(os, "listdir", barred)
    with pytest.raises(CollectionError, match=r"topics/snapshots: cannot be read \(Permission denied\)"):
        copy_collection(copied, tmp_path / "copy", quiet)
    assert not (tmp_path / "copy").exists()


def test_items_lose_no_label_unasked(
    copied: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv(tmp_path / "new.csv", [("my bank card", "card"), ("lemon soup", "food")])
    with pytest.raises(SettingsError, match=r"--label: name the column of .*new\.csv.* With --label '' the items"):
        cli_items.add([str(copied), str(data)])
    assert labels(copied, "new.csv:2") == []
    shutil.rmtree(copied)
    build_collection(str(world.encoder), world.rows(world.items), copied, label_column="label")
    # what counts is how it was indexed
    (copied / "encoder" / "training.json").write_text('{"settings": {"label": "intent"}}')
    assert told("add", capsys, copied, data)["items"] == 182
    assert labels(copied, "new.csv:2", "new.csv:3") == ["card", "food"]
    other = write_csv(tmp_path / "other.csv", [("my bank card", "card")], ("text", "intent"))
    with pytest.raises(DataError, match=r"other\.csv: line 2 has no column 'label'.*--label COLUMN\. With --label ''"):
        cli_items.add([str(copied), str(data), str(other)])
    assert labels(copied, "other.csv:2") == []
    assert told("add", capsys, copied, other, "--label", "")["items"] == 183
    assert labels(copied, "other.csv:2") == [None]


@pytest.mark.parametrize("verb", ["compact", "delete"])
def test_a_collection_is_named_by_a_dot_in_its_own_folder(
    copied: Path, verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied)
    assert told(verb, capsys, ".", *(["items.csv:2"] if verb == "delete" else []))
    with pytest.raises(CollectionError, match="not a collection"):
        cli_items.delete(["/", "a"])


def test_what_is_restored_from_a_protected_back_up_can_be_written_to(copied: Path, tmp_path: Path) -> None:
    copy_collection(copied, tmp_path / "copy", quiet)
    for path in [*(tmp_path / "copy").rglob("*"), tmp_path / "copy"]:
        path.chmod(path.stat().st_mode & ~0o222)
    copy_collection(tmp_path / "copy", tmp_path / "restored", quiet)
    for path in [tmp_path / "restored", *(tmp_path / "restored").rglob("*")]:
        assert path.stat().st_mode & 0o200, path
