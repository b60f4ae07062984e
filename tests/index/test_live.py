"""A live collection: written, searched and followed, and every answer is that of the items as they are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.backup import copy_collection
from index.collection import Collection, NewItem, Receipt
from index.errors import CollectionError, Damaged, DataError, ReadOnly, WriterBusy
from index.items import gallery as gallery_module
from index.items import profile as profile_module
from index.items.gallery import Gallery
from index.items.profile import LabelProfile
from tests.index.brute_force import same_as_brute_force
from tests.index.helpers import sentences, unit, write_static


def test_what_was_written_is_found_at_once_and_after_opening_again(live: Collection) -> None:
    before = live.sequence
    receipt = live.upsert(
        [NewItem("new", "card", "my bank card chip", metadata={"a": 1}), NewItem("own", None, "soup")]
    )
    assert receipt == Receipt(before + 1, written=2)
    assert live.sequence == receipt.sequence
    answer = live.search(["my bank card chip"])[0]
    assert (answer.hits[0].id, answer.hits[0].metadata) == ("new", {"a": 1})
    assert answer.hits[0].score == pytest.approx(1, abs=1e-6)
    live.close()
    with_reader = Collection.open(live.path)
    assert with_reader.search(["my bank card chip"])[0].hits == answer.hits
    assert with_reader.size == 182
    with_reader.close()


def test_items_and_ids_may_come_from_a_generator(live: Collection) -> None:
    size = live.size
    assert live.upsert(NewItem(f"g{at}", "card", "bank card") for at in range(3)).written == 3
    assert live.size == size + 3
    assert live.delete(f"g{at}" for at in range(3)).deleted == 3
    with pytest.raises(DataError, match="An id to delete is a int"):
        live.delete([5])  # type: ignore[list-item]


@pytest.mark.parametrize("left", [None, b""], ids=["missing", "empty"])
def test_lost_items_are_a_loss_not_an_empty_collection(copied: Path, tmp_path: Path, left: bytes | None) -> None:
    """SQLite would make an empty file in their place, and everything after would take it for the truth."""
    items = copied / "items.sqlite"
    items.unlink()
    if left is not None:
        items.write_bytes(left)
    for use in (
        lambda: Collection.open(copied),
        lambda: Collection.open(copied, writable=True),
        lambda: copy_collection(copied, tmp_path / "copy", lambda what, done, of: None),
    ):
        with pytest.raises(Damaged, match=r"the items are missing.*Restore the file from a backup"):
            use()
    assert (items.read_bytes() if items.exists() else None) == left
    assert not (tmp_path / "copy").exists()


def test_a_word_is_no_list_and_nothing_is_no_filter(live: Collection) -> None:
    """The letters of an id or a text, and a filter that is true of everything, are never what was meant."""
    before = live.size
    with pytest.raises(DataError, match="delete takes a list of ids"):
        live.delete("sku")
    with pytest.raises(DataError, match="search takes a list of texts"):
        live.search("lamp")
    with pytest.raises(DataError, match="upsert takes a list of items, got a NewItem"):
        live.upsert(NewItem("a", "card", "bank"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="delete takes a list of ids"):
        live.delete(None)  # type: ignore[arg-type]
    for nothing in ({}, {"and": []}, {"not": {"or": []}}, {"or": [{}, {"a": 1}]}):
        with pytest.raises(DataError, match="empty filter"):
            live.delete_where(nothing)
    with pytest.raises(DataError, match="complex"):
        live.search_vectors(np.full((1, live.encoder.dimension), 1j))
    with pytest.raises(DataError, match="An item's id is a string, got a list"):
        live.item(["a"])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="The label of feedback is a int"):
        live.feedback(live.encoder.encode(["card"])[0], 5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="The label of feedback is empty"):
        live.feedback(live.encoder.encode(["card"])[0], "")
    assert live.size == before


def test_replaced_and_deleted_items_are_not_found(live: Collection) -> None:
    live.upsert([NewItem("x", "card", "bank card chip")])
    receipt = live.upsert([NewItem("x", "food", "lemon soup bread"), NewItem("y", "food", "cheese")])
    assert (receipt.written, receipt.replaced) == (2, 1)
    hits = live.search(["bank card chip", "lemon soup bread"], k=100)
    assert "x" not in [hit.id for hit in hits[0].hits if hit.score > 0.999]
    assert hits[1].hits[0].id == "x"
    assert live.delete(["x", "nobody"]).deleted == 1
    assert "x" not in [hit.id for answer in live.search(["lemon soup bread"], k=100) for hit in answer.hits]
    assert live.item("x") is None
    found = live.item("y", vector=True)
    assert found is not None
    np.testing.assert_allclose(found.vector, live.encoder.encode(["cheese"])[0], atol=1e-7)
    assert live.item("y").vector.size == 0  # type: ignore[union-attr]
    assert live.item("\ud800") is None


@pytest.mark.parametrize("small", [0, 2000], ids=["profile label by label", "profile whole"])
def test_any_sequence_of_writes_equals_brute_force(
    live: Collection, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(gallery_module, "SMALL", small)
    random = np.random.default_rng(5)
    queries = unit(30, 16, seed=9)
    ids = [item.id for item in live._store.get(live.gallery.rows.tolist()).values()]
    for step in range(12):
        if step % 3 == 2:
            gone = random.choice(ids, 25, replace=False).tolist()
            live.delete(gone)
            ids = [name for name in ids if name not in gone]
        else:
            names = [f"{step}-{at}" for at in range(20)] + random.choice(ids, 5, replace=False).tolist()
            labels = random.choice(["card", "food", f"new-{step}"], len(names)).tolist()
            vectors = unit(len(names), 16, seed=step)
            live.upsert([NewItem(*parts) for parts in zip(names, labels, [None] * 25, vectors, strict=True)])
            ids = list(dict.fromkeys([*ids, *names]))
        same_as_brute_force(live, queries)
        if step == 8:
            live.snapshot()
            same_as_brute_force(live, queries)
    now = live._store.everything()
    whole = Gallery.of(now.born, now.labels, now.vectors)
    here = live.gallery
    order = [here.names.index(name) for name in whole.names]
    assert sorted(here.names) == whole.names
    np.testing.assert_allclose(here.profile.centroids[order], whole.profile.centroids, atol=1e-6)
    # label by label, only the mean over all labels is that of the last compaction
    profile = LabelProfile.of(now.vectors, whole.codes, len(whole.names), neutral=here.profile.neutral)
    np.testing.assert_allclose(here.profile.cohesion[order], profile.cohesion, atol=1e-9)
    assert here.profile.neutral == pytest.approx(whole.profile.neutral, abs=0.1 if small == 0 else 1e-9)
    np.testing.assert_array_equal(here.profile.sizes[order], whole.profile.sizes)


@pytest.mark.parametrize("small", [0, 185, 2000])
def test_who_follows_many_writes_at_once_says_what_the_writer_says(
    live: Collection, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    """Also where labels have more items than are compared with each other, and where a small gallery grows large."""
    monkeypatch.setattr(gallery_module, "SMALL", small)
    monkeypatch.setattr(profile_module, "_SAMPLE", 20)
    reader = Collection.open(live.path)
    for seed, labels in enumerate((["card", "food"], ["food"]), 70):
        written = sentences(2, labels, seed)
        live.upsert([NewItem(f"{seed}-{at}", label, text) for at, (text, label) in enumerate(written)])
    reader.refresh()
    asked = [text for text, _ in sentences(20, seed=90)]
    assert live.uncalibrated() is None
    assert reader.search(asked) == live.search(asked)
    reader.close()


def test_a_label_too_large_to_follow_waits_for_compaction(live: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_module, "SMALL", 0)
    monkeypatch.setattr(gallery_module, "LARGE", 50)
    card = live.gallery.names.index("card")
    before = live.gallery.profile
    live.upsert([NewItem("v", "card", None, unit(1, 16)[0])])
    np.testing.assert_array_equal(live.gallery.profile.centroids[card], before.centroids[card])
    assert live.gallery.profile.sizes[card] == before.sizes[card] + 1
    live.snapshot()
    assert np.abs(live.gallery.profile.centroids[card] - before.centroids[card]).max() > 1e-4


def test_deleting_almost_everything_near_a_query_still_finds_the_rest(live: Collection) -> None:
    everything = live.search(["bank card"], k=100)[0].hits
    live.delete([hit.id for hit in everything])
    same_as_brute_force(live, live.encoder.encode(["bank card"]), k=100)
    assert not {hit.id for hit in live.search(["bank card"], k=100)[0].hits} & {hit.id for hit in everything}


def test_a_state_once_taken_does_not_change(live: Collection) -> None:
    state, queries = live.state, unit(3, 16)
    before = state.search(queries, 50)
    live.upsert([NewItem("n", "card", None, queries[0])])
    live.delete([live._store.get([int(before[1][1, 0])])[int(before[1][1, 0])].id])
    live.snapshot()
    after = state.search(queries, 50)
    np.testing.assert_array_equal(before[1], after[1])
    np.testing.assert_array_equal(before[0], after[0])
    assert live.state.search(queries[:1], 1)[0][0, 0] == pytest.approx(1)


def test_nothing_of_a_deleted_item_stays_in_memory(live: Collection) -> None:
    """What answers have shown is held by the state they come from, and goes with it."""
    shown = live.search(["bank card"], k=5)[0].hits[0]
    rows, held = set(live.gallery.rows.tolist()), live.state.read
    assert shown.id in [id for id, *_ in held.of(rows, 0).values()]
    live.delete([shown.id])
    assert live.state.read is not held
    live.search(["bank card"], k=5)
    of_others = [id for id, *_ in live.state.read.of(rows, 0).values()]
    assert len(of_others) == 5
    assert shown.id not in of_others


def test_an_answer_begun_before_an_erasure_comes_from_a_newer_state(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "my bank card chip"
    live.upsert([NewItem("x", "card", text)])
    real, calls = live._store.get, []

    def erased_meanwhile(*asked: Any) -> Any:
        if not calls:
            calls.append(1)
            live.delete(["x"])
            live.snapshot()
        return real(*asked)

    monkeypatch.setattr(live._store, "get", erased_meanwhile)
    hits = live.search([text], k=100)[0].hits
    assert len(hits) == 100
    assert "x" not in [hit.id for hit in hits]


def test_a_reader_follows_another_processs_writes_and_snapshots(live: Collection) -> None:
    reader = Collection.open(live.path)
    assert not reader.refresh()
    live.upsert([NewItem("new", "card", "my bank card chip")])
    assert "new" not in [hit.id for hit in reader.search(["my bank card chip"])[0].hits]
    assert reader.refresh()
    assert reader.search(["my bank card chip"])[0].hits[0].id == "new"
    assert reader.sequence == live.sequence
    live.delete(["new"])
    name = live.snapshot()
    # not refreshed: the item it still knows is erased, so the answer comes from a newer state
    assert "new" not in [hit.id for hit in reader.search(["my bank card chip"])[0].hits]
    assert reader.sequence == live.sequence
    assert reader.refresh()
    assert (reader.snapshot_id, reader.state.pending) == (name, 0)
    assert not reader.refresh()
    reader.close()


def test_a_reader_does_not_write(built: Path) -> None:
    reader = Collection.open(built)
    for write in (
        lambda: reader.upsert([NewItem("x", "card", "bank")]),
        lambda: reader.delete(["x"]),
        lambda: reader.snapshot(),
    ):
        with pytest.raises(ReadOnly, match="open for reading only"):
            write()
    reader.close()


def test_a_closed_collection_says_that_it_is_closed(copied: Path) -> None:
    closed = Collection.open(copied, writable=True)
    closed.close()
    assert not closed.writable
    for use in (
        lambda: closed.upsert([NewItem("x", "card", "bank")]),
        lambda: closed.delete(["x"]),
        lambda: closed.recalibrate(feedback=False),
    ):
        with pytest.raises(CollectionError, match=r"was closed\. Open the collection again\.$"):
            use()


def test_one_writer_at_a_time_and_the_next_when_it_is_gone(live: Collection) -> None:
    with pytest.raises(WriterBusy, match=r"process \d+ is writing"):
        Collection.open(live.path, writable=True)
    live.close()
    script = (
        "import sys; from pathlib import Path; from index.collection import Collection\n"
        "Collection.open(Path(sys.argv[1]), writable=True); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(live.path)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(WriterBusy, match=f"process {other.pid} is writing"):
        Collection.open(live.path, writable=True)
    other.kill()
    other.communicate()
    Collection.open(live.path, writable=True).close()


BAD = {
    "nothing to encode": (NewItem("bad", "card"), "no text, no image and no vector"),
    "an empty text": (NewItem("bad", "card", " "), "no text, no image and no vector"),
    "an image": (NewItem("bad", "card", image=b"x"), "encoder reads texts"),
    "wrong dimension": (NewItem("bad", "card", None, unit(1, 15)[0]), r"'bad': a vector of shape \(15,\)"),
    "NaN": (NewItem("bad", "card", None, np.full(16, np.nan, np.float32)), "'bad': the vector is not finite"),
    "zero": (NewItem("bad", "card", None, np.zeros(16, np.float32)), "'bad': .* norm 1"),
    "twice": (NewItem("good", "card", "bank"), "'good' stands twice"),
    "10 kB id": (NewItem("x" * 10_000, "card", "bank"), "of 10000. Choose"),
    "a number as id": (NewItem(7, "card", "bank"), "Item 2: the id is a int"),  # type: ignore[arg-type]
    "a number as label": (NewItem("bad", 5, "bank"), "Item 2: the label is a int, expected a string or None"),  # type: ignore[arg-type]
    "a number as text": (NewItem("bad", "card", 5), "Item 2: the text is a int"),  # type: ignore[arg-type]
    "a name of a picture": (NewItem("bad", "card", image="x.png"), "Item 2: the image is a str"),  # type: ignore[arg-type]
    "a word as vector": (NewItem("bad", None, None, "abc"), "'bad': the vector is no array of numbers"),  # type: ignore[arg-type]
    "deep metadata": (
        NewItem("bad", None, "bank", metadata={"a": json.loads("[" * 70 + "]" * 70)}),
        "more than 64 deep",
    ),
    "an empty label": (NewItem("bad", "", "bank"), "'bad': the label is empty"),
    "numbers as names": (NewItem("bad", None, "bank", metadata={"a": [{1: "x", "1": "y"}]}), "name 1 is not a string"),
    "a number as name": (NewItem("bad", None, "bank", metadata={1: "x"}), "name 1 is not a string"),  # type: ignore[dict-item]
    "a label with NUL": (NewItem("bad", "a\0b", "bank"), "'bad': the label has 3 characters, or NUL among them"),
    "a label no filter names": (NewItem("bad", "x" * 4097, "bank"), "the label has 4,097 characters"),
    "no metadata": (NewItem("bad", "card", "bank", metadata=None), "Item 2: the metadata is a NoneType"),  # type: ignore[arg-type]
    "no item": ("bank", "Item 2: is a str, expected a NewItem"),
    "metadata": (NewItem("bad", "card", "bank", metadata={"a": {1, 2}}), "'bad': the metadata is not JSON"),
    "half a character": (NewItem("bad", "card", "\ud800"), "'bad': .*surrogate"),
}


@pytest.mark.parametrize(("bad", "said"), BAD.values(), ids=BAD)
def test_a_bad_item_refuses_the_batch_and_the_old_state_is_served(live: Collection, bad: NewItem, said: str) -> None:
    before = live.state
    with pytest.raises(DataError, match=said):
        live.upsert([NewItem("good", "card", "bank"), bad])
    assert live.state is before
    assert live.item("good") is None


def test_an_encoder_swapped_under_a_writer_lets_the_lock_go(copied: Path) -> None:
    shutil.rmtree(copied / "encoder")
    write_static(copied / "encoder", seed=99)
    for _ in range(2):
        with pytest.raises(CollectionError, match="is not the one"):
            Collection.open(copied, writable=True)


def test_a_collection_can_be_emptied_and_filled_again(live: Collection) -> None:
    live.delete([item.id for item in live._store.get(live.gallery.rows.tolist()).values()])
    with pytest.raises(DataError, match="holds no items"):
        live.search(["bank"])
    live.snapshot()
    live.upsert([NewItem("a", "card", "bank"), NewItem("b", None, "soup")])
    assert live.search(["bank"])[0].hits[0].id == "a"
    assert (live.size, live.gallery.label_count) == (2, 2)
    live.snapshot()
    assert live.search(["soup"])[0].hits[0].id == "b"


def test_a_write_to_a_folder_that_was_replaced_is_refused(copied: Path, tmp_path: Path) -> None:
    """By hand, in a hurry: the old one is moved away and a back-up put in its place, while it is open."""
    opened = Collection.open(copied, writable=True)
    opened.upsert([NewItem("kept", "card", "bank card")])
    copied.rename(tmp_path / "away")
    with pytest.raises(CollectionError, match=r"moved, removed or replaced.*nothing was written"):
        opened.upsert([NewItem("lost", "card", "bank card")])
    shutil.copytree(tmp_path / "away", copied)
    with pytest.raises(CollectionError, match="nothing was written"):
        opened.upsert([NewItem("lost", "card", "bank card")])
    opened.close()
    again = Collection.open(copied, writable=True)
    assert again.item("kept") is not None
    assert again.item("lost") is None
    again.close()


def test_a_reader_does_not_follow_into_another_collection(copied: Path, tmp_path: Path) -> None:
    """Its items are those of the folder it opened; snapshots of another would not fit them."""
    reader = Collection.open(copied)
    before = reader.search(["bank card"])[0]
    other = shutil.copytree(copied, tmp_path / "other")
    writer = Collection.open(other, writable=True)
    writer.upsert([NewItem("new", "card", "bank card")])
    writer.snapshot()
    writer.close()
    copied.rename(tmp_path / "away")
    other.rename(copied)
    with pytest.raises(CollectionError, match="not followed"):
        reader.refresh()
    assert reader.search(["bank card"])[0] == before
    assert not reader.warnings
    reader.close()
