"""What supervisor and workers say to each other, message by message, without processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from index.errors import CollectionError
from service.serving.fleet import Fleet
from service.settings import ServeSettings
from service.workers import Supervisor, _Worker


class Process:
    """Notes whether it was told to end, or killed."""

    pid, exitcode = 1, -9
    ended = killed = False

    def join(self) -> None: ...

    def kill(self) -> None:
        self.killed = True

    def terminate(self) -> None:
        self.ended = True


class Workers:
    """A supervisor and the other ends of its workers' pipes."""

    def __init__(self, collection: Path, count: int) -> None:
        self.supervisor = Supervisor(ServeSettings(collection=collection, workers=count), socket.socket())
        self.supervisor._greeted = True
        self.pipes: list[Connection] = []
        for _ in range(count):
            self.add()

    def add(self, *, ready: bool = True) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        worker = _Worker(Process(), ours, ready=ready)  # type: ignore[arg-type]
        self.supervisor._workers.append(worker)
        self.pipes.append(theirs)
        return worker

    def close(self) -> None:
        self.supervisor.listening.close()
        for pipe in [*self.pipes, *(worker.pipe for worker in self.supervisor._workers)]:
            pipe.close()

    def say(self, which: int, what: str, said: object) -> None:
        self.pipes[which].send((what, said))
        self.supervisor._read(self.supervisor._workers[which])

    def heard(self, which: int) -> list[tuple[str, Any]]:
        """What was said to it, without where the collection lies."""
        found = []
        while self.pipes[which].poll():
            what, said = self.pipes[which].recv()
            found.append((what, said[0] if isinstance(said, tuple) else said))
        return found


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(tmp_path, 3)
    yield workers
    workers.close()


def name_of(workers: Workers) -> str:
    return next(iter(workers.supervisor.settings.folders))


def test_all_open_then_all_take_then_who_asked_is_told(three: Workers) -> None:
    name = name_of(three)
    three.say(1, "reload", name)
    assert [three.heard(one) for one in range(3)] == [[("open", name)]] * 3
    three.say(0, "did", None)
    three.say(2, "did", None)
    assert [three.heard(one) for one in range(3)] == [[]] * 3  # nobody takes what one has not opened
    three.say(1, "did", None)
    assert [three.heard(one) for one in range(3)] == [[("take", name)]] * 3
    for one in range(3):
        assert not three.heard(1)
        three.say(one, "did", None)
    assert [three.heard(one) for one in range(3)] == [[], [("done", None)], []]


def test_who_hangs_is_killed_and_who_answers_is_not(three: Workers) -> None:
    rouse, workers = three.supervisor._rouse, three.supervisor._workers
    rouse(29)  # of the 30 seconds; asked now for the first time
    assert [three.heard(one) for one in range(3)] == [[("awake", None)]] * 3
    rouse(29)
    assert not any(three.heard(one) for one in range(3)), "asked once"
    three.say(0, "awake", None)
    three.say(1, "did", None)  # any word will do
    rouse(2)
    assert [worker.process.killed for worker in workers] == [False, False, True]  # type: ignore[attr-defined]
    rouse(29)
    assert three.heard(0) == [("awake", None)]


def test_who_hangs_while_it_starts_is_killed_after_ten_starts_and_the_next_has_longer(three: Workers) -> None:
    supervisor = three.supervisor
    first = three.add(ready=False)
    supervisor._greeted = False
    supervisor._rouse(60)
    supervisor._rouse(60)
    assert not first.process.killed, "nobody knows how long it takes, and somebody is watching"  # type: ignore[attr-defined]
    three.say(3, "ready", ("greeting", True))
    supervisor._greeted = True
    supervisor._deaths = 5  # for other reasons
    for seconds in (30 + 10 * 120, 2 * (30 + 10 * 120)):
        worker = three.add(ready=False)
        supervisor._rouse(seconds)
        assert not worker.process.killed  # type: ignore[attr-defined]
        supervisor._rouse(1)
        assert worker.process.killed  # type: ignore[attr-defined]
        supervisor._workers.remove(worker)
        three.pipes.pop()
    three.add(ready=False)
    three.say(4, "ready", ("greeting", True))
    late = three.add(ready=False)
    supervisor._rouse(30 + 10 * 120 + 1)
    assert late.process.killed, "a good start ends that"  # type: ignore[attr-defined]


def test_who_hangs_in_the_first_start_is_replaced_once_another_is_ready(
    three: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, slow = three.supervisor, three.add(ready=False)
    monkeypatch.setattr("service.workers.mark_process_dead", lambda pid, folder: None)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "unused")
    supervisor._greeted = False
    supervisor._rouse(20)
    three.say(3, "ready", ("greeting", True))
    hanging, crashing = three.add(ready=False), three.add(ready=False)
    hanging.silent, crashing.silent = 30 + 10 * 20, 0
    supervisor._rouse(1)
    killed = [worker.process.killed for worker in (slow, hanging, crashing)]  # type: ignore[attr-defined]
    assert killed == [False, True, False]
    assert supervisor._bury(hanging), "another takes its place"
    assert supervisor._start_at
    assert not supervisor._bury(crashing), "it would crash again, and somebody is watching"


def test_who_does_not_stop_is_named(three: Workers, caplog: pytest.LogCaptureFixture) -> None:
    three.supervisor._stopping = 0.0
    assert three.supervisor._watch() == 1
    assert [record.message for record in caplog.records] == ["a worker does not stop and is killed"] * 3


def test_what_one_refuses_all_drop_and_the_next_in_the_queue_begins(three: Workers) -> None:
    name = name_of(three)
    three.say(0, "reload", name)
    three.say(2, "reload", name)
    assert three.heard(2) == [("open", name)]
    three.say(0, "did", None)
    three.say(1, "did", "damaged")
    three.say(2, "did", None)
    assert [three.heard(one) for one in range(3)] == [[("open", name), ("drop", name)]] * 2 + [[("drop", name)]]
    for one in range(3):
        three.say(one, "did", None)
    assert [three.heard(one) for one in range(3)] == [[("done", "damaged"), ("open", name)], *[[("open", name)]] * 2]


def test_one_that_became_ready_meanwhile_follows_and_is_replaced_when_it_cannot(three: Workers) -> None:
    name = name_of(three)
    late = three.add(ready=False)
    three.say(0, "reload", name)
    for _ in ("open", "take"):
        for one in range(3):
            three.say(one, "did", None)
    assert three.heard(0)[-1] == ("done", None)
    assert not three.heard(3)
    three.say(3, "ready", ("", True))
    assert three.heard(3) == [("open", name)]
    three.say(3, "did", "no more files")
    assert late.process.ended  # type: ignore[attr-defined]


def test_one_that_cannot_take_what_it_opened_is_replaced(three: Workers) -> None:
    three.say(0, "reload", name_of(three))
    for one in range(3):
        three.say(one, "did", None)
    for one, fault in enumerate([None, "a fault", None]):
        three.say(one, "did", fault)
    assert [worker.process.ended for worker in three.supervisor._workers] == [False, True, False]  # type: ignore[attr-defined]
    assert three.heard(0)[-1] == ("done", None)


def test_who_waits_for_a_reload_hears_that_the_supervisor_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: ended.append(pid))

    async def asked() -> None:
        ours, theirs = multiprocessing.Pipe()
        fleet = Fleet(ours, {})
        fleet.join()
        asking = asyncio.create_task(fleet.reload("any"))
        await asyncio.sleep(0)
        theirs.close()
        try:
            async with asyncio.timeout(5):
                await asking
        finally:
            ours.close()

    with pytest.raises(CollectionError, match="about to stop"):
        asyncio.run(asked())
    assert ended == [os.getpid()]
