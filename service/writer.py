"""Writes off the event loop: one thread, because a collection has one writer, and only so much may wait for it."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.batching import Admission

R = TypeVar("R")
REMEMBERED_BYTES = 16 * 2**20


class Writer:
    """Runs one write after another; `close` waits for the one under way."""

    def __init__(self, max_pending: int) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._places = Admission(max_pending)

    async def run(self, write: Callable[[], R], size: int = 1) -> R:
        """What `write()` returns. Raises `Problem` "busy" when writes of too many items wait already."""
        self._places.enter(size)
        try:
            # a write that has begun is finished, whatever becomes of who asked for it
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, write))
        finally:
            self._places.leave(size)

    def close(self) -> None:
        self._thread.shutdown()


class RecentQueries:
    """Vectors of recent queries by an id that their answers carry, so that people can say later what was right.

    The oldest are forgotten beyond `limit` bytes. Use it from one thread.
    """

    def __init__(self, limit: int = REMEMBERED_BYTES) -> None:
        self.limit = limit
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._held = 0

    def remember(self, vectors: Iterable[NDArray[np.float32]]) -> list[str]:
        """New ids of the vectors (n, d), in their order."""
        request = secrets.token_hex(8)
        ids = []
        for at, vector in enumerate(vectors):
            name = f"{request}-{at}"
            ids.append(name)
            self._vectors[name] = vector.copy()
            self._held += vector.nbytes
        while self._held > self.limit and self._vectors:
            self._held -= self._vectors.popitem(last=False)[1].nbytes
        return ids

    def get(self, name: str) -> NDArray[np.float32] | None:
        return self._vectors.get(name)
