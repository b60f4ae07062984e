"""Faults from outside: no room, no rights. Each is named, nothing is half done, and it works again by itself."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from index import build as build_module
from index.build import build_collection
from index.calibration.sources import Held
from index.collection import Collection, NewItem
from index.encoders.files import fingerprint
from index.errors import CollectionError, Damaged, DataError, DiskFull, EncoderError, ReadOnly
from index.storage import snapshot as snapshot_module
from tests.index.conftest import World

UNDER_A_LIMIT = """
import json, resource, signal, sys
from pathlib import Path
from index.collection import Collection, NewItem
from index.errors import DiskFull
from index.storage.snapshot import read_snapshot, write_snapshot
from tests.index.helpers import unit

hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
path, sizes = Path(sys.argv[1]), range(0, 60_000, 1024)
vectors, refused, done = unit(10, 16, seed=3), 0, 0

def limited(size, call):
    "Whether `call` was refused for want of room; it must not fail in any other way."
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        call()
    except DiskFull:
        return True
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    return False

collection = Collection.open(path, writable=True)
for at, size in enumerate(sizes):
    # the limit is on the file, not on the write: the log starts anew each time
    collection._store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = collection.state
    batch = [NewItem(f"{at}-{number}", "card", "text " * 40, vector) for number, vector in enumerate(vectors)]
    full = limited(size, lambda: collection.upsert(batch))
    refused, done = refused + full, done + (not full)
    there = [collection.item(item.id) is not None for item in batch]
    assert there == [not full] * len(batch), (size, full, there)
    assert (collection.state is before) == full, size
    assert collection.search_vectors(vectors[:1])[0].hits
    gone = limited(size, lambda: collection.delete([batch[0].id]))
    assert (collection.item(batch[0].id) is None) == (full or not gone), size
    collection.upsert([NewItem("always", "card", "text", vectors[at % 10])])  # works again unaided
    collection.delete(["always"])
snapshots = path / "snapshots"
files = {"vectors.faiss": bytes(range(256)) * 60, "labels.safetensors": b"x" * 3000}
good = write_snapshot(path / "other", sequence=1, engine="flat", encoder="e", files=files)
whole = max(len(content) for content in files.values())
for size in [*range(0, whole, 512), whole - 1]:
    assert limited(size, lambda: write_snapshot(path / "other", sequence=2, engine="flat", encoder="e", files=files))
    assert sorted(entry.name for entry in (path / "other").iterdir()) == [good, "CURRENT"], size
    found, faults = read_snapshot(path / "other")
    assert (found.name, faults) == (good, []), size
assert not limited(whole, lambda: write_snapshot(path / "other", sequence=2, engine="flat", encoder="e", files=files))
name, state = collection.snapshot_id, collection.state
entries = sorted(entry.name for entry in snapshots.iterdir())
for size in (0, 100, 2_000, 4_096):
    assert limited(size, collection.snapshot)
    assert collection.state is state
    assert sorted(entry.name for entry in snapshots.iterdir()) == entries
assert collection.snapshot() != name
print(json.dumps({"refused": refused, "done": done}))
collection.close()
"""


def test_no_room_at_any_size_is_reported_and_leaves_nothing(copied: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, str(copied)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    counts = json.loads(ran.stdout)
    assert counts["refused"] > 20
    assert counts["done"] > 0, "the limits must end beyond what a write needs"
    opened = Collection.open(copied)
    assert opened.warnings == []
    opened.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    tried = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here, and so none be filled: {tried.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leaves no room there; returns the file that takes it."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def test_a_full_disk_is_what_keeps_a_reader_out_and_is_said(built: Path, small_disk: Path) -> None:
    path = small_disk / "c"
    shutil.copytree(built, path)
    open_already = Collection.open(path)
    before = open_already.search(["bank"])[0].hits
    fill(small_disk)
    assert open_already.search(["bank"])[0].hits == before
    open_already.close()
    filler = fill(small_disk)  # of what closing freed, too
    for _ in range(2):
        with pytest.raises(DiskFull, match=r"as the disk is full.*Make some room, then open it again") as raised:
            Collection.open(path)
        assert "writable" not in str(raised.value)
        assert "backup" not in str(raised.value)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    opened = Collection.open(path)
    assert opened.search(["bank"])[0].hits == before
    opened.close()
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    filler.unlink()
    opened = Collection.open(path)
    assert (opened.size, opened.warnings) == (180, [])
    opened.close()
    assert not list(path.glob("items.sqlite-*")), "what SQLite began without room is swept"


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EROFS, ReadOnly), (errno.EIO, CollectionError)],
)
@pytest.mark.parametrize("step", ["_write_durably", "_sync"])
def test_a_failing_disk_during_compaction_keeps_the_old_state(
    copied: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[CollectionError], step: str
) -> None:
    opened = Collection.open(copied, writable=True)
    opened.upsert([NewItem("n", "card", "bank")])
    opened.delete(["items.csv:3"])
    before = opened.state

    def fail(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(snapshot_module, step, fail)
        with pytest.raises(kind, match="could not be written") as raised:
            opened.snapshot()
    assert type(raised.value) is kind
    assert opened.state is before
    assert not [entry for entry in (copied / "snapshots").iterdir() if entry.name.startswith(".")]
    assert opened.search(["bank"])[0].hits[0].score == pytest.approx(1)
    opened.snapshot()
    assert opened.state.pending == 0
    opened.close()


def test_a_folder_without_rights_is_named(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a read-only mount; the tests may run as root, whom permissions do not stop."""

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("index.storage.writer_lock.os.open", refuse)
    with pytest.raises(ReadOnly, match="cannot be opened for writing"):
        Collection.open(copied, writable=True)


def test_a_store_that_lost_its_pages_is_damaged_and_named(copied: Path) -> None:
    store = copied / "items.sqlite"
    Collection.open(copied, writable=True).close()
    with store.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (store.stat().st_size - 4096))
    with pytest.raises(Damaged, match=r"items\.sqlite"):
        Collection.open(copied)


def test_a_snapshot_of_a_newer_format_is_refused_by_name_and_the_items_serve(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Collection.open(copied, writable=True)
    opened.upsert([NewItem("n", "card", "bank")])
    with monkeypatch.context() as patch:
        patch.setattr(snapshot_module, "_FORMAT", 99)
        newer = opened.snapshot()
    opened.close()
    opened = Collection.open(copied)
    assert opened.snapshot_id != newer
    assert any(newer in warning and "newer surematch" in warning for warning in opened.warnings)
    assert opened.search(["bank"], k=1)[0].hits[0].score == pytest.approx(1)
    assert opened.item("n") is not None
    opened.close()


def test_a_writer_does_not_put_a_newer_snapshot_aside(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Collection.open(copied, writable=True)
    with monkeypatch.context() as patch:
        patch.setattr(snapshot_module, "_FORMAT", 99)
        newer = opened.snapshot()
    opened.close()
    with pytest.raises(CollectionError, match=rf"{newer}.*by a newer surematch \(format 99\). Upgrade to write"):
        Collection.open(copied, writable=True)
    with monkeypatch.context() as patch:
        patch.setattr(snapshot_module, "_FORMAT", 99)
        opened = Collection.open(copied)
        assert opened.snapshot_id == newer
        opened.close()


def test_a_killed_replacement_is_put_back_and_not_replaced_without_consent(world: World, copied: Path) -> None:
    old = copied.with_name(f".{copied.name}-old")
    copied.rename(old)
    with pytest.raises(CollectionError, match=r"being replaced when the process died.*mv .*-old "):
        Collection.open(copied)
    with pytest.raises(CollectionError, match=r"already exists.*--overwrite"):
        build_collection(str(world.encoder), world.rows(world.test), copied)
    opened = Collection.open(copied)
    assert opened.size == 180
    opened.close()
    assert not old.exists()


def test_what_was_encoded_is_kept_when_the_disk_is_full(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "c"
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "keep_queries", full)
        with pytest.raises(DiskFull, match=r"No space left.*continue with --resume"):
            build_collection(str(world.encoder), world.rows(world.items), out, held=Held(world.rows(world.held)))
    assert not out.exists()
    found = build_collection(
        str(world.encoder), world.rows(world.items), out, held=Held(world.rows(world.held)), resume=True
    )
    assert found["items"] == 180


def test_a_folder_that_may_not_be_looked_into_is_named(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(CollectionError, match=r"collection\.json: cannot be read \(Permission denied\)"):
        Collection.open(copied)


def test_an_encoder_that_may_not_be_read_is_not_told_to_be_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *how: Any, **more: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(EncoderError, match=r"modules\.json: cannot be read \(Permission denied\)\. Check its perm"):
        fingerprint(world.encoder)


def test_rows_whose_columns_json_does_not_have_are_found_before_anything_is_encoded(
    world: World, tmp_path: Path
) -> None:
    rows = world.rows(world.items)
    rows[5] = replace(rows[5], extra={"price": float("nan")})
    with pytest.raises(DataError, match=r"line 7: column 'price' holds nan \(float\), which JSON cannot keep"):
        build_collection(str(world.encoder), rows, tmp_path / "c")
    rows[5] = replace(rows[5], extra={"day": date(2026, 11, 26), "price": Decimal("1.50")})
    with pytest.raises(DataError, match=r"column 'price' holds 1\.50 \(Decimal\).*Make it a text or a number"):
        build_collection(str(world.encoder), rows, tmp_path / "c")
    rows[5] = replace(rows[5], extra={"day": date(2026, 11, 26)})
    build_collection(str(world.encoder), rows, tmp_path / "c")
    opened = Collection.open(tmp_path / "c")
    assert opened.search([rows[5].text], k=1, filter={"day": "2026-11-26"})[0].hits[0].metadata["day"] == "2026-11-26"
    opened.close()
