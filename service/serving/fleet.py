"""A worker's side of the pipe to its supervisor (`service.workers`)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from index.errors import CollectionError


class Versioned(Protocol):
    """A collection of which another version can take the place: `service.serving.collection.Current`."""

    async def prepare(self, folder: Path) -> None: ...

    def take(self) -> object: ...

    async def drop(self) -> None: ...


class Fleet:
    """The workers as one of them sees them. Use it in its event loop, between `join` and `leave`.

    `collections` are those of this worker, by name: it opens, takes or drops another version of one when all do.
    """

    def __init__(self, pipe: Connection, collections: Mapping[str, Versioned]) -> None:
        self._pipe = pipe
        self._collections = collections
        self._asked: list[asyncio.Future[str | None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self) -> None:
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._read)

    def leave(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())

    async def reload(self, name: str) -> None:
        """Every worker serves what is on disk of that collection now, or, when one refuses it, what it served before.

        Raises `CollectionError` then.
        """
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
            for asked in self._asked:
                if not asked.done():
                    asked.set_result("The service is about to stop.")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if what == "awake":
            with suppress(OSError):
                self._pipe.send(("awake", None))
            return
        if what == "done":
            asked = self._asked.pop(0)
            if not asked.done():
                asked.set_result(said)
            return
        task = asyncio.get_running_loop().create_task(self._follow(what, *said))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, what: str, name: str, folder: Path) -> None:
        """Does one part of a reload; the supervisor asks for the next once all have answered this one."""
        fault = None
        try:
            if what == "open":
                await self._collections[name].prepare(folder)
            elif what == "take":
                self._collections[name].take()
            else:
                await self._collections[name].drop()
        except Exception as error:  # whatever it is: the others wait for an answer
            fault = str(error) or type(error).__name__
        with suppress(OSError):  # the supervisor has ended, and so will this worker
            self._pipe.send(("did", fault))
