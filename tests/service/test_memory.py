"""A service stays as large as it was: what it replaced is freed at once, and goes back to the system."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from index import collection as index_collection
from index import memory
from index.collection import Collection
from index.errors import CalibrationError
from service.serving import collection as service_serving
from service.serving.collection import Current, Serving
from service.settings import ServeSettings
from service.telemetry.metrics import Metrics
from tests.service.gallery import KNOWN

FREED = """
import threading
from pathlib import Path
from index.memory import give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 // 1024

kept = []

def allocate():
    there = [bytearray(b"x") * 5_000 for _ in range(10_000)]
    kept.append(there[::1000])  # in the way of an allocator that gives back from the top alone

for _ in range(4):
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator that is asked is glibc's")
def test_what_was_freed_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) > 30, "of the 50 MiB that a thread allocated and freed"


ARENAS = """
import ctypes
import threading

from index.memory import share_arenas

share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
all_here = threading.Barrier(8)

def allocate():
    libc.malloc(ctypes.c_size_t(50_000))
    all_here.wait()  # who ends leaves its arena to others

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_info(0, ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w")))
libc.fflush(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator that is asked is glibc's")
@pytest.mark.parametrize(("wanted", "arenas"), [(None, 2), ("5", 5)])
def test_threads_share_arenas(wanted: str | None, arenas: int) -> None:
    said = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    said |= {} if wanted is None else {"MALLOC_ARENA_MAX": wanted}
    done = subprocess.run([sys.executable, "-c", ARENAS], capture_output=True, text=True, check=True, env=said)
    assert done.stdout.count("<heap nr=") == arenas


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without the collector of cycles, which comes round to what lived long after hours."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("writable", [False, True])
def test_a_closed_collection_is_freed_at_once(collection: Path, tmp_path: Path, writable: bool) -> None:
    opened = Collection.open(shutil.copytree(collection, tmp_path / "copy"), writable=writable)
    opened.search([KNOWN[0][0]])
    freed = weakref.ref(opened)
    opened.close()
    del opened
    assert freed() is None


@pytest.mark.usefixtures("no_collector")
def test_a_version_that_was_replaced_is_freed_at_once(collection: Path) -> None:
    async def served_and_retired() -> list[weakref.ref[object]]:
        serving = Serving.open(ServeSettings(collection=collection))
        vectors = serving.collection.encoder.encode([KNOWN[0][0]])
        await serving.searcher.embed([KNOWN[0][0]])
        assert len(serving.collection.search_vectors(vectors)) == 1
        kept = [weakref.ref(serving.collection), weakref.ref(serving.searcher)]
        await serving.retire()
        return kept

    assert [freed() for freed in asyncio.run(served_and_retired())] == [None, None]


def test_after_a_compaction_and_a_calibration_memory_is_given_back(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    monkeypatch.setattr(memory, "give_back", lambda: given.append(opened.snapshot_id))
    opened = Collection.open(shutil.copytree(collection, tmp_path / "copy"), writable=True)
    first = opened.snapshot_id
    made = opened.snapshot()
    assert given == [made] != [first]
    with pytest.raises(CalibrationError):
        opened.recalibrate()
    assert given == [made, made]
    opened.close()


def test_a_reader_that_follows_a_compaction_gives_back_the_old_state(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    folder = shutil.copytree(collection, tmp_path / "copy")
    reader, writer = Collection.open(folder), Collection.open(folder, writable=True)
    old = weakref.ref(reader.state)
    monkeypatch.setattr(index_collection, "give_back", lambda: given.append(old()))
    reader.refresh()
    assert not given
    writer.snapshot()
    reader.refresh()
    assert given == [None]
    reader.close()
    writer.close()


def test_after_a_reload_memory_is_given_back(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though what was served was followed once: what did that sleeps now."""
    given: list[str] = []
    old: list[weakref.ref[object]] = []
    monkeypatch.setattr(service_serving, "give_back", lambda: given.append(f"reloaded, old: {old[0]()}"))

    async def reloaded() -> None:
        settings = ServeSettings(collection=collection, refresh_seconds=0.5)
        current = Current(settings, Metrics(), next(iter(settings.folders)))
        tell, told = current._tell, asyncio.Event()
        monkeypatch.setattr(current, "_tell", lambda serving: (tell(serving), told.set()))
        await current.start()
        told.clear()
        await told.wait()
        assert current.serving is not None
        old.append(weakref.ref(current.serving.collection))
        await current.reload()
        while not given:
            await asyncio.sleep(0.01)
        await current.stop()

    asyncio.run(reloaded())
    assert given == ["reloaded, old: None"]
