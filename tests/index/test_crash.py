"""kill -9 at random moments of writing, deleting and compacting: every acknowledged write is there, none is half there.

A few kills in the suite; `make test-crash` asks for more with SUREMATCH_KILLS, and SUREMATCH_SEED chooses other ones.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from index.collection import Collection
from index.storage.snapshot import read_snapshot
from tests.index import crash_writer
from tests.index.crash_writer import vector_of
from tests.index.helpers import unit

KILLS = int(os.environ.get("SUREMATCH_KILLS", "10"))
SEED = int(os.environ.get("SUREMATCH_SEED", "7"))
Model = dict[str, int]


def replayed(model: Model, journal: Path) -> tuple[Model, Model, int]:
    """The items after the acknowledged writes, those after the one that was under way too, and how many there were."""
    after, acknowledged = dict(model), 0
    for line in journal.read_text().splitlines():
        told = json.loads(line)
        if told == "done":
            model, acknowledged = dict(after), acknowledged + 1
        elif told != "open" and "stage" not in told:
            after = {**after, **told.get("put", {})}
            after = {name: version for name, version in after.items() if name not in told.get("gone", [])}
    return model, after, acknowledged


def check(path: Path, *possible: Model) -> Model:
    """The items, which are one of the `possible`; the index agrees with them and nothing is damaged."""
    opened = Collection.open(path)
    try:
        assert opened.warnings == [], "a kill must damage nothing"
        now = opened._store.everything()
        items = opened._store.get(now.born.tolist())
        crashed = {item.id: item.metadata["v"] for item in items.values() if "v" in item.metadata}
        assert crashed in possible
        for row, label, vector in zip(now.born.tolist(), now.labels, now.vectors, strict=True):
            if (item := items[row]).id in crashed:
                version = crashed[item.id]
                np.testing.assert_array_equal(vector, vector_of(item.id, version))
                assert (label, item.text) == (f"label {version % 3}", f"text of {item.id}/{version}")
        queries = unit(5, crash_writer.DIMENSION, seed=1)
        scores, rows = opened.state.search(queries, 30)
        expected = -np.sort(-(queries @ now.vectors.T), axis=1)[:, :30]
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        found = now.vectors[np.searchsorted(now.born, rows)]
        np.testing.assert_allclose(np.einsum("qd,qkd->qk", queries, found), scores, atol=1e-6)
        return crashed
    finally:
        opened.close()


def test_kill_nine_at_any_moment(copied: Path, tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.index.crash_writer"])
    choose = random.Random(SEED)
    model: Model = {}
    acknowledged, cut, names = 0, 0, set[str]()
    for number in range(KILLS):
        journal = tmp_path / f"journal-{number}"
        writer = processes.Process(
            target=crash_writer.work, args=(copied, journal, SEED * 10_000 + number), daemon=True
        )
        writer.start()
        what, count = (b"stage", choose.randint(1, 12)) if number % 2 else (b"\n", choose.randint(1, 60))
        until = time.monotonic() + 10
        while not journal.exists() or (journal.read_bytes().count(what) < count and time.monotonic() < until):
            assert writer.is_alive(), "the writer ended by itself"
            time.sleep(0.002)
        time.sleep(0.03 * choose.random())
        writer.kill()
        writer.join()
        assert writer.exitcode == -9
        before, after, writes = replayed(model, journal)
        journal.unlink()
        acknowledged += writes
        cut += before != after
        model = check(copied, before, after)
        names.add((copied / "snapshots" / "CURRENT").read_text())
    print(  # noqa: T201
        f"\n{KILLS} kills, {acknowledged} acknowledged writes, {cut} killed in the middle of a write, "
        f"{len(names)} snapshots served afterwards: nothing lost, nothing half there"
    )
    with_writer = Collection.open(copied, writable=True)
    with_writer.snapshot()
    assert len(with_writer._store.feedback().labels) == 0
    kept = {name: with_writer.item(name) for name in model}
    assert all(kept.values())
    gone = {f"i{number}" for number in range(120)} - set(model)
    with_writer.close()
    assert check(copied, model) == model
    left = {entry.name for entry in (copied / "snapshots").iterdir()}
    assert len(left) <= 3, left
    assert not [name for name in left if name.startswith(".")]
    everything = b"".join(file.read_bytes() for file in copied.rglob("*") if file.is_file())
    for name in gone:
        assert f"text of {name}/".encode() not in everything, "what was deleted is erased, killed in between or not"


@pytest.mark.parametrize("torn", ["empty files", "no files", "half of each file", "no such folder", "empty pointer"])
def test_a_torn_rename_costs_no_item(copied: Path, torn: str) -> None:
    """After a power cut a folder may be there whose files are not, or a pointer to a folder that is not."""
    opened = Collection.open(copied, writable=True)
    opened.upsert([crash_writer.item_of("i1", 1)])
    newest = copied / "snapshots" / opened.snapshot()
    opened.upsert([crash_writer.item_of("i2", 2)])
    opened.close()
    if torn == "no such folder":
        shutil.rmtree(newest)
    elif torn == "empty pointer":
        (copied / "snapshots" / "CURRENT").write_bytes(b"")
    else:
        for file in newest.iterdir():
            if torn == "no files":
                file.unlink()
            else:
                file.write_bytes(b"" if torn == "empty files" else file.read_bytes()[: file.stat().st_size // 2])
    for first in (True, False):  # the first writer to come repairs what it found
        opened = Collection.open(copied, writable=True)
        now = opened._store.everything()
        assert {item.id for item in opened._store.get(now.born.tolist()).values()} >= {"i1", "i2"}
        assert np.array_equal(opened.gallery.rows, now.born)
        assert opened.state.search(vector_of("i2", 2)[None], 1)[0][0, 0] == pytest.approx(1)
        assert bool(opened.warnings) == first
        opened.snapshot()
        opened.close()
    assert read_snapshot(copied / "snapshots")[1] == []
    check(copied, {"i1": 1, "i2": 2})
