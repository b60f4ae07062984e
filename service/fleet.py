"""A worker's side of the pipe to its supervisor (`service.workers`)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

from index.errors import CollectionError, SurematchError


class Fleet:
    """The workers as one of them sees them. Use it in its event loop, between `join` and `leave`.

    `reload_this` is what this one does when all are asked to reload the collection of a name.
    """

    def __init__(self, pipe: Connection, reload_this: Callable[[str], Awaitable[object]]) -> None:
        self._pipe = pipe
        self._reload_this = reload_this
        self._asked: list[asyncio.Future[str | None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()

    def join(self) -> None:
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._read)

    def leave(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())

    async def reload(self, name: str) -> None:
        """Every worker serves what is on disk of that collection now. Raises `CollectionError` when one refuses it."""
        done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._asked.append(done)
        self._pipe.send(("reload", name))
        if (fault := await done) is not None:
            raise CollectionError(fault)

    def _read(self) -> None:
        try:
            what, said = self._pipe.recv()
        except (EOFError, OSError):  # without the supervisor nobody could stop or replace this worker
            self.leave()
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if what == "reload":
            task = asyncio.get_running_loop().create_task(self._reload(said))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif what == "done" and self._asked:
            asked = self._asked.pop(0)
            if not asked.done():
                asked.set_result(said)

    async def _reload(self, name: str) -> None:
        async with self._one_at_a_time:  # they are answered in the order they came
            fault = None
            try:
                await self._reload_this(name)
            except SurematchError as error:
                fault = str(error)
            self._pipe.send(("reloaded", fault))
