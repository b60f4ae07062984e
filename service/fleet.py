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

    `reload_this` is what this one does when all are asked to reload.
    """

    def __init__(self, pipe: Connection, reload_this: Callable[[], Awaitable[object]]) -> None:
        self._pipe = pipe
        self._reload_this = reload_this
        self._asked: list[asyncio.Future[str | None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self) -> None:
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._read)

    def leave(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())

    async def reload(self) -> None:
        """Every worker serves what is on disk now. Raises `CollectionError` when one of them refuses it."""
        done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._asked.append(done)
        self._pipe.send(("reload", None))
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
            task = asyncio.get_running_loop().create_task(self._reload())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif what == "done" and self._asked:
            asked = self._asked.pop(0)
            if not asked.done():
                asked.set_result(said)

    async def _reload(self) -> None:
        fault = None
        try:
            await self._reload_this()
        except SurematchError as error:
            fault = str(error)
        self._pipe.send(("reloaded", fault))
