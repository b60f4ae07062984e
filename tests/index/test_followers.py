"""Processes that follow a writer: they wait for no lock of anybody, and no erasure makes them load everything anew."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from index.collection import Collection, NewItem


def test_a_search_whose_items_were_erased_waits_for_no_lock_and_loads_no_snapshot(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, follower = Collection.open(copied, writable=True), Collection.open(copied)
    best = follower.search(["bank card chip"])[0].hits[0].id
    live.delete([best])
    live.upsert([NewItem("new", "card", "bank card chip")])
    live.snapshot()
    monkeypatch.setattr(follower._live, "_loaded", lambda: pytest.fail("a search must not load a snapshot"))
    answers: list[list[str]] = []
    with follower._live.swapping, live._live.swapping, live._store._lock:  # held here: the search has its own thread
        reader = threading.Thread(
            target=lambda: answers.append([hit.id for hit in follower.search(["bank card chip"])[0].hits]), daemon=True
        )
        reader.start()
        reader.join(20)
        assert not reader.is_alive(), "the search waits for a lock"
    assert answers[0][0] == "new"
    assert best not in answers[0]
    assert follower.search(["bank card chip"])[0].hits[0].id == "new"
    assert follower.sequence == live.sequence, "the next search starts from what this one found"
    live.close()
    follower.close()


def test_a_search_in_the_writers_process_waits_for_no_lock(copied: Path) -> None:
    live = Collection.open(copied, writable=True)
    answers: list[str] = []
    with live._live.swapping, live._store._lock, live._compacting:
        reader = threading.Thread(
            target=lambda: answers.append(live.search(["bank card chip"], filter={})[0].hits[0].id), daemon=True
        )
        reader.start()
        reader.join(20)
        assert not reader.is_alive(), "the search waits for a lock"
    assert answers
    live.close()


@pytest.fixture
def mounted(copied: Path, tmp_path: Path) -> Iterator[Path]:
    """The same collection, where nothing can be written: a container's mount."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    for options in (["--bind", str(copied), str(folder)], ["-o", "remount,ro,bind", str(folder)]):
        tried = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"nothing can be mounted here, and so nothing read-only: {tried.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def test_a_read_only_mount_follows_who_writes_to_the_folder(copied: Path, mounted: Path) -> None:
    """Opened before the writer, beside it and after it: what is deleted is not found, whoever mounts the folder how."""
    early = Collection.open(mounted)
    with closing(Collection.open(copied, writable=True, compacts=False)) as writer:
        beside = Collection.open(mounted)
        writer.upsert([NewItem("new", "card", "my bank card chip")])
        writer.delete(["items.csv:2"])
        for reader in (early, beside):
            assert reader.refresh()
            assert (reader.item("items.csv:2"), reader.sequence, reader.size) == (None, writer.sequence, writer.size)
        writer.snapshot()
        writer.delete(["items.csv:3"])
        for reader in (early, beside):
            assert reader.refresh()
            assert (reader.item("items.csv:3"), reader.snapshot_id) == (None, writer.snapshot_id)
    late = Collection.open(mounted)
    with closing(Collection.open(copied, writable=True, compacts=False)) as writer:
        writer.delete(["items.csv:4"])
        for reader in (early, beside, late):
            assert reader.refresh()
            assert (reader.item("items.csv:4"), reader.size) == (None, writer.size)
    for reader in (early, beside, late):
        assert reader.warnings == []
        reader.close()
