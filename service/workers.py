"""Several processes that answer at one address: a supervisor starts them, replaces the dead, and stops them together.

Each is started anew (spawned, not forked: a forked copy of threads and locks under way is a trap), opens the collection
for itself and shares the mapped index and the listening socket with the others. Only readers: a collection has one
writer.

They talk over one pipe each. A worker says "ready" and its greeting, asks for a "reload" of a collection by all of
them, and answers each, in the order they came, with "reloaded" and what was wrong, or None; the supervisor passes
"reload" on, and "done" back to who asked.
"""

from __future__ import annotations

import logging
import logging.config
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

from index.errors import SurematchError
from service import logs
from service.server import DRAIN_SECONDS, run
from service.serving import Serving
from service.settings import ServeSettings

METRICS = "PROMETHEUS_MULTIPROC_DIR"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PATIENCE = 0.5
"""Seconds before the first new start of a worker that died, doubled up to `LONGEST` while it goes on dying."""
LONGEST = 30.0
SHARED = "/dev/shm"
"""Memory as a folder, on Linux."""
log = logging.getLogger("surematch.service")


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    folders: dict[str, Path]
    """Where the collections lie that it serves, or will."""
    ready: bool = False


@dataclass(slots=True)
class _Reload:
    """A reload by all workers, asked for by one of them; by None, of one that started when the others reloaded."""

    asker: Connection | None
    asked: list[Connection]
    name: str
    folder: Path
    """Where the collection of this name lies now: what replaces a worker opens it there once all others serve it."""
    waiting: list[Connection] = field(init=False)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting = list(self.asked)


class Supervisor:
    """Keeps `settings.workers` processes answering on a bound socket; `run` returns their exit code."""

    def __init__(self, settings: ServeSettings, listening: socket.socket) -> None:
        self.settings = settings
        self.listening = listening
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._reloads: list[_Reload] = []
        self._greeted = False
        self._stopping: float | None = None
        self._deaths = 0
        self._start_at: list[float] = []
        # a link may be pointed to another version at any time: workers are to serve one and the same
        self._folders = {name: folder.resolve() for name, folder in settings.folders.items()}

    def run(self) -> int:
        """Returns once all workers have ended: after a signal, or when the first start of one fails."""
        logging.config.dictConfig(logs.configuration(access=False))
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        shares = str(max(1, len(os.sched_getaffinity(0)) // self.settings.workers))
        # files that are written through memory: on a full disk that is the end of the process
        place = SHARED if "TMPDIR" not in os.environ and os.access(SHARED, os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="surematch-metrics-", dir=place) as metrics:
            os.environ |= {METRICS: metrics, **{name: os.environ.get(name, shares) for name in THREADS}}
            try:
                self._start_at = [0.0] * self.settings.workers
                return self._watch()
            finally:
                for worker in self._workers:
                    worker.process.kill()
                    worker.process.join()
                del os.environ[METRICS]
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _watch(self) -> int:
        while self._workers or self._stopping is None:
            now = time.monotonic()
            if self._stopping is None:
                due, self._start_at = sum(at <= now for at in self._start_at), [at for at in self._start_at if at > now]
                for _ in range(due):
                    self._try_start()
            elif now > self._stopping:
                return 1
            # not for ever: a signal may come between the look at the clock and here
            timeout = min([1.0, *(max(0.0, due - now) for due in self._start_at)])
            heard = wait([end for worker in self._workers for end in (worker.pipe, worker.process.sentinel)], timeout)
            for worker in list(self._workers):
                if worker.pipe in heard:
                    self._read(worker)
                if worker.process.sentinel in heard and not self._bury(worker):
                    return worker.process.exitcode or 1
        return 0

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
        folders = dict(self._folders)
        process = self._context.Process(target=_work, args=(self.settings, folders, self.listening, theirs))
        process.start()
        theirs.close()  # so that the worker's end closes with it
        self._workers.append(_Worker(process, ours, folders))

    def _bury(self, worker: _Worker) -> bool:
        """Makes up for a worker that has ended; False where there is no use in another."""
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        mark_process_dead(worker.process.pid, os.environ[METRICS])  # type: ignore[no-untyped-call]
        self._forget(worker.pipe)
        if self._stopping is not None:
            return True
        if not self._greeted:
            log.error("a worker ended while it started", extra={"fields": {"exit": worker.process.exitcode}})
            return False
        self._deaths = 0 if worker.ready else self._deaths + 1
        patience = min(PATIENCE * 2**self._deaths, LONGEST)
        log.error(
            "a worker ended and is replaced",
            extra={"fields": {"pid": worker.process.pid, "exit": worker.process.exitcode, "after": patience}},
        )
        self._start_at.append(time.monotonic() + patience)
        return True

    def _read(self, worker: _Worker) -> None:
        try:
            what, said = worker.pipe.recv()
        except (EOFError, OSError):  # its end is told by the process
            return
        if what == "ready":
            worker.ready = True
            self._catch_up(worker)
            if not self._greeted and sum(one.ready for one in self._workers) == self.settings.workers:
                self._greeted = True
                sys.stdout.write(said)
                sys.stdout.flush()
        elif what == "reload":
            asked = [one.pipe for one in self._workers if one.ready]
            folder = self.settings.folders[said].resolve()
            self._ask(_Reload(worker.pipe, asked, said, folder))
        elif what == "reloaded":
            for reload in [one for one in self._reloads if worker.pipe in one.waiting][:1]:
                reload.faults += [said] if said else []
            self._forget(worker.pipe, first=True)

    def _ask(self, reload: _Reload) -> None:
        self._reloads.append(reload)
        for pipe in reload.asked:
            _send(pipe, "reload", reload.name)

    def _catch_up(self, worker: _Worker) -> None:
        """Has a worker that was not ready when the others reloaded do it now."""
        for name, folder in self._folders.items():
            if worker.ready and worker.folders[name] != folder:
                worker.folders[name] = folder
                self._ask(_Reload(None, [worker.pipe], name, folder))

    def _forget(self, pipe: Connection, *, first: bool = False) -> None:
        """No reload (or not the oldest) waits for this worker any longer; those complete are told to who asked."""
        waiting = [reload for reload in self._reloads if pipe in reload.waiting]
        for reload in waiting[:1] if first else waiting:
            reload.waiting.remove(pipe)
            if not reload.waiting:
                self._reloads.remove(reload)
                said = self._outcome(reload)
                if reload.asker is not None:
                    _send(reload.asker, "done", said)

    def _outcome(self, reload: _Reload) -> str | None:
        """What was wrong with the new version; None where all serve it, as those will that replace them."""
        if reload.faults:
            said, asked = " ".join(dict.fromkeys(reload.faults)), len(reload.asked)
            others = asked - len(reload.faults)
            return said if not others else f"{said} {others} of {asked} workers serve it nevertheless: reload again."
        self._folders[reload.name] = reload.folder
        for worker in self._workers:
            if worker.pipe in reload.asked:
                worker.folders[reload.name] = reload.folder
            self._catch_up(worker)
        return None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stopping is None:
            self._stopping = time.monotonic() + self.settings.drain_notice_seconds + DRAIN_SECONDS + 5
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.kill(worker.process.pid or 0, number)


def _send(pipe: Connection, what: str, said: str | None) -> None:
    with suppress(OSError):  # it is ending, and its end will be noticed
        pipe.send((what, said))


def _work(settings: ServeSettings, folders: dict[str, Path], listening: socket.socket, pipe: Connection) -> None:
    """One worker, from the first to the last line."""
    os.setsid()  # Ctrl-C in a terminal goes to the supervisor alone, which passes it on
    number = os.getpid()
    # as it is, every count asks the system for that number, in case the process has forked; this one never does
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
    try:
        run(settings, Serving.open_all(settings, folders=folders), listening, pipe)
    except SurematchError as error:
        sys.stderr.write(f"surematch serve: {error}\n")
        sys.exit(2)
