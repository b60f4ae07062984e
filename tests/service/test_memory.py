"""A service stays as large as it was: what it replaced is freed at once, and threads share the allocator's arenas."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from index.collection import Collection
from service.memory import ARENAS
from service.serving import Serving
from service.settings import ServeSettings
from tests.service.gallery import KNOWN

CHURN = """
import ctypes, sys, threading, time
from pathlib import Path
from service.memory import share_arenas

if sys.argv[1] == "set up":
    assert share_arenas()
together = threading.Barrier(8)

def churn():
    together.wait()
    for _ in range(200):
        [bytearray(b"x") * 50_000 for _ in range(100)]

threads = [threading.Thread(target=churn) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(Path(sys.argv[2]).read_text().count("<heap nr="))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator that is set up is glibc's")
def test_threads_share_two_arenas(tmp_path: Path) -> None:
    def arenas(how: str) -> int:
        command = [sys.executable, "-c", CHURN, how, str(tmp_path / "malloc.xml")]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)

    assert arenas("set up") <= ARENAS < arenas("left alone")


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
    opened = Collection.open(collection, writable=writable)
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
