"""Writes off the event loop: one thread, because a collection has one writer, and only so much may wait for it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.problems import stopping
from service.serving.batching import Admission

R = TypeVar("R")
REMEMBERED_BYTES = 16 * 2**20


class Writer:
    """Runs one write after another; `close` waits for the one under way.

    A write whose request is cancelled (the service stops) is never begun; one that has begun is finished.
    """

    def __init__(self, max_pending: int, refused: Callable[[], object]) -> None:
        """`refused` is called for every write that is, see `run`."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._places = Admission(max_pending, "items to write", refused)

    async def run(self, write: Callable[[], R], size: int = 1) -> R:
        """What `write()` returns. Raises `Problem` "busy" when writes of too many items wait already, and "not-ready"
        when it is cancelled before it has begun."""
        self._places.enter(size)
        work = self._thread.submit(write)
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            if work.cancelled():
                raise stopping("Nothing was written.") from None
            raise
        finally:
            self._places.leave(size)

    def close(self) -> None:
        self._thread.shutdown()


@dataclass(frozen=True, slots=True)
class RecentQuery:
    """What was asked a while ago."""

    vector: NDArray[np.float32]
    filtered: bool
    """With a filter: that nothing matched then says nothing of the whole collection."""


class RecentQueries:
    """Recent queries by an id that their answers carry, so that people can say later what was right.

    A new one takes the place of the oldest. All of `limit` bytes is held from the start: a service that has run for
    long is no larger than it was. Use it from one thread.
    """

    def __init__(self, dimension: int, limit: int = REMEMBERED_BYTES) -> None:
        self._places = max(1, limit // (4 * dimension + 17))
        self._vectors = np.ones((self._places, dimension), np.float32)  # zeros would get their memory one by one, later
        self._requests = np.full(self._places, secrets.randbits(64), np.uint64)  # of no request: nobody is told
        self._numbers = np.full(self._places, -1)
        self._filtered = np.ones(self._places, np.bool_)
        self._seen = 0

    def remember(self, vectors: NDArray[np.float32], *, filtered: bool = False) -> list[str]:
        """New ids of the queries' vectors (n, d), in their order."""
        request = secrets.randbits(64)
        numbers = np.arange(self._seen, self._seen + len(vectors))
        self._seen += len(vectors)
        kept = numbers[-self._places :]
        at = kept % self._places
        self._vectors[at], self._requests[at], self._numbers[at] = vectors[-self._places :], request, kept
        self._filtered[at] = filtered
        return [_id(request, number) for number in numbers.tolist()]

    def get(self, name: str) -> RecentQuery | None:
        """The query with a copy of its vector (d,), None if there is none of that id any longer."""
        number = name.rpartition("-")[2]
        if not (number.isascii() and number.isdigit() and len(number) < 20):
            return None
        at = int(number) % self._places
        known = _id(int(self._requests[at]), int(self._numbers[at])) == name
        return RecentQuery(self._vectors[at].copy(), bool(self._filtered[at])) if known else None


def _id(request: int, number: int) -> str:
    return f"{request:016x}-{number}"
