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

import numpy as np
import pytest
from numpy.typing import NDArray

from index.answer import Hit
from index.collection import Collection, NewItem
from tests.index.helpers import unit

SECONDS = float(os.environ.get("SUREMATCH_SECONDS", "4"))
K = 20


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

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self._until = time.monotonic() + SECONDS
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


def test_every_answer_is_that_of_a_state_which_existed(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live = Collection.open(copied, writable=True)
    follower = Collection.open(copied)
    history, seen, waits, compactions = History(), list[Seen](), list[float](), list[str]()
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

    def reader(collection: Collection, refresh: bool) -> Callable[[], None]:
        random = next(randoms)

        def once() -> None:
            if refresh:
                collection.refresh()
            query = unit(1, 16, seed=int(random.integers(1 << 30)))
            first, began = collection.sequence, time.perf_counter()
            hits = collection.search_vectors(query, k=K)[0].hits
            waits.append(time.perf_counter() - began)
            seen.append(Seen(query[0], hits, first, collection.sequence))

        return once

    load = Load()
    for what in (writer(), writer(), deleter(), reader(live, False), reader(live, False), reader(follower, True)):
        load.start(what)
    load.start(lambda: compactions.append(live.snapshot()))
    load.wait()
    live.close()
    follower.close()
    assert load.errors == []
    assert len(compactions) > 0
    vectors, born, died = np.stack(history.vectors), np.array(history.born), np.array(history.died)
    for answer in seen[:: max(1, len(seen) // 5000)]:
        cosines = vectors @ answer.query
        assert any(matches(answer, cosines, (born <= at) & (at < died), history) for at in states(answer)), answer
    longest = np.sort(waits)[::-1] * 1000
    with capsys.disabled():
        if SECONDS > 10:
            print(  # noqa: T201
                f"\n{SECONDS:.0f} s: {len(seen)} searches, {max(born)} writes, {len(compactions)} compactions, "
                "0 wrong; "
                f"search p50 {np.median(longest):.1f} ms, p99 {longest[len(longest) // 100]:.1f} ms, "
                f"longest {longest[0]:.1f} ms"
            )


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
