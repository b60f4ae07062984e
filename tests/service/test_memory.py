"""What was freed goes back to the system, also when threads took turns with blocks that live on."""

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
from service.serving import Serving
from service.settings import ServeSettings
from tests.service.gallery import KNOWN

CHURN = """
import threading
from pathlib import Path
from service.memory import give_back_memory

def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024

assert give_back_memory()
kept = []
def churn():
    for _ in range(20):
        blocks = [bytearray(b"x") * (3 << 20) for _ in range(5)]
        kept.append(bytearray(b"y") * 4096)  # lives on between them
        del blocks
before = resident()
for _ in range(3):
    threads = [threading.Thread(target=churn) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator that is set up is glibc's")
def test_freed_blocks_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 24, "MiB held, of 120 in use at a time"


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
