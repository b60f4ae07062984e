"""Deadlines that are equally far away for everybody: one timer for all of them.

`asyncio.timeout` sets a timer of the event loop for each use and cancels it, which costs a request as much as its
place in the queue. Whoever comes later is due later, so that only the oldest need be watched.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType


class Deadlines:
    """`with deadlines.new():` raises `TimeoutError` in a task that is still inside `seconds` later. For one loop."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._inside: deque[Deadline] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def new(self) -> Deadline:
        return Deadline(self)

    def enter(self, deadline: Deadline) -> None:
        loop = asyncio.get_running_loop()
        deadline.due = loop.time() + self.seconds
        self._inside.append(deadline)
        if self._timer is None:
            self._timer = loop.call_at(deadline.due, self._look, loop)

    def leave(self) -> None:
        """Forgets those at the head that were left; others wait for them to be."""
        while self._inside and self._inside[0].left:
            self._inside.popleft()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while self._inside and (self._inside[0].left or self._inside[0].due <= now):
            self._inside.popleft().expire()
        self._timer = loop.call_at(self._inside[0].due, self._look, loop) if self._inside else None


class Deadline:
    """One of `Deadlines`, for one use."""

    __slots__ = ("_asked", "_deadlines", "_task", "due", "expired", "left")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self.due = 0.0
        self.expired = self.left = False

    def __enter__(self) -> Deadline:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline is for a task")
        self._task, self._asked = task, task.cancelling()
        self._deadlines.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self.left = self._task, True
        del self._task  # others may keep this in the queue behind them
        self._deadlines.leave()
        # as `asyncio.timeout`: who was cancelled by others too is cancelled, whatever the time
        if self.expired and task.uncancel() <= self._asked and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Cancels the task, unless it has left."""
        if not self.left:
            self.expired = True
            self._task.cancel()
