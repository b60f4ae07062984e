"""The item store: all or nothing, immutable rows, and nothing acknowledged is ever lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.data.rows import text_key
from index.errors import CollectionError, Damaged, DataError
from index.items.filters import Filter
from index.items.read_items import ReadItems
from index.items.store import MAX_ID_BYTES, NO_CONTENT, Item, ItemStore, KeptQueries
from tests.index.helpers import unit

D = 4
VECTORS = unit(64, D)


def item(name: str, at: int = 0, **values: Any) -> Item:
    return Item(**{"id": name, "label": "a", "text": name, "vector": VECTORS[at], **values})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ItemStore]:
    found = ItemStore(tmp_path / "items.sqlite", D)
    yield found
    found.close()


def everything(store: ItemStore) -> dict[str, tuple[str | None, str | None, dict[str, Any]]]:
    rows = store.vectors()[0].tolist()
    return {found.id: (found.label, found.text, found.metadata) for found in store.get(rows).values()}


def test_written_items_come_back(store: ItemStore) -> None:
    written = [item("x", 0, metadata={"n": [1, None, "é\u2028"]}), item("y", 1, label=None, text=None)]
    assert (store.sequence, len(store)) == (0, 0)
    assert store.upsert(written) == (store.sequence, 0) == (1, 0)
    rows, labels, vectors = store.vectors()
    assert labels == ["a", None]
    np.testing.assert_array_equal(vectors, VECTORS[:2])
    assert store.labels() == dict(zip(rows.tolist(), labels, strict=True))
    assert everything(store) == {"x": ("a", "x", {"n": [1, None, "é\u2028"]}), "y": (None, None, {})}


def test_replacing_makes_a_new_row_and_keeps_the_old_number_unused(store: ItemStore) -> None:
    store.upsert([item("x", 0), item("y", 1)])
    before = store.vectors()[0]
    store.upsert([item("x", 2, label="b")])
    rows, labels, vectors = store.vectors()
    assert rows[-1] > before.max()
    assert store.get([before[0]])[int(before[0])].label == "a", "whoever found the old row still finds its item"
    assert (labels, len(store)) == (["a", "b"], 2)
    np.testing.assert_array_equal(vectors[1], VECTORS[2])


def test_what_was_read_is_not_read_again(store: ItemStore) -> None:
    store.upsert([item("x", 0, metadata={"n": [1]}), item("y", 1), item("z", 2)])
    x, y, z = store.vectors()[0].tolist()
    read = ReadItems()
    first = store.get([x, y], read)
    first[x].metadata["n"].append(2)  # what a caller does with an answer is no other caller's affair
    with closing(sqlite3.connect(store.path)) as behind, behind:
        behind.execute("UPDATE items SET text = 'other'")
    again = store.get([y, x, z], read)
    assert {row: (found.text, found.metadata) for row, found in again.items()} == {
        x: ("x", {"n": [1]}),
        y: ("y", {}),
        z: ("other", {}),
    }
    assert store.get([x])[x].text == "other"


def test_no_more_is_held_of_what_was_read_than_allowed(store: ItemStore) -> None:
    store.upsert([item("x", 0, text="x" * 400), item("y", 1, text="y" * 400), item("z", 2, text="\U0001f600" * 500)])
    x, y, z = store.vectors()[0].tolist()
    read = ReadItems(limit=1000)  # bytes: the last text has fewer characters
    store.get([x], read)
    assert set(read.of({x, y, z}, 0)) == {x}
    store.get([y], read)
    assert set(read.of({x, y, z}, 0)) == {y}, "the first made room for the second"
    assert store.get([z], read)[z].text == "\U0001f600" * 500
    assert set(read.of({x, y, z}, 0)) == {y}, "what is larger than all room is not held"


def test_what_was_purged_is_not_remembered(store: ItemStore) -> None:
    store.upsert([item("x", 0), item("y", 1)])
    x, y = store.vectors()[0].tolist()
    read = ReadItems()
    assert set(store.get([x, y], read)) == {x, y}
    store.delete(["x"])
    assert set(store.get([x, y], read)) == {x, y}, "dead, but there still"
    store.purge(store.sequence)
    assert set(store.get([x, y], read)) == {y}


def test_what_was_read_before_a_purge_is_not_kept_after_it(store: ItemStore) -> None:
    """A thread that was slow: another one has seen the purge meanwhile."""
    store.upsert([item("x", 0), item("y", 1)])
    x, y = store.vectors()[0].tolist()
    slow = store.get([x])
    read = ReadItems()
    before = store.purged
    store.delete(["x"])
    store.purge(store.sequence)
    assert set(store.get([x, y], read)) == {y}
    read.keep({x: [slow[x].id, None, "secret", "{}"]}, before)
    assert set(store.get([x, y], read)) == {y}
    assert not read.of({y}, before), "nor does who knows of no purge get what others have read since"


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({}, 0),
        ({"text": "other"}, 1),
        ({"label": None}, 1),
        ({"metadata": {"a": 1.5}}, 1),
        ({"moved": 1e-7}, 0),
        ({"moved": 1e-4}, 1),
    ],
)
def test_what_stands_there_already_keeps_its_row(store: ItemStore, change: dict[str, Any], rows: int) -> None:
    vector = unit(1, 4)[0]
    first = Item("a", "x", "some text", vector, {"a": 1})
    store.upsert([first])
    before, moved = store.everything(), change.pop("moved", 0.0)
    sequence, replaced = store.upsert([replace(first, vector=vector + np.float32(moved), **change)])
    changes = store.changes(before.sequence)
    assert changes is not None
    assert (sequence, replaced) == (before.sequence + 1, 1)
    assert (len(changes.born), len(changes.died)) == (rows, rows)


def test_delete_counts_what_existed_and_never_reuses_rows(store: ItemStore) -> None:
    store.upsert([item("x"), item("y")])
    last = int(store.vectors()[0].max())
    assert store.delete(["y", "nobody"]) == (2, 1)
    assert store.delete(["y"]) == (3, 0)
    store.upsert([item("z")])
    assert int(store.vectors()[0].max()) > last
    assert set(everything(store)) == {"x", "z"}


BAD = {
    "wrong dimension": ({"vector": unit(1, D + 1)[0]}, "shape"),
    "a matrix": ({"vector": unit(2, D)}, "shape"),
    "NaN": ({"vector": np.array([np.nan, 0, 0, 1], np.float32)}, "not finite"),
    "infinity": ({"vector": np.array([np.inf, 0, 0, 0], np.float32)}, "not finite"),
    "zero": ({"vector": np.zeros(D, np.float32)}, "norm 1"),
    "norm two": ({"vector": 2 * VECTORS[0]}, "norm 1"),
    "empty id": ({"id": ""}, "1 to 512 bytes"),
    "long id": ({"id": "é" * (MAX_ID_BYTES // 2 + 1)}, "1 to 512 bytes"),
    "NUL in id": ({"id": "a\0b"}, "no NUL"),
    "half character in id": ({"id": "\ud800"}, "id holds half"),
    "half character in label": ({"label": "\ud800"}, "label holds half"),
    "half character in text": ({"text": "\udfff"}, "text holds half"),
    "half character in metadata": ({"metadata": {"a": ["\ud800"]}}, "metadata holds half"),
    "NUL in metadata": ({"metadata": {"a": [{"b": "\\\0"}]}}, "metadata holds NUL"),
    "NUL in a name of metadata": ({"metadata": {"a\0": 1}}, "metadata holds NUL"),
    "NaN in metadata": ({"metadata": {"a": float("nan")}}, "not JSON"),
    "bytes in metadata": ({"metadata": {"a": b"x"}}, "not JSON"),
}


@pytest.mark.parametrize(("values", "said"), BAD.values(), ids=BAD)
def test_a_bad_item_refuses_the_whole_batch(store: ItemStore, values: dict[str, Any], said: str) -> None:
    store.upsert([item("kept")])
    with pytest.raises(DataError, match=said):
        store.upsert([item("good", 1), item(values.get("id", "bad"), 2, **values)])
    assert (set(everything(store)), store.sequence) == ({"kept"}, 1)


def test_an_id_twice_in_one_batch_is_refused(store: ItemStore) -> None:
    with pytest.raises(DataError, match="'x' stands twice"):
        store.upsert([item("x"), item("y"), item("x")])
    assert len(store) == 0


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.sampled_from("abcde1\u2028é"), unique=True, max_size=4)),
        max_size=8,
    )
)
def test_the_store_behaves_like_a_dict(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    path = tmp_path_factory.mktemp("store") / "items.sqlite"
    store, model = ItemStore(path, D), dict[str, int]()
    for number, (writes, ids) in enumerate(steps):
        if writes:
            assert store.upsert([item(name, number, metadata={"n": number}) for name in ids]) == (
                number + 1,
                sum(name in model for name in ids),
            )
            model.update(dict.fromkeys(ids, number))
        else:
            assert store.delete(ids) == (number + 1, sum(model.pop(name, None) is not None for name in ids))
    store.close()
    store = ItemStore(path, D)
    assert {name: found[2]["n"] for name, found in everything(store).items()} == model
    assert (len(store), store.sequence) == (len(model), len(steps))
    store.close()


def test_a_failing_write_is_explained_and_leaves_nothing(store: ItemStore) -> None:
    store.upsert([item("x")])
    pages = sqlite3.connect(store.path).execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")  # a full disk, as SQLite sees it
    with pytest.raises(CollectionError, match=r"items\.sqlite: database or disk is full"):
        store.upsert([item(f"{number}", text="long " * 1000) for number in range(50)])
    assert (set(everything(store)), store.sequence) == ({"x"}, 1)
    store._connection.execute("PRAGMA max_page_count = 1000000")
    assert store.upsert([item("y")]) == (2, 0)


def edited(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [
        "vector = CAST(substr(vector, 1, 15) || x'01' AS BLOB)",
        "vector = substr(vector, 1, 12)",
        "label = 'b'",
        "label = NULL",
    ],
)
def test_a_damaged_row_is_named_and_never_read_into_an_index(store: ItemStore, damage: str) -> None:
    store.upsert([item("good", 0), item("bad", 1)])
    edited(store.path, f"UPDATE items SET {damage} WHERE id = 'bad'")
    for read in (store.everything, lambda: store.vectors_of([2]), lambda: store.changes(0)):
        with pytest.raises(Damaged, match=r"items\.sqlite: the vector or the label of 'bad' \(row 2\)"):
            read()
    store.upsert([item("bad", 2)])
    np.testing.assert_array_equal(store.everything().vectors, VECTORS[[0, 2]])


def test_following_reads_what_changed_and_not_the_whole_table(store: ItemStore) -> None:
    """A reader asks every second, and a writer after every write: with a million items a scan takes a second each."""
    store.upsert([item(f"{at}", at) for at in range(64)])
    store.upsert([item("more")])
    asked: list[str] = []
    with store._reader() as connection:
        connection.set_trace_callback(asked.append)
    changes = store.changes(1)
    assert changes is not None
    assert changes.born.tolist() == [65]
    read = [statement for statement in asked if statement.startswith("SELECT") and "items" in statement]
    assert len(read) == 3
    for statement in read:
        plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}"))
        assert "USING INDEX" in plan, plan
        assert "SCAN" not in plan, plan


def test_changes_are_known_beyond_an_erasure_as_long_as_the_tombstones_last(
    store: ItemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upsert([item(name, at) for at, name in enumerate("abcde")])
    for name in "abc":
        store.delete([name])  # writes 2, 3, 4
    store.purge(3)
    store.purge(4)
    for since, died in ((1, [1, 2, 3]), (2, [2, 3]), (4, [])):
        changes = store.changes(since)
        assert changes is not None
        assert sorted(changes.died.tolist()) == died
    assert store.rows_where(Filter.parse({"x": 1}), 1) is None
    monkeypatch.setattr("index.items.store.TOMBSTONES", 2)
    store.delete(["d"])
    store.purge(5)
    assert store.changes(2) is None, "the tombstones of write 3 and before are gone"
    known = store.changes(3)
    assert known is not None
    assert sorted(known.died.tolist()) == [3, 4]


def test_a_version_3_store_is_brought_up_to_date(store: ItemStore) -> None:
    store.upsert([item("x", 0), item("p", 1, text=None, content=2**63 + 5)])
    assert store.keys(np.array([1, 2, 9])).tolist() == [text_key("x"), 2**63 + 5, NO_CONTENT]
    edited(
        store.path,
        "ALTER TABLE items DROP COLUMN content",
        "ALTER TABLE feedback DROP COLUMN last_row",
        "DROP TABLE first_rows",
        "PRAGMA user_version = 3",
    )
    again = ItemStore(store.path, D)
    assert again.keys(np.array([1, 2])).tolist() == [text_key("x"), NO_CONTENT]
    again.upsert([item("x", 0), item("p", 1, text=None, content=7)])
    assert again.labels().keys() == {1, 2}, "what stands there is only told its content"
    assert again.keys(np.array([2])).tolist() == [7]
    again.upsert([item("p", 1, text=None)])
    assert again.keys(np.array([2])).tolist() == [7], "a vector alone says nothing of the content"
    again.upsert([item("p", 1, text=None, content=8)])
    assert again.labels().keys() == {1, 3}
    again.close()


def test_a_version_4_store_is_brought_up_to_date(store: ItemStore) -> None:
    store.upsert([item("x", 0), item("y", 1)])
    store.add_feedback(VECTORS[0], None)
    older = "ALTER TABLE feedback DROP COLUMN last_row", "DROP TABLE first_rows", "PRAGMA user_version = 4"
    edited(store.path, *older)
    again = ItemStore(store.path, D)
    again.upsert([item("z", 2)])
    again.add_feedback(VECTORS[1], "a")
    assert again.feedback().last_rows.tolist() == [2, 3]
    again.close()


def test_queries_and_feedback_of_labels_that_left_can_be_forgotten(store: ItemStore) -> None:
    store.upsert([item("x", 0), item("y", 1, label="b"), item("z", 2, label=None)])
    labels: list[str | None] = ["a", "b", "c", None]
    store.keep_calibration_queries(KeptQueries(labels, np.array([True, True, False, False]), VECTORS[:4]))
    for at, label in enumerate(["a", "b", None]):
        store.add_feedback(VECTORS[at], label)
    store.delete(["y"])
    store.forget_queries_of_labels_that_left()
    assert store.calibration_queries().labels == ["a", "c", None]
    assert store.feedback().labels == ["a", None]
    store.upsert([item("w", 3, label="c")])
    store.forget_queries_of_labels_that_left()
    assert store.calibration_queries().labels == ["a", "c", None]
    store.delete(["w"])
    store.forget_queries_of_labels_that_left()
    assert store.calibration_queries().labels == ["a", None], "who was unknown once was enrolled, and left"


def test_a_version_2_store_is_brought_up_to_date(store: ItemStore) -> None:
    store.upsert([item("x", 0), item("y", 1)])
    store.delete(["x"])
    store.purge(2)
    edited(
        store.path,
        "ALTER TABLE items DROP COLUMN checksum",
        "ALTER TABLE items DROP COLUMN content",
        "ALTER TABLE feedback DROP COLUMN last_row",
        "DROP TABLE first_rows",
        "ALTER TABLE state DROP COLUMN forgotten",
        "DROP TABLE tombstones",
        "PRAGMA user_version = 2",
    )
    again = ItemStore(store.path, D)
    again.upsert([item("z", 2)])
    np.testing.assert_array_equal(again.everything().vectors, VECTORS[1:3])
    assert again.changes(1) is None
    assert again.changes(2) is not None
    again.close()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    ItemStore(tmp_path / "items.sqlite", D).close()
    connection = sqlite3.connect(tmp_path / "items.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(CollectionError, match="newer surematch"):
        ItemStore(tmp_path / "items.sqlite", D)


@pytest.mark.parametrize("content", [b"not a database at all " * 99, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_store_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "items.sqlite").write_bytes(content)
    with pytest.raises(CollectionError, match=r"items\.sqlite: the item store cannot be opened"):
        ItemStore(tmp_path / "items.sqlite", D)


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a container's read-only mount; the tests may run as root, whom permissions do not stop."""
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)


def test_a_read_only_folder_is_read_and_left_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a folder?#%41"
    folder.mkdir()
    store = ItemStore(folder / "items.sqlite", D)
    store.upsert([item("x")])
    store.close()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    read_only(monkeypatch)
    store = ItemStore(folder / "items.sqlite", D)
    assert set(everything(store)) == {"x"}
    with pytest.raises(CollectionError, match="readonly"):
        store.upsert([item("y")])
    store.close()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_read_only_folder_with_unmerged_writes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ItemStore(tmp_path / "items.sqlite", D)
    writer.upsert([item("x")])
    read_only(monkeypatch)
    (tmp_path / "items.sqlite-shm").unlink()  # a copy without what leads through the log
    with pytest.raises(CollectionError, match=r"items\.sqlite-wal"):
        ItemStore(tmp_path / "items.sqlite", D)
    writer.close()


WRITER = """
import sys
from pathlib import Path
from index.items.store import Item, ItemStore
from tests.index.helpers import unit
store, vectors = ItemStore(Path(sys.argv[1]), 4), unit(64, 4)
start = store.sequence
for number in range(start, start + 100_000):
    batch = [Item(f"{number}-{at}", "a", "text " * 50, vectors[at]) for at in range(5)]
    print(store.upsert(batch)[0], flush=True)
"""


def test_kill_nine_loses_no_acknowledged_write(tmp_path: Path) -> None:
    path = tmp_path / "items.sqlite"
    acknowledged = 0
    for wanted in (1, 3, 10, 25, 40):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        assert writer.stdout is not None
        for _ in range(wanted):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in writer.stdout.read().split("\n")[:-1])])
        writer.wait()
        writer.stdout.close()
        store = ItemStore(path, D)
        assert store.sequence >= acknowledged
        assert set(everything(store)) == {f"{number}-{at}" for number in range(store.sequence) for at in range(5)}
        store.close()
