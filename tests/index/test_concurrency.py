"""Readers, writers, deleters and compaction at once: every answer is that of one state which existed during the call.

A few seconds in the suite; `make test-concurrency` asks for more with SUREMATCH_SECONDS.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from index.answer import Hit
from index.collection import Collection, NewItem
from tests.index.helpers import unit

SECONDS = float(os.environ.get("SUREMATCH_SECONDS", "4"))
K = 20
SCHEDULER = Path("/proc/thread-self/schedstat")


@dataclass
class History:
    """Every version of every item with the write it was born with and the one it died with."""

    names: list[str] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    born: list[int] = field(default_factory=list)
    died: list[float] = field(default_factory=list)
    living: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, name: str, vector: NDArray[np.float32], sequence: int) -> None:
        self.gone(name, sequence)
        self.living[name] = len(self.names)
        self.names.append(name)
        self.vectors.append(vector)
        self.born.append(sequence)
        self.died.append(np.inf)

    def gone(self, name: str, sequence: int) -> None:
        if name in self.living:
            self.died[self.living.pop(name)] = sequence


@dataclass(frozen=True)
class Seen:
    """An answer, and the sequence numbers between which its state must lie."""

    query: NDArray[np.float32]
    hits: list[Hit]
    first: int
    last: int


class Load:
    """Threads that do one thing each until the time is over; the first error ends them all."""

    def __init__(self, seconds: float) -> None:
        self.errors: list[BaseException] = []
        self._until = time.monotonic() + seconds
        self._threads: list[threading.Thread] = []

    def start(self, what: Callable[[], None]) -> None:
        def run() -> None:
            try:
                while time.monotonic() < self._until and not self.errors:
                    what()
            except BaseException as error:
                self.errors.append(error)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()


class WatchedLock:
    """A lock that notes how long the running thread has waited for it and its like."""

    waited = threading.local()

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def acquire(self, blocking: bool = True) -> bool:
        began = time.perf_counter()
        try:
            return bool(self._lock.acquire(blocking))
        finally:
            self.waited.seconds = self.so_far() + time.perf_counter() - began

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        self._lock.release()

    @classmethod
    def so_far(cls) -> float:
        return float(getattr(cls.waited, "seconds", 0.0))


class Clock(NamedTuple):
    """Seconds of this thread: passed, spent running, spent runnable without a processor, spent waiting for a lock."""

    passed: float
    running: float
    queued: float
    locked: float

    @classmethod
    def now(cls) -> Clock:
        try:
            queued = int(SCHEDULER.read_text().split()[1]) / 1e9
        except OSError:  # no such accounting on this system: the queue then counts as blocked
            queued = 0.0
        return cls(time.perf_counter(), time.thread_time(), queued, WatchedLock.so_far())

    def since(self, before: Clock) -> Clock:
        return Clock(*(now - then for now, then in zip(self, before, strict=True)))

    @property
    def blocked(self) -> float:
        """Neither running nor queued nor at a lock of ours: at the interpreter's lock, or at the disk."""
        return max(0.0, self.passed - self.running - self.queued - self.locked)


def watch_locks(collection: Collection) -> None:
    for owner, name in ((collection._live, "swapping"), (collection, "_compacting"), (collection._store, "_lock")):
        setattr(owner, name, WatchedLock(getattr(owner, name)))


def told(clocks: list[Clock]) -> str:
    """p50, p99, p99.9 and the longest, in milliseconds, of everything a search waits for."""
    columns = {
        "in all": [clock.passed for clock in clocks],
        "for a lock that a writer holds": [clock.locked for clock in clocks],
        "for the interpreter or the disk": [clock.blocked for clock in clocks],
        "for a processor": [clock.queued for clock in clocks],
    }
    lines = []
    for name, seconds in columns.items():
        p50, p99, p999, longest = np.quantile(seconds, [0.5, 0.99, 0.999, 1]) * 1000
        lines.append(f"    {name:32} p50 {p50:6.2f}  p99 {p99:6.2f}  p99.9 {p999:6.2f}  longest {longest:6.2f} ms")
    return "\n".join(lines)


def test_every_answer_is_that_of_a_state_which_existed(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live = Collection.open(copied, writable=True)
    follower = Collection.open(copied)
    for collection in (live, follower):
        watch_locks(collection)
    history, seen, compactions = History(), list[Seen](), list[str]()
    clocks: dict[str, list[Clock]] = {"the writer's process": [], "a process that follows": [], "no writer": []}
    now = live._store.everything()
    items = live._store.get(now.born.tolist())
    for row, vector in zip(now.born.tolist(), now.vectors, strict=True):
        history.put(items[row].id, vector, 0)
    randoms = iter(np.random.default_rng(seed) for seed in range(99))

    def writer() -> Callable[[], None]:
        random = next(randoms)

        def once() -> None:
            names = [f"w{number}" for number in random.choice(400, int(random.integers(1, 6)), replace=False)]
            vectors = unit(len(names), 16, seed=int(random.integers(1 << 30)))
            with history.lock:  # writers one after the other, so that the history has their order; readers never wait
                sequence = live.upsert(
                    [NewItem(n, "card", None, v) for n, v in zip(names, vectors, strict=True)]
                ).sequence
                for name, vector in zip(names, vectors, strict=True):
                    history.put(name, vector, sequence)
            time.sleep(0.002)

        return once

    def deleter() -> Callable[[], None]:
        random = next(randoms)

        def once() -> None:
            with history.lock:
                names = random.choice(sorted(history.living), 3, replace=False).tolist()
                sequence = live.delete(names).sequence
                for name in names:
                    history.gone(name, sequence)
            time.sleep(0.004)

        return once

    def reader(collection: Collection, where: str) -> Callable[[], None]:
        random = next(randoms)

        def once() -> None:
            if collection is follower:
                collection.refresh()
            query = unit(1, 16, seed=int(random.integers(1 << 30)))
            first, began = collection.sequence, Clock.now()
            hits = collection.search_vectors(query, k=K)[0].hits
            clocks[where].append(Clock.now().since(began))
            seen.append(Seen(query[0], hits, first, collection.sequence))

        return once

    for collection in (live, follower):  # whatever is loaded at the first search is no wait for a writer
        collection.search_vectors(unit(1, 16), k=K)
    quiet = Load(SECONDS / 4)
    for collection in (live, live, follower):
        quiet.start(reader(collection, "no writer"))
    quiet.wait()
    load = Load(SECONDS)
    for what in (writer(), writer(), deleter()):
        load.start(what)
    for collection, where in ((live, "the writer's process"),) * 2 + ((follower, "a process that follows"),):
        load.start(reader(collection, where))
    load.start(lambda: compactions.append(live.snapshot()))
    load.wait()
    live.close()
    follower.close()
    assert quiet.errors + load.errors == []
    assert len(compactions) > 0
    vectors, born, died = np.stack(history.vectors), np.array(history.born), np.array(history.died)
    for answer in seen[:: max(1, len(seen) // 5000)]:
        cosines = vectors @ answer.query
        assert any(matches(answer, cosines, (born <= at) & (at < died), history) for at in states(answer)), answer
    with capsys.disabled():
        if SECONDS > 10:
            print(  # noqa: T201
                f"\n{SECONDS:.0f} s: {len(seen)} searches, {max(born)} writes, {len(compactions)} compactions, 0 wrong"
            )
            for where, measured in clocks.items():
                print(f"  {len(measured)} searches, {where}, waiting\n{told(measured)}")  # noqa: T201


def states(answer: Seen) -> range:
    return range(answer.first, answer.last + 1)


def matches(answer: Seen, cosines: NDArray[np.float32], alive: NDArray[np.bool_], history: History) -> bool:
    """Whether an exhaustive search over the items alive gives these hits; equal scores may stand in any order."""
    at = np.flatnonzero(alive)
    best = at[np.argsort(-cosines[at], kind="stable")[: len(answer.hits)]]
    scores = np.array([hit.score for hit in answer.hits])
    if len(answer.hits) != min(K, len(at)) or np.abs(scores - cosines[best]).max(initial=0) > 1e-5:
        return False
    of_name = {history.names[position]: cosines[position] for position in at}
    return all(abs(of_name.get(hit.id, np.inf) - hit.score) < 1e-5 for hit in answer.hits)
