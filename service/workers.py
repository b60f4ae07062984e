"""Several processes that answer at one address: a supervisor starts them, replaces the dead, and stops them together.

Each is started anew (spawned, not forked: a forked copy of threads and locks under way is a trap), opens the collection
for itself and shares the mapped index and the listening socket with the others. Only readers: a collection has one
writer.

They talk over one pipe each. A worker says "ready", its greeting and whether what it opened is whole, or the "fault"
that ends it, and asks for a "reload" of a collection. Then all are told to "open" the version; once each has said that
it "did", or what was wrong, to "take" it, or to "drop" it where one of them found a fault; and when they did that, who
asked is told that it is "done". So all serve one version, and nobody answers from another. Now and then each is asked
whether it is "awake" and says so; one that hangs is killed and replaced.
"""

from __future__ import annotations

import logging
import logging.config
import multiprocessing
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

from index.errors import CollectionError, SurematchError
from index.memory import share_arenas
from index.storage.place import resolved
from index.verbs.terminal import visible
from service.server import DRAIN_SECONDS, run
from service.serving.collection import Serving
from service.settings import ServeSettings
from service.telemetry import logs
from service.telemetry.counters import VARIABLE, counters_folder

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PATIENCE = 0.5
"""Seconds before the first new start of a worker that died, doubled up to `LONGEST` while it goes on dying."""
LONGEST = 30.0
TICK = 1.0
"""Seconds after which the supervisor looks around though nothing was heard."""
log = logging.getLogger("surematch.service")


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    strict: bool = False
    """It refuses collections with damage, which others serve whole."""
    ready: bool = False
    whole: bool = False
    """It began with collections that have no damage."""
    behind: set[str] = field(default_factory=set)
    """Names of the collections that the others have reloaded since it began to start."""
    silent: float = 0.0
    """Seconds since its last word, or its start."""
    asked: bool = False
    """Whether it is awake, with no answer yet."""
    hangs: bool = False
    """It was killed for that."""
    fault: str = ""
    """Why it ends, where it could say so."""


@dataclass(slots=True)
class _Reload:
    """A reload by all workers, asked for by one of them; by None, of one that started when the others reloaded."""

    asker: Connection | None
    name: str
    folder: Path
    """Where the collection of this name lies: a link may be pointed elsewhere while some have opened it."""
    asked: list[Connection]
    step: str = ""
    waiting: list[Connection] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Supervisor:
    """Keeps `settings.workers` processes answering on a bound socket; `run` returns their exit code."""

    def __init__(self, settings: ServeSettings, listening: socket.socket) -> None:
        self.settings = settings
        self.listening = listening
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._reload: _Reload | None = None
        """Under way."""
        self._queued: list[tuple[Connection, str, Path]] = []
        """Who asked for the next, the collection's name and where it lies."""
        self._greeted = False
        self._stopping: float | None = None
        self._deaths = 0
        self._longest_start = 0.0
        self._slow_starts = 0
        """Killed one after the other, for taking too long."""
        self._start_at: list[float] = []
        # a link may be pointed to another version at any time: workers are to serve one and the same
        self._folders = {name: resolved(folder) for name, folder in settings.folders.items()}

    def run(self) -> int:
        """Returns once all workers have ended: after a signal, when the first start of one fails, or when none is left
        and what should replace them says that it cannot start."""
        logging.config.dictConfig(logs.configuration(access=False))
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        shares = str(max(1, len(os.sched_getaffinity(0)) // self.settings.workers))
        with counters_folder() as metrics:
            os.environ |= {VARIABLE: metrics, **{name: os.environ.get(name, shares) for name in THREADS}}
            try:
                self._start_at = [0.0] * self.settings.workers
                return self._watch()
            finally:
                for worker in self._workers:
                    worker.process.kill()
                    worker.process.join()
                del os.environ[VARIABLE]
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _watch(self) -> int:
        before = time.monotonic()
        while self._workers or self._stopping is None:
            now = time.monotonic()
            if self._stopping is None:
                # a supervisor that was stopped itself, with all the others, has not been listening all that time
                self._rouse(min(now - before, 2 * TICK))
                due, self._start_at = sum(at <= now for at in self._start_at), [at for at in self._start_at if at > now]
                for _ in range(due):
                    if self._stopping is None:  # a signal may come while one before it is started
                        self._try_start()
            elif now > self._stopping:
                for worker in self._workers:
                    log.error("a worker does not stop and is killed", extra={"fields": {"pid": worker.process.pid}})
                return 1
            before = now
            # not for ever: a signal may come between the look at the clock and here
            timeout = min([TICK, *(max(0.0, due - now) for due in self._start_at)])
            heard = wait([end for worker in self._workers for end in (worker.pipe, worker.process.sentinel)], timeout)
            for worker in list(self._workers):
                if worker.pipe.poll():  # its last word may have come with its end, and after its turn
                    self._read(worker)
                if worker.process.sentinel in heard and not self._bury(worker):
                    return worker.process.exitcode or 1
        return 0

    def _rouse(self, passed: float) -> None:
        """Asks the workers whether they are awake, and kills one that says nothing for too long: it hangs.

        How long a start takes, those before have told (of the first start the others, once one is ready); if it takes
        longer by now, each further try has twice the time.
        """
        patience = self.settings.worker_silence_seconds
        until_ready = (patience + 10 * self._longest_start) * 2 ** min(self._slow_starts, 10)
        for worker in self._workers:
            worker.silent += passed
            hangs = worker.asked and worker.silent > patience
            if hangs or (self._longest_start and not worker.ready and worker.silent > until_ready):
                log.error("a worker hangs and is killed", extra={"fields": {"pid": worker.process.pid}})
                worker.process.kill()
                worker.hangs, worker.silent = True, 0.0
                self._slow_starts += not worker.ready
            elif worker.ready and not worker.asked and worker.silent > patience / 4:
                worker.asked, worker.silent = True, 0.0
                _send(worker.pipe, "awake", None)

    def _try_start(self) -> None:
        """`_start`, which may want for memory, processes or files: those who serve go on, and it is tried again."""
        try:
            self._start()
        except OSError as error:
            if not self._greeted:
                raise
            log.error("a worker cannot be started and is tried again: %s", error)
            self._start_at.append(time.monotonic() + LONGEST)

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        strict = any(worker.whole for worker in self._workers)
        given = (self.settings, dict(self._folders), self.listening, theirs, strict)
        process = self._context.Process(target=_work, args=given)
        process.start()
        theirs.close()  # so that the worker's end closes with it
        self._workers.append(_Worker(process, ours, strict))
        if self._stopping is not None:  # the signal came before this one was known, and did not reach it
            process.terminate()

    def _bury(self, worker: _Worker) -> bool:
        """Makes up for a worker that has ended; False where there is no use in another."""
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        mark_process_dead(worker.process.pid, os.environ[VARIABLE])  # type: ignore[no-untyped-call]
        if self._reload is not None and worker.pipe in self._reload.asked:
            self._reload.asked.remove(worker.pipe)
            self._did(worker.pipe)
        if self._stopping is not None:
            return True
        if worker.fault and (not self._greeted or self._is_last_hope(worker)):
            sys.stderr.write(f"surematch serve: {visible(worker.fault)}\n")  # the others' would be the same
            return False
        if not self._greeted and not worker.hangs:
            log.error("a worker ended while it started", extra={"fields": {"exit": worker.process.exitcode}})
            return False
        self._deaths = 0 if worker.ready else self._deaths + 1
        patience = min(PATIENCE * 2**self._deaths, LONGEST)
        fields = {"pid": worker.process.pid, "exit": worker.process.exitcode, "after": patience}
        log.error(
            "a worker ended and is replaced",
            extra={"fields": fields | ({"fault": worker.fault} if worker.fault else {})},
        )
        self._start_at.append(time.monotonic() + patience)
        return True

    def _is_last_hope(self, worker: _Worker) -> bool:
        """Whether nobody would answer after this one: an open port that is silent is worse than a closed one.

        One that was strict has not tried what the next may: to serve a damaged collection as well as it can.
        """
        return not self._workers and not worker.strict

    def _read(self, worker: _Worker) -> None:
        try:
            what, said = worker.pipe.recv()
        except (EOFError, OSError):  # its end is told by the process
            return
        silent, worker.silent, worker.asked = worker.silent, 0.0, False
        if what == "ready":
            worker.ready = True
            self._longest_start, self._slow_starts = max(self._longest_start, silent), 0
            greeting, worker.whole = said
            self._next()
            if not self._greeted and sum(one.ready for one in self._workers) == self.settings.workers:
                self._greeted = True
                sys.stdout.write(greeting)
                sys.stdout.flush()
        elif what == "fault":
            worker.fault = said
        elif what == "reload":
            try:
                self._queued.append((worker.pipe, said, resolved(self.settings.folders[said])))
            except CollectionError as error:
                _send(worker.pipe, "done", str(error))
            self._next()
        elif what == "did" and self._reload is not None:
            if said and self._reload.step != "take":
                self._reload.faults.append(said)
            if said and (self._reload.step == "take" or self._reload.asker is None):
                worker.process.terminate()  # it cannot follow the others; what replaces it begins where they are
            self._did(worker.pipe)

    def _next(self) -> None:
        """Begins another reload when none is under way; before those asked for, that of a worker behind the others."""
        if self._reload is not None:
            return
        for worker in self._workers:
            if worker.ready and worker.behind:
                name = worker.behind.pop()
                self._reload = _Reload(None, name, self._folders[name], [worker.pipe])
                self._step(self._reload, "open")
                return
        if self._queued:
            self._reload = _Reload(*self._queued.pop(0), [worker.pipe for worker in self._workers if worker.ready])
            self._step(self._reload, "open")

    def _step(self, reload: _Reload, step: str) -> None:
        """Has all do the next part of it; when there is none left to do it, it is over."""
        reload.step, reload.waiting = step, list(reload.asked)
        for pipe in reload.asked:
            _send(pipe, step, (reload.name, reload.folder))
        if not reload.asked:
            self._over(reload)

    def _did(self, pipe: Connection) -> None:
        """One worker did its part of the reload under way, or has ended: nobody waits for it any longer."""
        reload = self._reload
        if reload is None or pipe not in reload.waiting:
            return
        reload.waiting.remove(pipe)
        if reload.waiting:
            return
        if reload.step != "open" or not reload.asked:
            self._over(reload)
        elif reload.faults:
            self._step(reload, "drop")
        else:
            self._folders[reload.name] = reload.folder  # what starts from here on starts with it
            if reload.asker is not None:
                for worker in self._workers:
                    if worker.pipe in reload.asked:
                        worker.behind.discard(reload.name)
                    else:
                        worker.behind.add(reload.name)
            self._step(reload, "take")

    def _over(self, reload: _Reload) -> None:
        """Tells who asked what was wrong, or None where all serve it now; then it is the next one's turn."""
        self._reload = None
        if reload.asker is not None:
            _send(reload.asker, "done", " ".join(dict.fromkeys(reload.faults)) or None)
        self._next()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stopping is None:
            self._stopping = time.monotonic() + self.settings.drain_notice_seconds + DRAIN_SECONDS + 5
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.kill(worker.process.pid or 0, number)


def _send(pipe: Connection, what: str, said: str | tuple[str, Path] | None) -> None:
    with suppress(OSError):  # it is ending, and its end will be noticed
        pipe.send((what, said))


def _work(
    settings: ServeSettings, folders: dict[str, Path], listening: socket.socket, pipe: Connection, strict: bool
) -> None:
    """One worker, from the first to the last line."""
    os.setsid()  # Ctrl-C in a terminal goes to the supervisor alone, which passes it on
    share_arenas()
    number = os.getpid()
    # as it is, every count asks the system for that number, in case the process has forked; this one never does
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
    try:
        servings = Serving.open_all(settings, folders=folders)
        for serving in servings.values() if strict else ():  # others serve it whole
            if serving.collection.warnings:
                raise CollectionError(" ".join(serving.collection.warnings))
        run(settings, servings, listening, pipe)
    except SurematchError as error:
        _send(pipe, "fault", str(error))
        sys.exit(2)
