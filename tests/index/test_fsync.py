"""The order in which things reach the disk, as the kernel is asked: what is named was synced before it is named.

kill -9 cannot show this (the page cache survives it); a power cut would. So the system calls are traced.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

WRITER = """
import os, sys
from pathlib import Path
from index.collection import Collection, NewItem
path, marks = Path(sys.argv[1]), Path(sys.argv[2])
live = Collection.open(path, writable=True)
(marks / "asked").mkdir()
live.upsert([NewItem("new", "card", "bank card chip")])
(marks / "written").mkdir()
live.delete(["new"])
(marks / "deleted").mkdir()
live.snapshot()
(marks / "compacted").mkdir()
live.close()
"""
SYNCS = ("fsync", "fdatasync")
CALLS = "fsync,fdatasync,?rename,renameat,renameat2,?mkdir,mkdirat"
CALL = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<arguments>.*?)(?P<end>\) += 0$| <unfinished \.\.\.>$)")
RESUMED = re.compile(r"^(?P<pid>\d+) +<\.\.\. \w+ resumed>.*\) += 0$")
Call = tuple[str, list[str]]


def completed(trace: str) -> list[Call]:
    """Name and paths of every call that succeeded, in the order in which they were done."""
    done: list[Call] = []
    begun: dict[str, Call] = {}
    for line in trace.splitlines():
        if found := CALL.match(line):
            paths = re.findall(r'"([^"]*)"|\d+<([^>]*)>', found["arguments"])
            call = found["name"], [quoted or of_handle for quoted, of_handle in paths]
            if found["end"].startswith(")"):
                done.append(call)
            else:
                begun[found["pid"]] = call
        elif found := RESUMED.match(line):
            done.append(begun.pop(found["pid"]))
    return done


@pytest.fixture
def calls(copied: Path, tmp_path: Path) -> list[Call]:
    """What a writer asks of the disk: a write, a deletion, a compaction."""
    if shutil.which("strace") is None:
        warnings.warn("strace is missing: the order of fsync is NOT checked", stacklevel=1)
        pytest.skip("strace is missing: the order of fsync is NOT checked. Install it (apt-get install strace).")
    (tmp_path / "marks").mkdir()
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(trace), sys.executable, "-c"]
    ran = subprocess.run(
        [*command, WRITER, str(copied), str(tmp_path / "marks")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    if "ptrace" in ran.stderr and "not permitted" in ran.stderr:
        pytest.skip("this system forbids tracing: the order of fsync is NOT checked")
    assert ran.returncode == 0, ran.stderr
    return completed(trace.read_text())


def at(calls: list[Call], names: tuple[str, ...], path: str, after: int = 0) -> int:
    """Where the first of these calls on a path (the last one they name) stands, from `after` on."""
    for place, (name, paths) in enumerate(calls[after:], after):
        if name in names and paths and re.fullmatch(path, paths[-1]):
            return place
    raise AssertionError(f"no {'/'.join(names)} of {path} after {calls[after - 1] if after else 'the start'}")


def test_what_is_acknowledged_or_named_was_synced_before(calls: list[Call], copied: Path) -> None:
    making = ("mkdir", "mkdirat")
    renaming = ("rename", "renameat", "renameat2")
    asked, written, deleted, compacted = (
        at(calls, making, f".*/marks/{mark}") for mark in ("asked", "written", "deleted", "compacted")
    )
    log = re.escape(f"{copied}/items.sqlite-wal")
    assert asked < at(calls, SYNCS, log, asked) < written, "acknowledged before it is on disk"
    assert written < at(calls, SYNCS, log, written) < deleted

    folder = re.escape(f"{copied}/snapshots")
    current = (copied / "snapshots" / "CURRENT").read_text().strip()
    named = at(calls, renaming, f"{folder}/{current}", deleted)
    temporary = re.escape(calls[named][1][-2])
    assert Path(calls[named][1][-2]).name.startswith(".writing-")
    begun = at(calls, making, temporary, deleted)
    synced = [
        at(calls, SYNCS, f"{temporary}/{file.name}", begun) for file in (copied / "snapshots" / current).iterdir()
    ]
    assert len(synced) >= 5
    assert max(synced) < at(calls, SYNCS, temporary, max(synced)) < named, (
        "renamed before its files and names are on disk"
    )
    root = at(calls, SYNCS, folder, named)
    pointer = at(calls, SYNCS, rf"{folder}/\.CURRENT-\d+", begun)
    switched = at(calls, renaming, f"{folder}/CURRENT", begun)
    assert named < root < switched, "CURRENT names a snapshot that a power cut may take away"
    assert pointer < switched < at(calls, SYNCS, folder, switched) < compacted

    for place, (name, paths) in enumerate(calls[deleted:compacted], deleted):
        if name in renaming and paths[-1].startswith(f"{copied}/snapshots/.writing-"):  # an old snapshot goes
            assert place > at(calls, SYNCS, folder, switched), "the old snapshot went before the new one was safe"
