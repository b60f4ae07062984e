"""Micro-batches: whatever queued while the last call ran is the next call's batch.

An idle service answers a lone query at once, a busy one in batches as large as its load makes them. What is soon done
runs in the event loop itself: the way to a thread and back costs more, and two threads of Python wait for each other.
Where a batch costs hardly more than a query, callers who ask again and again fall into two halves that take turns, each
paying for a whole call; `linger` waits for those just answered while they are coming back.
A bound on what waits turns overload into an immediate 503 rather than time-outs for everybody; callers who gave up are
skipped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Generic, TypeVar

from service.problems import Problem

T = TypeVar("T")
R = TypeVar("R")
PAUSE, QUIET, LONGEST = 1 / 16, 3, 1 / 2
"""Lingering looks again after this part of the call's time, ends when nobody new came for so many looks (answers must
reach their callers first), and after that part of the call's time in any case."""


@dataclass(slots=True)
class _Waiting(Generic[T, R]):
    item: T
    size: int
    answer: asyncio.Future[R] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


def _never(items: list[T]) -> bool:
    return False


def _closed(items: list[T]) -> Sequence[R | Exception]:
    raise RuntimeError("the batcher is closed")


def _unseen(size: int) -> None: ...


def _uncounted() -> None: ...


class Batcher(Generic[T, R]):
    """Runs `call(items)` in up to `lanes` threads at a time, or in the event loop where `quick(items)` says so.

    `call` returns one result or exception for each item, in order; an exception it raises itself goes to all of them.
    A batch holds at most `max_batch` (an item counts for `size`), but always at least one item. `observe` is told the
    size of every batch. With `linger` the next call waits while callers just answered ask again. Use it from one event
    loop; `close` waits for the calls under way.
    """

    def __init__(
        self,
        call: Callable[[list[T]], Sequence[R | Exception]],
        *,
        name: str,
        lanes: int = 1,
        max_batch: int = 256,
        quick: Callable[[list[T]], bool] = _never,
        linger: bool = False,
        observe: Callable[[int], None] = _unseen,
    ) -> None:
        self._call = call
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix=name)
        self._free = lanes
        self._max_batch = max_batch
        self._quick = quick
        self._linger = linger
        self._observe = observe
        self._queue: deque[_Waiting[T, R]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, item: T, size: int = 1, *, alone: bool = False) -> R:
        """The result of `item`. Cancelled while it waits, it is never computed.

        `alone`: nobody else can be about to submit anything, so what is quick is done without a turn of the loop.
        """
        if alone and self._free and not self._queue and self._quick([item]):
            self._observe(size)
            (result,) = self._call([item])
            if isinstance(result, Exception):
                raise result
            return result
        waiting: _Waiting[T, R] = _Waiting(item, size)
        self._queue.append(waiting)
        if self._free:
            self._free -= 1
            lane = asyncio.get_running_loop().create_task(self._lane())
            self._running.add(lane)
            lane.add_done_callback(self._running.discard)
        return await waiting.answer

    async def _lane(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._take():
                self._observe(sum(waiting.size for waiting in batch))
                items = [waiting.item for waiting in batch]
                quick = self._quick(items)
                began = perf_counter()
                try:
                    results: Sequence[R | Exception] = (
                        self._call(items) if quick else await loop.run_in_executor(self._threads, self._call, items)
                    )
                except Exception as error:
                    results = [error] * len(batch)
                for waiting, result in zip(batch, results, strict=True):
                    _settle(waiting.answer, result)
                if quick:
                    await self._arriving()
                elif self._linger:
                    await self._returning(len(batch) + len(self._queue), perf_counter() - began)
        finally:
            self._free += 1

    async def _arriving(self) -> None:
        """Others' turn, and that of requests that have come meanwhile: the loop reads them, one step a turn. What is
        in the queue when nobody new came twice is one batch."""
        waiting, quiet = -1, 0
        while quiet < 2:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._queue) <= waiting else 0
            waiting = len(self._queue)

    async def _returning(self, callers: int, seconds: float) -> None:
        """Waits for `callers` to stand in the queue, as long as new ones come, after a call that took `seconds`."""
        end = perf_counter() + LONGEST * seconds
        callers = min(callers, self._max_batch)
        waiting, quiet = len(self._queue), 0
        while callers > 1 and waiting < callers and quiet < QUIET and perf_counter() < end:
            await asyncio.sleep(PAUSE * seconds)
            quiet = quiet + 1 if len(self._queue) <= waiting else 0
            waiting = len(self._queue)

    def _take(self) -> list[_Waiting[T, R]]:
        batch: list[_Waiting[T, R]] = []
        size = 0
        while self._queue:
            waiting = self._queue[0]
            if waiting.answer.done():  # its caller gave up
                self._queue.popleft()
                continue
            if batch and size + waiting.size > self._max_batch:
                break
            batch.append(self._queue.popleft())
            size += waiting.size
        return batch

    def close(self) -> None:
        self._threads.shutdown()
        # its owner's methods: without them both are freed at once, not when the collector of cycles comes round
        self._call, self._quick, self._observe = _closed, _never, _unseen


def _settle(answer: asyncio.Future[R], result: R | Exception) -> None:
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)


class Admission:
    """A bound on how many of `what` wait or run. One request alone is always admitted, however large.

    `refused` is called for every request that is not.
    """

    def __init__(self, limit: int, what: str = "queries", refused: Callable[[], object] = _uncounted) -> None:
        self.limit = limit
        self.pending = 0
        self._what = what
        self._refused = refused

    def enter(self, size: int) -> None:
        """Raises `Problem` "busy" when there is no room; else call `leave` with the same number afterwards."""
        if self.pending and self.pending + size > self.limit:
            self._refused()
            raise Problem("busy", f"{self.pending} {self._what} wait or run already.", headers={"Retry-After": "1"})
        self.pending += size

    def leave(self, size: int) -> None:
        self.pending -= size
