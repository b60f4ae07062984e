"""Jobs that are killed with the service, cancelled, fail, run out of disk or memory, and what they leave behind."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from index.collection import Collection
from index.errors import DiskFull, ReadOnly
from service.client import Calls, Client, ServiceProblem
from service.jobs import folder as job_folder
from service.jobs import runner as module
from service.jobs.runner import ENDED, Job, Jobs
from service.schemas.jobs import IndexJob, RecalibrateJob
from tests.service.conftest import ROOT, serving
from tests.service.gallery import GALLERY, KNOWN, UNKNOWN
from tests.service.jobs.helpers import INDEX, ended, until, write, written


def test_a_killed_service_takes_its_job_along_and_the_next_one_continues_it(folder: Path, collection: Path) -> None:
    write(folder / "data" / "many.csv", [(f"{text} {at}", label) for at in range(150) for text, label in GALLERY])
    with serving(collection, "--jobs", str(folder)) as server, Client(server.url) as api:
        id = api.start_job("index", {**INDEX, "data": ["data/many.csv"]}).id
        waiting = api.start_job("index", INDEX).id
        until(
            api, id, lambda job: job.progress is not None and job.progress.what == "encoding" and job.progress.done > 0
        )
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    assert json.loads((folder / id / "job.json").read_text())["state"] == "running"
    with serving(collection, "--jobs", str(folder)) as server, Client(server.url) as api:
        job = until(api, id, ended)
        assert (job.state, job.attempts) == ("succeeded", 2), job.error
        assert until(api, waiting, ended).state == "succeeded"
        opened = Collection.open(folder / id / "out")
        assert opened.size == 150 * len(GALLERY)
        opened.close()


def test_a_job_that_had_finished_when_the_service_was_killed_has_succeeded(folder: Path, link: Path) -> None:
    """What a kill between the end of a job's process and the note of it leaves: the result, and a job that runs."""
    texts: list[tuple[str, str | None]] = [(f"{text}{more}", label) for more in ("", " hall") for text, label in KNOWN]
    texts += [(f"{text}{more}", None) for more in ("", " hall") for text in UNKNOWN]
    with written(link) as opened:
        for vector, (_, label) in zip(opened.encoder.encode([text for text, _ in texts]), texts, strict=True):
            opened.feedback(vector, label)
    with serving(link, "--jobs", str(folder)) as server, Client(server.url) as api:
        ids = [api.start_job("index", INDEX).id, api.start_job("recalibrate", {}).id]
        assert [until(api, id, ended).state for id in ids] == ["succeeded"] * 2
    ids.append("half-done")  # a copy that was not calibrated yet
    shutil.copytree(folder / ids[1], folder / ids[2])
    (folder / ids[2] / "result.json").write_bytes(b"")
    for id in ids:
        path = folder / id / "job.json"
        left = json.loads(path.read_bytes()) | {"id": id, "state": "running", "ended": None, "result": None}
        path.write_text(json.dumps(left))
    with serving(link, "--jobs", str(folder)) as server, Client(server.url) as api:
        jobs = [until(api, id, ended) for id in ids]
        assert [(job.state, job.error) for job in jobs] == [("succeeded", None)] * 3
        assert [job.attempts for job in jobs] == [1, 1, 2]
        assert [job.result for job in jobs] == [f"{id}/out" for id in ids]
        assert api.promote_job(ids[1]).promoted


def test_a_stopped_service_interrupts_and_a_cancelled_job_leaves_nothing(folder: Path, collection: Path) -> None:
    write(folder / "data" / "many.csv", [(f"{text} {at}", label) for at in range(150) for text, label in GALLERY])
    with serving(collection, "--jobs", str(folder)) as server, Client(server.url) as api:
        id = api.start_job("index", {**INDEX, "data": ["data/many.csv"]}).id
        waiting = api.start_job("index", INDEX).id
        until(api, id, lambda job: job.state == "running" and job.progress is not None)
    assert json.loads((folder / id / "job.json").read_text())["state"] == "interrupted"
    with serving(collection, "--jobs", str(folder)) as server, Client(server.url) as api:
        assert api.cancel_job(waiting).state == "cancelled"
        until(api, id, lambda job: job.state == "running")
        assert api.cancel_job(id).state == "cancelled"
        assert not (folder / id / "out").exists()
        assert [path.name for path in (folder / id).iterdir() if path.name.startswith((".out", "out"))] == []
        with pytest.raises(ServiceProblem, match="The job is cancelled"):
            api.promote_job(id)
        assert [(job.id, job.state) for job in api.send(Calls.jobs()).jobs] == [
            (id, "cancelled"),
            (waiting, "cancelled"),
        ]
        assert api.delete_job(id).state == "cancelled"
        assert not (folder / id).exists()
        assert [job.id for job in api.send(Calls.jobs()).jobs] == [waiting]


def test_a_job_that_is_cancelled_or_refused_leaves_a_line(folder: Path, collection: Path, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    with serving(collection, "--jobs", str(folder), "--audit-log", str(audit)) as server, Client(server.url) as api:
        api.start_job("index", INDEX)
        waiting = api.start_job("recalibrate", {}).id
        api.cancel_job(waiting)
        with pytest.raises(ServiceProblem, match="no such file"):
            api.start_job("index", {**INDEX, "data": ["nowhere.csv"]})
    found = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [line["event"] for line in found] == ["job", "job", "cancel", "job", "failed"]
    assert (found[1]["job"], found[2]["job"], found[1]["collection"]) == (waiting, waiting, collection.name)


def test_a_job_that_fails_says_why_and_hurts_nobody(folder: Path, collection: Path) -> None:
    write(folder / "data" / "bad.csv", [("", "light_on")])
    with serving(collection, "--jobs", str(folder)) as server, Client(server.url) as api:
        job = until(api, api.start_job("index", {**INDEX, "data": ["data/bad.csv"]}).id, ended)
        assert job.state == "failed"
        assert job.error is not None
        assert "line 2" in job.error
        said = httpx2.get(f"{server.url}/v1/jobs/{job.id}/log")
        assert "line 2" in said.text
        assert said.headers["content-type"].startswith("text/plain")
        assert api.search([KNOWN[0][0]]).results[0].calibrated


def test_a_full_disk_ends_no_more_than_it_must(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner of jobs goes on when there is room again, and a job that was not queued leaves nothing."""
    real, full = module.replace_durably, False
    asked = IndexJob.model_validate({"kind": "index", "settings": INDEX})

    def replaced(path: Path, content: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    async def run() -> str:
        nonlocal full
        jobs = Jobs(folder, 1 << 33)
        await jobs.start()
        full = True
        with pytest.raises(DiskFull):
            await jobs.add("refused", asked, None)
        assert not (folder / "refused").exists()
        full = False
        await jobs.add("queued", asked, None)
        full = True
        await asyncio.sleep(1)
        full = False
        deadline = time.monotonic() + 120
        while (state := jobs.all()[0].state) not in ENDED and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        await jobs.add("late", asked, None)
        while jobs.all()[1].state != "running":
            await asyncio.sleep(0.01)
        full = True
        await jobs.stop()
        return state

    monkeypatch.setattr(module, "replace_durably", replaced)
    monkeypatch.setattr(module, "AGAIN", 0.2)
    assert asyncio.run(run()) == "succeeded"


def test_a_failed_recalibration_keeps_no_copy_of_the_collection(folder: Path, link: Path) -> None:
    """Else people who are deleted and erased from what is served would stay on the disk."""
    with serving(link, "--jobs", str(folder)) as server, Client(server.url) as api:
        job = until(api, api.start_job("recalibrate", {}).id, ended)
        assert job.state == "failed"
        assert list((folder / job.id).rglob("items.sqlite")) == []
        assert b"feedback" in (folder / job.id / "log.txt").read_bytes()
        assert api.delete_job(job.id) == job
        assert not (folder / job.id).exists()
        with pytest.raises(ServiceProblem, match="no job of this id"):
            api.delete_job(job.id)


def test_a_failed_training_keeps_its_checkpoints_and_nothing_else_that_was_made(tmp_path: Path) -> None:
    made = ("out/items.sqlite", ".out-copying-x/items.sqlite", ".out-building/items.sqlite", "out.run/checkpoint")
    for name in (*made, *job_folder.NOTES):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"{}")
    job_folder.clear(tmp_path, keep_run=True)
    assert {path.name for path in tmp_path.iterdir()} == {*job_folder.NOTES, "out.run"}
    job_folder.clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == job_folder.NOTES


def test_what_vanishes_while_a_job_is_removed_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version that was served before closes a moment later, and takes its SQLite log along."""
    real, job = os.unlink, tmp_path / "job"
    (job / "out").mkdir(parents=True)
    for name in ("items.sqlite", "items.sqlite-wal"):
        (job / "out" / name).touch()

    def unlink(path: str, *, dir_fd: int | None = None) -> None:
        real(path, dir_fd=dir_fd)
        if path.endswith("-wal"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr("shutil.os.unlink", unlink)
    job_folder.remove(job)
    assert not job.exists()


def test_a_job_whose_folder_cannot_be_removed_stays_on_the_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    async def run() -> None:
        jobs = Jobs(folder, 1 << 33)
        await jobs.start()
        asked = IndexJob.model_validate({"kind": "index", "settings": INDEX})
        job = await jobs.cancel(await jobs.add("one", asked, None))
        with monkeypatch.context() as patch:
            patch.setattr(job_folder, "remove", refused)
            with pytest.raises(ReadOnly, match=r"one: .*\(Permission denied\).*delete the job again"):
                await jobs.remove(job)
        assert jobs.all() == [job]
        shutil.rmtree(folder / "one")  # by hand
        await jobs.remove(job)
        assert jobs.all() == []
        assert await jobs.change("one", 0) is None
        await jobs.stop()

    asyncio.run(run())


async def succeeded(jobs: Jobs, job: Job) -> None:
    """Waits for its end, which is a good one."""
    async with asyncio.timeout(120):
        while job.state not in ENDED:
            job = await jobs.change(job.id, 10) or job
    assert job.state == "succeeded"


def test_a_job_that_is_cancelled_as_it_starts_stays_cancelled_and_the_next_one_runs(folder: Path) -> None:
    async def run() -> None:
        jobs = Jobs(folder, 1 << 33)
        await jobs.start()
        asked = IndexJob.model_validate({"kind": "index", "settings": INDEX})
        for name in ("one", "two"):
            job = await jobs.add(name, asked, None)
            while jobs._running != name or jobs._process is not None:
                await asyncio.sleep(0)
            assert jobs._process is None, "it is about to start"
            assert (await jobs.cancel(job)).state == "cancelled"
            assert not (folder / name / "out").exists()
            async with jobs.results:
                await jobs.remove(job)
            assert not (folder / name).exists()
        await succeeded(jobs, await jobs.add("three", asked, None))
        await jobs.stop()

    asyncio.run(run())


def test_a_job_imports_nothing_that_lies_in_its_folder(folder: Path, tmp_path: Path) -> None:
    """Whoever provides data may be able to write there."""

    async def run() -> None:
        jobs = Jobs(folder, 1 << 33)
        await jobs.start()
        asked = IndexJob.model_validate({"kind": "index", "settings": INDEX})
        await jobs.add("one", asked, None)
        waits = await jobs.add("two", asked, None)
        (folder / "two" / "ctypes.py").write_text(f"open({str(tmp_path / 'came-in')!r}, 'w')")
        await succeeded(jobs, waits)
        await jobs.stop()

    asyncio.run(run())
    assert not (tmp_path / "came-in").exists()


def test_what_a_waiting_job_takes_is_not_deleted(folder: Path) -> None:
    async def run() -> None:
        jobs = Jobs(folder, 1 << 33)
        shutil.copytree(folder / "encoder", folder / "one" / "out" / "encoder")
        asked = IndexJob.model_validate({"kind": "index", "settings": {**INDEX, "model": "one/out/encoder"}})
        await jobs.add("two", asked, None)
        assert jobs.needed_by("one") == "two"
        assert jobs.needed_by("two") is None
        await jobs.cancel(jobs.all()[0])
        assert jobs.needed_by("one") is None
        recalibrate = RecalibrateJob.model_validate({"kind": "recalibrate", "settings": {}})
        await jobs.add("three", recalibrate, folder / "one" / "out")
        assert jobs.needed_by("one") == "three"

    asyncio.run(run())


def test_why_a_recalibration_failed_is_not_buried_in_bars(folder: Path, link: Path) -> None:
    with serving(link, "--jobs", str(folder)) as server, Client(server.url) as api:
        job = until(api, api.start_job("recalibrate", {}).id, ended)
    assert job.state == "failed"
    assert job.progress is not None
    assert re.search(r"surematch recalibrate: .*feedback", job.error or "")
    assert not re.search(r"[━╸╺]|\d+/\d+|\d:\d\d:\d\d|  ", job.error or ""), job.error


@pytest.mark.parametrize(("size", "works"), [(10**7, True), (10**9, False)])
def test_a_jobs_memory_is_bounded(tmp_path: Path, size: int, works: bool) -> None:
    code = f"""
import os, sys
from service import job_process
job_process.main = lambda words: len(bytearray({size})) * 0
sys.exit(job_process.run(2**28, [["train"]], os.getppid()))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) is works, done.stderr
    assert ("MemoryError" in done.stderr) is not works
