"""A service stays as large as it was: what it replaced is freed at once."""

from __future__ import annotations

import asyncio
import gc
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from index.collection import Collection
from service.serving import Serving
from service.settings import ServeSettings
from tests.service.gallery import KNOWN


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
