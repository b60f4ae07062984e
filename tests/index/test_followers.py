"""Processes that follow a writer: they wait for no lock of anybody, and no erasure makes them load everything anew."""

from __future__ import annotations

import threading
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
