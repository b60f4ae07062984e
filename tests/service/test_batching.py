"""Micro-batches: what queued while a call ran is the next batch; nobody gets another's answer; nobody blocks others."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.problems import Problem
from service.serving.batching import Admission, Batcher
from service.serving.cache import OVERHEAD, VectorCache


class Gate:
    """A call that doubles its items, records its batches, and waits until it is let through."""

    def __init__(self, open_: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        if open_:
            self.go.set()

    def __call__(self, items: list[int]) -> list[int | Exception]:
        self.batches.append(items)
        assert self.go.wait(30)
        return [ValueError(str(item)) if item < 0 else 2 * item for item in items]


async def queue(batcher: Batcher[int, int], *items: int, size: int = 1) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(batcher.submit(item, size)) for item in items]
    await asyncio.sleep(0)
    return tasks


def test_a_lone_item_goes_at_once_and_the_rest_together() -> None:
    gate = Gate()
    sizes: list[int] = []
    batcher = Batcher(gate, name="test", observe=sizes.append)

    async def run() -> list[int]:
        tasks = await queue(batcher, 1)
        while not gate.batches:
            await asyncio.sleep(0.001)
        tasks += await queue(batcher, 2, 3, 4)
        gate.go.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(run()) == [2, 4, 6, 8]
    assert gate.batches == [[1], [2, 3, 4]]
    assert sizes == [1, 3]
    batcher.close()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 50))
def test_no_batch_is_larger_than_allowed_unless_it_is_one_item(sizes: list[int], most: int) -> None:
    gate = Gate(open_=True)
    seen: list[int] = []
    batcher = Batcher(gate, name="test", max_batch=most, observe=seen.append)

    async def run() -> list[int]:
        return await asyncio.gather(*(batcher.submit(at, size) for at, size in enumerate(sizes)))

    assert asyncio.run(run()) == [2 * at for at in range(len(sizes))]
    assert sum(seen) == sum(sizes)
    assert all(size <= most or len(batch) == 1 for size, batch in zip(seen, gate.batches, strict=True))
    batcher.close()


def test_who_gave_up_is_skipped_and_an_error_is_its_own() -> None:
    gate = Gate()
    batcher = Batcher(gate, name="test")

    async def run() -> list[Any]:
        first, left, wrong, right = await queue(batcher, 1, 2, -3, 4)
        left.cancel()
        gate.go.set()
        return await asyncio.gather(first, left, wrong, right, return_exceptions=True)

    results = asyncio.run(run())
    assert results[0] == 2
    assert isinstance(results[1], asyncio.CancelledError)
    assert isinstance(results[2], ValueError)
    assert results[3] == 8
    assert all(2 not in batch for batch in gate.batches)
    batcher.close()


def test_a_call_that_fails_fails_its_batch_and_the_next_one_runs() -> None:
    calls = 0

    def call(items: list[int]) -> list[int | Exception]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("once")
        return list(items)

    batcher = Batcher(call, name="test")

    async def run() -> int:
        with pytest.raises(RuntimeError, match="once"):
            await batcher.submit(1)
        return await batcher.submit(2)

    assert asyncio.run(run()) == 2
    batcher.close()


def test_what_is_quick_runs_in_the_loop_and_the_rest_in_threads() -> None:
    threads: dict[int, bool] = {}

    def call(items: list[int]) -> list[int | Exception]:
        threads.update(dict.fromkeys(items, threading.current_thread() is threading.main_thread()))
        return [ValueError(str(item)) if item < 0 else 2 * item for item in items]

    batcher = Batcher(call, name="test", max_batch=2, quick=lambda items: max(items) < 10)

    async def run() -> list[Any]:
        together = await asyncio.gather(*(batcher.submit(item) for item in (1, -2, 10, 11)), return_exceptions=True)
        return [*together, await batcher.submit(3)]

    results = asyncio.run(run())
    assert [result for result in results if not isinstance(result, Exception)] == [2, 20, 22, 6]
    assert isinstance(results[1], ValueError)
    assert threads == {1: True, -2: True, 10: False, 11: False, 3: True}
    batcher.close()


def test_what_is_quick_and_alone_is_done_without_a_turn_of_the_loop() -> None:
    gate = Gate(open_=True)
    sizes: list[int] = []
    batcher = Batcher(gate, name="test", quick=lambda items: items[0] < 10, observe=sizes.append)

    def at_once(item: int) -> int:
        """What `submit` returns where it never waits."""
        waiting = batcher.submit(item, 3, alone=True)
        with pytest.raises(StopIteration) as ended:
            waiting.send(None)
        return int(ended.value.value)

    async def run() -> None:
        assert at_once(2) == 4
        with pytest.raises(ValueError, match="-1"):
            await batcher.submit(-1, alone=True)
        others = await queue(batcher, 20)
        assert await batcher.submit(3, alone=True) == 6, "others wait already"
        assert await others[0] == 40
        assert await batcher.submit(30, alone=True) == 60, "what is not quick goes to a thread"

    asyncio.run(run())
    assert gate.batches == [[2], [-1], [20, 3], [30]]
    assert sizes == [3, 1, 2, 1]
    batcher.close()


def test_who_comes_one_turn_after_the_other_is_in_one_batch() -> None:
    batches: list[list[int]] = []

    def call(items: list[int]) -> list[int | Exception]:
        batches.append(items)
        return list(items)

    batcher = Batcher(call, name="test", quick=lambda items: True)

    async def late(item: int) -> None:
        for _ in range(2 + item):
            await asyncio.sleep(0)
        await batcher.submit(item)

    async def run() -> None:
        await asyncio.gather(batcher.submit(0), *(late(item) for item in range(1, 6)))

    asyncio.run(run())
    assert batches == [[0], [1, 2, 3, 4, 5]]
    batcher.close()


def test_a_queue_of_quick_batches_leaves_others_their_turn() -> None:
    order: list[str] = []

    def call(items: list[int]) -> list[int | Exception]:
        order.append("batch")
        return list(items)

    batcher = Batcher(call, name="test", max_batch=1, quick=lambda items: True)

    async def other() -> None:
        while order.count("batch") < 3:
            order.append("other")
            await asyncio.sleep(0)

    async def run() -> None:
        await asyncio.gather(*(batcher.submit(at) for at in range(3)), other())

    asyncio.run(run())
    assert order.index("other") < len(order) - 1 - order[::-1].index("batch")
    assert "batchbatch" not in "".join(order)
    batcher.close()


def test_lanes_run_side_by_side() -> None:
    together = threading.Barrier(2, timeout=30)

    def call(items: list[int]) -> list[int | Exception]:
        together.wait()
        return list(items)

    batcher = Batcher(call, name="test", lanes=2, max_batch=1)

    async def run() -> list[int]:
        return await asyncio.gather(batcher.submit(1), batcher.submit(2))

    assert asyncio.run(run()) == [1, 2]
    batcher.close()


def test_admission_takes_one_request_of_any_size_and_then_only_what_fits() -> None:
    places = Admission(10)
    places.enter(50)
    with pytest.raises(Problem) as refused:
        places.enter(1)
    assert refused.value.headers["Retry-After"]
    places.leave(50)
    places.enter(4)
    places.enter(6)
    with pytest.raises(Problem):
        places.enter(1)
    assert places.pending == 10


@given(st.lists(st.tuples(st.text(max_size=3), st.booleans()), max_size=60), st.integers(0, 5))
def test_the_cache_forgets_the_least_recently_used(steps: list[tuple[str, bool]], room: int) -> None:
    def size(text: str) -> int:
        return 4 * len(text) + 8 + OVERHEAD

    cache = VectorCache(room * size("abc"))
    model: list[str] = []  # oldest first
    for text, reading in steps:
        if reading:
            vector = cache.get(text)
            assert (vector is not None) == (text in model)
            if vector is not None:
                assert vector[0] == len(text)
                model.remove(text)
                model.append(text)
        elif text not in model and size(text) <= cache.limit:
            cache.put(text, np.full(2, len(text), np.float32))
            model.append(text)
            while sum(map(size, model)) > cache.limit:
                model.pop(0)
        else:
            cache.put(text, np.full(2, len(text), np.float32))
        assert len(cache) == len(model)
        assert cache.held == sum(map(size, model)) <= cache.limit


def test_the_cache_keeps_no_view_of_a_batch() -> None:
    cache = VectorCache(10_000)
    batch = np.ones((3, 2), np.float32)
    cache.put("a", batch[0])
    batch[:] = 7
    kept = cache.get("a")
    assert kept is not None
    assert kept.base is None
    assert kept.tolist() == [1, 1]


@pytest.mark.parametrize("linger", [False, True])
def test_callers_who_ask_again_and_again_are_waited_for(linger: bool) -> None:
    """Without lingering they fall into two groups that take turns; with it they share one call."""
    sizes: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def call(items: list[int]) -> list[int]:
        begun.set()
        assert go.wait(30)  # the others miss the first call, whatever the machine does
        time.sleep(0.03)
        return items

    batcher = Batcher(call, name="test", linger=linger, observe=sizes.append)

    async def caller(number: int) -> list[int]:
        return [await batcher.submit(number) for _ in range(12)]

    async def run() -> list[list[int]]:
        first = asyncio.create_task(caller(0))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(caller(number)) for number in range(1, 6)]
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(run()) == [[number] * 12 for number in range(6)]
    assert sum(sizes) == 72
    assert (max(sizes[2:-2]) == 6) == linger, sizes
    batcher.close()


def test_who_does_not_come_back_is_not_waited_for() -> None:
    """Two of three leave for good: the third is answered, and the lane ends."""
    sizes: list[int] = []

    def call(items: list[int]) -> list[int]:
        time.sleep(0.03)
        return items

    batcher = Batcher(call, name="test", linger=True, observe=sizes.append)

    async def run() -> list[int]:
        first = await queue(batcher, 1)
        await asyncio.sleep(0.01)
        answers = await asyncio.gather(*first, *await queue(batcher, 2, 3))
        return [*answers, await batcher.submit(3)]

    assert asyncio.run(run()) == [1, 2, 3, 3]
    assert sizes == [1, 2, 1]
    batcher.close()
