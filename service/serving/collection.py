"""What a running service holds: an opened collection that has answered one real query, and the threads that ask it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from index.answer import Answer
from index.calibration.evidence import TOP_K
from index.collection import Collection
from index.data.images import blank
from index.errors import CollectionError, DataError, Displaced, ReadOnly
from index.items.item import StoredItem
from index.memory import give_back
from index.storage.place import resolved
from service.serving.fleet import Fleet
from service.serving.searcher import Searcher
from service.serving.writer import RecentQueries, Writer
from service.settings import ServeSettings
from service.telemetry.metrics import Metrics

WARM_UP = "what can you do for me"
EXAMPLES = 4
HURT = "not all that lies in the folder could be used"
BEHIND, LOST = "what was written elsewhere cannot be followed", "nothing can be written any more"
R = TypeVar("R")
log = logging.getLogger("surematch.service")


@dataclass(slots=True)
class Serving:
    """One collection with its model and its threads as one unit, so that a later version takes its place whole."""

    collection: Collection
    searcher: Searcher
    given: list[str]
    """Questions to start with, where the settings have some."""
    nearest: list[str]
    """Ids of the items that the first query found, whose texts are such questions otherwise."""
    writer: Writer
    name: str
    """What the service calls the collection."""
    recent: RecentQueries | None
    """Of a writable collection."""
    folder: Path
    """Where it is served from: the collection's own, or a link to it."""
    operators: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(thread_name_prefix="operate"))
    """Its own: what has begun there ends before the collection lets another writer in, whoever still waits for it."""
    users: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def open(
        cls,
        settings: ServeSettings,
        metrics: Metrics | None = None,
        name: str | None = None,
        folders: Mapping[str, Path] | None = None,
    ) -> Serving:
        """Open, verify and warm the collection of this name, the default one without, in its folder of `folders`, else
        of the settings. Raises `CollectionError` or `EncoderError`."""
        folders = settings.folders if folders is None else folders
        name = next(iter(folders)) if name is None else name
        # a link to the current version may be pointed elsewhere while we read: all files come from where it points now
        collection = Collection.open(resolved(folders[name]), writable=settings.writable)
        try:
            if settings.eight_bits:
                collection.prepare()
            # The first query pays for lazy loading and compilation, and proves that encoder and gallery fit.
            answer = _warm_up(collection)
        except BaseException:
            collection.close()
            raise
        metrics = (metrics or Metrics()).named(name)
        metrics.items.labels(name).set(collection.size)
        searcher = Searcher(collection, settings, metrics)
        writer = Writer(4 * settings.max_items, metrics.refused.inc)
        recent = RecentQueries(collection.encoder.dimension) if settings.writable else None
        nearest = [hit.id for hit in answer.hits]
        return cls(collection, searcher, settings.examples, nearest, writer, name, recent, folders[name])

    @classmethod
    def open_all(
        cls, settings: ServeSettings, metrics: Metrics | None = None, folders: Mapping[str, Path] | None = None
    ) -> dict[str, Serving]:
        """Every collection of the settings by its name, the default one first. Raises as `open` does."""
        opened: dict[str, Serving] = {}
        metrics = metrics or Metrics()
        try:
            for name in settings.folders:
                opened[name] = cls.open(settings, metrics, name, folders)
        except BaseException:
            for serving in opened.values():
                serving.close()
            raise
        return opened

    def examples(self) -> list[str]:
        """Questions to start with: texts of items are looked up each time, for they may have been deleted since."""
        return self.given or _examples(self.collection.findable(self.nearest))

    async def write(self, change: Callable[[], R], size: int = 1) -> R:
        """What `change()` returns, which changes the items. Raises as `check_place`, and as `Writer.run`."""
        return await self.writer.run(lambda: self._in_place(change), size)

    async def operate(self, change: Callable[[], R]) -> R:
        """What `change()` returns, which changes what is made of the items, beside writes. Raises as `check_place`."""
        return await asyncio.get_running_loop().run_in_executor(self.operators, self._in_place, change)

    def _in_place(self, change: Callable[[], R]) -> R:
        if self.collection.writable:  # else the collection itself refuses
            self.check_place()
        return change()

    def check_place(self) -> None:
        """Raises `CollectionError` where what is written now would be lost: to who opens the folder next, another
        collection lies there, or none."""
        now, here = resolved(self.folder), self.collection.path
        if now != here:
            raise Displaced(
                f"{self.folder}: points to {now} now, and this service writes to {here}. Nothing is written any more: "
                "it would be missing there. Start the service anew, or point the link back."
            )
        self.collection.check_place()

    @contextmanager
    def used(self) -> Iterator[Serving]:
        """Keeps this version open for as long as a request uses it. Call it in the event loop."""
        self.users += 1
        try:
            yield self
        finally:
            self.users -= 1
            if not self.users:
                self.unused.set()

    async def retire(self) -> None:
        """Close once the last request that uses this version is answered; no new one may start."""
        while self.users:
            self.unused.clear()
            await self.unused.wait()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        self.searcher.close()
        self.writer.close()
        self.operators.shutdown()
        self.collection.close()


class Current:
    """The version of one collection that serves now, and how another takes its place."""

    def __init__(self, settings: ServeSettings, metrics: Metrics, name: str, serving: Serving | None = None) -> None:
        self.settings = settings
        self.name = name
        self.metrics = metrics
        self.serving = serving
        self.fleet: Fleet | None = None
        """The other workers, where there are several."""
        self.refused = False
        """The last reload was: an older version serves than the one on disk."""
        self.astray = ""
        """Why what is served is not what lies in its folder now, or cannot follow it."""
        self._told: set[str] = set()
        self._reloading = asyncio.Lock()
        self._prepared: Serving | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def degraded(self) -> bool:
        """An older version serves than the one on disk, if there is one, or not all that lies there."""
        hurt = self.serving is not None and bool(self.serving.collection.warnings)
        return self.refused or bool(self.astray) or hurt

    async def start(self) -> None:
        if self.serving is None:
            self.serving = await asyncio.to_thread(Serving.open, self.settings, self.metrics, self.name)
        self._tell(self.serving)
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        """Serve what other processes have written to the collection, and keep the gauges."""
        while True:
            await asyncio.sleep(self.settings.refresh_seconds)
            if self.serving is not None:
                await self._follow_once(self.serving)

    async def _follow_once(self, serving: Serving) -> None:
        """In a call of its own: between two of them nothing holds on to a version that a reload has replaced."""
        with serving.used():
            opened = serving.collection
            try:
                await asyncio.to_thread(serving.check_place if opened.writable else opened.refresh)
                self.astray = ""
            except Exception as error:  # an end of this task would be seen by nobody, and nothing followed
                if self.astray != str(error):  # once, not every second until somebody mends it
                    log.error("%s: %s", LOST if opened.writable else BEHIND, error)
                self.astray = str(error)
            self._tell(serving)

    def _tell(self, serving: Serving) -> None:
        """Logs what is wrong with what is served, each fault once, and keeps the gauges."""
        now = set(serving.collection.warnings)
        for fault in sorted(now - self._told):
            log.error("%s: %s", HURT, fault)
        self._told = now
        self.metrics.items.labels(self.name).set(serving.collection.size)
        self.metrics.degraded.labels(self.name).set(self.degraded)

    async def reload(self) -> Serving:
        """Serve what the collection's folder holds now, in every worker: opened, verified and warm before the first
        request sees it.

        Requests under way finish on the version they began with. Raises `SurematchError` when the new version is
        damaged in any part, or one of several workers refuses it; the old one then serves on. Always `ReadOnly` where
        the service itself writes.
        """
        await self.check_reloads()
        if self.fleet is not None:
            await self.fleet.reload(self.name)
            assert self.serving is not None
            return self.serving
        async with self._reloading:
            await self.prepare(self.settings.folders[self.name])
            return self.take()

    async def check_reloads(self) -> None:
        """Raises `ReadOnly` where the service itself writes."""
        if not self.settings.writable:
            return
        if self.serving is not None:
            try:
                await asyncio.to_thread(self.serving.check_place)
            except CollectionError as error:
                raise ReadOnly(f"A service that writes does not reload. {error}") from error
        raise ReadOnly(
            "There is nothing to reload: this service writes to the collection itself, so nobody else has changed "
            "it, and its own writes are served at once. To serve another collection, start another service."
        )

    async def prepare(self, folder: Path) -> None:
        """Open the version in `folder`, for `take` or `drop`. Raises `SurematchError` when any part is damaged."""
        try:
            self._prepared = await asyncio.to_thread(self._open_undamaged, folder)
        except Exception as error:
            self._refuse(error)
            raise

    def take(self) -> Serving:
        """Serve the version that was prepared; the one before it is closed after its last request."""
        assert self._prepared is not None
        old, self.serving, self._prepared = self.serving, self._prepared, None
        self.refused, self.astray = False, ""
        self.metrics.reloads.labels("serves").inc()
        log.info("reloaded", extra={"fields": {"snapshot": self.serving.collection.snapshot_id}})
        if old is not None:
            task = asyncio.create_task(old.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retired)
        return self.serving

    async def drop(self) -> None:
        """Close what was prepared: another worker refuses it."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            self._refuse("another worker cannot open it")
            await prepared.retire()

    def _refuse(self, why: object) -> None:
        self.refused = True
        self.metrics.reloads.labels("refused").inc()
        log.error("the new version is refused, the old one serves on: %s", why)

    def _retired(self, task: asyncio.Task[None]) -> None:
        """Called when the old version is nowhere referred to any longer."""
        self._retiring.discard(task)
        asyncio.get_running_loop().run_in_executor(None, give_back)

    def _open_undamaged(self, folder: Path) -> Serving:
        """A start makes the best of a damaged collection; a reload has something better: the version that serves."""
        try:
            new = Serving.open(self.settings, self.metrics, self.name, {self.name: folder})
        except OSError as error:  # of too many files, for one
            raise CollectionError(f"{folder}: cannot be opened: {error}.") from error
        if new.collection.warnings:
            new.close()
            raise CollectionError(" ".join(new.collection.warnings))
        return new

    async def stop(self) -> None:
        self._following.cancel()
        if self._prepared is not None:
            self._prepared.close()
        closing, self.serving = self.serving, None
        await asyncio.gather(*self._retiring)
        if closing is not None:
            await closing.retire()


def _examples(items: Sequence[StoredItem]) -> list[str]:
    """Texts of a few items with different labels: questions the page can offer when it was given none."""
    by_label = {item.label: item.text for item in reversed(items) if item.text and len(item.text) <= 80}
    return list(by_label.values())[:EXAMPLES]


def _warm_up(collection: Collection) -> Answer:
    try:
        return _first_answer(collection)
    finally:
        collection.drift.forget()


def _first_answer(collection: Collection) -> Answer:
    try:
        if collection.encoder.modality == "text":
            return collection.search([WARM_UP], k=TOP_K)[0]
        return collection.search_images([blank()], k=TOP_K)[0]
    except DataError:  # no word it knows, says a text encoder, or no face in it; it has loaded and run by then
        vector = np.eye(1, collection.encoder.dimension, dtype=np.float32)
        return collection.search_vectors(vector, k=TOP_K)[0]
