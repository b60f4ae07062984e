"""Deadlines: who is inside too long is told, as `asyncio.timeout` does; nobody else is disturbed."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from service.deadlines import Deadlines


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


async def inside(deadlines: Deadlines, seconds: float) -> str:
    try:
        with deadlines.new():
            await asyncio.sleep(seconds)
    except TimeoutError:
        return "late"
    return "done"


def test_who_stays_too_long_is_told_and_others_are_not() -> None:
    async def work() -> list[str]:
        deadlines = Deadlines(1)
        asked = [asyncio.create_task(inside(deadlines, seconds)) for seconds in (0, 9, 0.01, 9, 0)]
        await asyncio.sleep(0.5)
        asked += [asyncio.create_task(inside(deadlines, seconds)) for seconds in (0, 9)]
        return await asyncio.gather(*asked)

    assert run(work()) == ["done", "late", "done", "late", "done", "done", "late"]


def test_they_can_be_used_again_after_nobody_was_inside() -> None:
    async def work() -> list[str]:
        deadlines = Deadlines(0.05)
        found = [await inside(deadlines, 0)]
        await asyncio.sleep(0.1)
        return [*found, await inside(deadlines, 9), await inside(deadlines, 0), await inside(deadlines, 9)]

    assert run(work()) == ["done", "late", "done", "late"]


def test_an_error_inside_stays_what_it_is() -> None:
    async def work() -> None:
        with Deadlines(0.01).new():
            raise KeyError("mine")

    with pytest.raises(KeyError):
        run(work())


def test_a_task_that_was_late_can_still_be_cancelled_and_goes_on_otherwise() -> None:
    async def work() -> int:
        assert await inside(Deadlines(0.01), 9) == "late"
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert run(work()) == 0


@pytest.mark.parametrize("late_too", [False, True])
def test_who_is_cancelled_by_others_is_cancelled(late_too: bool) -> None:
    async def work() -> bool:
        task = asyncio.create_task(inside(Deadlines(0.0 if late_too else 9), 9))
        await asyncio.sleep(0)
        if late_too:  # both ask in the same turn of the loop
            asyncio.get_running_loop().call_soon(task.cancel)
        else:
            task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert run(work())


def test_one_inside_another_is_the_nearer_one_s_affair() -> None:
    async def work() -> list[str]:
        near, far = Deadlines(0.02), Deadlines(9)
        said = []
        with far.new():
            said.append(await inside(near, 9))
            said.append(await inside(near, 0))
        return said

    assert run(work()) == ["late", "done"]


def test_of_those_who_left_behind_a_slow_one_no_task_is_held() -> None:
    async def work() -> int:
        deadlines = Deadlines(9)
        slow = asyncio.create_task(inside(deadlines, 9))
        await asyncio.sleep(0)
        left = [asyncio.create_task(inside(deadlines, 0)) for _ in range(3)]
        held = [weakref.ref(task) for task in left]
        while left:
            await left.pop()
        await asyncio.sleep(0)  # until then the loop remembers whom it woke last
        gc.collect()
        slow.cancel()
        return sum(task() is not None for task in held)

    assert run(work()) == 0


def test_nothing_is_held_of_those_who_left() -> None:
    async def work() -> int:
        deadlines = Deadlines(9)
        for _ in range(100):
            await inside(deadlines, 0)
        return len(deadlines._inside)

    assert run(work()) == 0
