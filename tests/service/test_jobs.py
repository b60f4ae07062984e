"""Jobs over a socket, in real processes: run, watched, cancelled, killed with the service and continued, promoted."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sentence_transformers import SentenceTransformer

from index.collection import Collection
from index.encoders.files import RECORD
from index.encoders.image_network import ImageNetwork
from index.errors import DiskFull, ReadOnly, SettingsError
from service.client import Calls, Client, ServiceProblem
from service.http import keys
from service.jobs import folder as job_folder
from service.jobs import runner as module
from service.jobs.runner import ENDED, Jobs
from service.schemas.jobs import IndexJob, JobReply, RecalibrateJob, TrainSettings
from tests.pictures import write_digits
from tests.service.conftest import ROOT, Server, serving
from tests.service.gallery import CALIBRATION, GALLERY, KNOWN, UNKNOWN, write_encoder
from tests.service.test_hostile import problem
from training import config

INDEX = {
    "model": "encoder",
    "data": ["data/items.csv"],
    "calibrate": ["data/known.csv"],
    "unknown": ["data/unknown.csv"],
}


def write(path: Path, rows: Sequence[tuple[str, str | None]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((text, label or "") for text, label in rows)])


def write_image_encoder(path: Path) -> None:
    network = ImageNetwork(size=16, width=8, dimension=8)
    SentenceTransformer(modules=[network], device="cpu").save_pretrained(str(path), create_model_card=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of jobs with data and an encoder in it."""
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    write_encoder(jobs / "encoder")
    write(jobs / "data" / "items.csv", GALLERY)
    write(jobs / "data" / "known.csv", [row for row in CALIBRATION if row[1]])
    write(jobs / "data" / "unknown.csv", [row for row in CALIBRATION if not row[1]])
    return jobs


@pytest.fixture
def link(collection: Path, tmp_path: Path) -> Path:
    """What is served: a link to a copy of the collection."""
    shutil.copytree(collection, tmp_path / "home")
    (tmp_path / "current").symlink_to(tmp_path / "home")
    return tmp_path / "current"


def test_jobs_do_not_lie_in_a_collection(collection: Path) -> None:
    for folder in (collection, collection / "jobs"):
        with pytest.raises(SettingsError, match="lies in a collection"):
            Jobs(folder, 0)
    assert not (collection / "jobs").exists()


def test_what_a_training_job_is_not_told_is_as_on_the_command_line() -> None:
    """None leaves the flag away, and with it the choice to the command."""
    for name, field in TrainSettings.model_fields.items():
        if not field.is_required() and field.default is not None:
            assert field.default == config.TrainSettings.model_fields[name].default, name


def until(api: Client, id: str, done: Callable[[JobReply], bool], seconds: float = 240) -> JobReply:
    """Jobs run at low priority: beside other tests they may get a tenth of a core."""
    deadline = time.monotonic() + seconds
    while not done(job := api.job(id)):
        assert job.state in ("queued", "running", "interrupted"), f"{job}\n{api._http.get(f'/v1/jobs/{id}/log').text}"
        assert time.monotonic() < deadline, f"{job}\n{api._http.get(f'/v1/jobs/{id}/log').text}"
        time.sleep(0.05)
    return job


def ended(job: JobReply) -> bool:
    return job.state in ("succeeded", "failed", "cancelled")


def test_an_indexed_collection_is_served_once_it_is_promoted_unless_it_is_damaged(
    folder: Path, link: Path, tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    with (
        serving(link, "--jobs", str(folder), "--audit-log", str(audit)) as server,
        Client(server.url, timeout=60) as api,
    ):
        before = api.collection()
        started = api.start_job("index", INDEX)
        assert started.state in ("queued", "running")
        events = []
        with httpx2.stream("GET", f"{server.url}/v1/jobs/{started.id}/events", timeout=60) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for line in stream.iter_lines():
                if line:
                    assert line.startswith("data: ")
                    events.append(JobReply.model_validate_json(line.removeprefix("data: "), strict=True))
        job = api.job(started.id)
        assert events[-1] == job
        assert (job.state, job.error, job.attempts, job.result) == ("succeeded", None, 1, f"{job.id}/out")
        assert job.progress is not None
        assert {entry.state for entry in events} >= {"running", "succeeded"}
        assert api.collection().snapshot == before.snapshot, "nothing is served before it is promoted"
        target, weights = link.readlink(), folder / job.id / "out" / "encoder" / "model.safetensors"
        sound = weights.read_bytes()
        weights.write_bytes(b"x")
        with pytest.raises(ServiceProblem, match="refused and the old one serves on") as refused:
            api.promote_job(job.id)
        assert refused.value.status == 409
        assert (link.readlink(), api.collection().snapshot) == (target, before.snapshot)
        assert not api.job(job.id).promoted
        spare = until(api, api.start_job("index", INDEX).id, ended).id
        weights.write_bytes(sound)
        assert api.promote_job(job.id).promoted
        after = api.collection()
        assert after.snapshot != before.snapshot
        assert link.resolve() == folder / job.id / "out"
        answer = api.search([KNOWN[0][0]]).results[0]
        assert answer.decision is not None
        assert answer.decision.label == KNOWN[0][1]
        with pytest.raises(ServiceProblem, match="current is served from what this job made") as kept:
            api.delete_job(job.id)
        assert kept.value.status == 409
        assert api.promote_job(spare).promoted
        assert api.delete_job(job.id).promoted
        assert not (folder / job.id).exists()
        with pytest.raises(ServiceProblem, match="no job of this id"):
            api.job(job.id)
        link.unlink()
        link.symlink_to(target)  # by hand, and not reloaded: the other is still what answers
        with pytest.raises(ServiceProblem, match="is served from what this job made"):
            api.delete_job(spare)
        api.reload()
        assert api.delete_job(spare).id == spare
        assert api.search([KNOWN[0][0]]).results[0].decision is not None
    logged = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(line["event"], line.get("job")) for line in logged] == [
        ("job", job.id), ("promote", job.id), ("failed", None), ("job", spare), ("promote", job.id), ("search", None),
        ("promote", spare), ("remove", job.id), ("reload", None), ("remove", spare), ("search", None),
    ]  # fmt: skip
    assert (logged[0]["kind"], logged[0]["collection"]) == ("index", None)
    with serving(link, "--jobs", str(folder)) as server, Client(server.url) as api:
        assert api.collection().snapshot == before.snapshot
        assert api.send(module_jobs()).jobs == []


@contextlib.contextmanager
def written(collection: Path) -> Iterator[Collection]:
    opened = Collection.open(collection, writable=True)
    try:
        yield opened
    finally:
        opened.close()


def test_feedback_recalibrates_a_copy_that_is_promoted_unless_writes_came_between(folder: Path, link: Path) -> None:
    texts: list[tuple[str, str | None]] = [*KNOWN, *((text, None) for text in UNKNOWN)]
    texts += [(f"{text} hall", label) for text, label in texts]
    with written(link) as opened:
        vectors = opened.encoder.encode([text for text, _ in texts])
        for vector, (_, label) in zip(vectors, texts, strict=True):
            opened.feedback(vector, label)
    with serving(link, "--jobs", str(folder)) as server, Client(server.url) as api:

        def refused(job: JobReply) -> None:
            assert job.state == "succeeded", job.error
            with pytest.raises(ServiceProblem, match="changed since it was copied"):
                api.promote_job(job.id)

        def recalibrated() -> JobReply:
            return until(api, api.start_job("recalibrate", {"collection": None}).id, ended)

        own = api.calibration().version
        first = recalibrated()
        with written(link) as opened:
            opened.feedback(vectors[0], texts[0][1])
        refused(first)
        second = recalibrated()
        with written(link) as opened:
            chosen = opened.recalibrate().id
        refused(second)
        third = recalibrated()
        with written(link) as opened:
            opened.use_calibration(str(own))
        refused(third)
        with written(link) as opened:
            opened.use_calibration(chosen)
            opened.delete(["rows.csv:2"])
        refused(third)
        last = recalibrated()
        assert api.promote_job(last.id).promoted
        assert api.calibration().version not in (own, None)
        assert api.collection().items == 81


def test_a_recalibration_is_promoted_to_the_collection_it_is_a_copy_of(
    folder: Path, link: Path, tmp_path: Path
) -> None:
    shutil.copytree(link.resolve(), tmp_path / "other")
    (tmp_path / "faq").symlink_to(tmp_path / "other")
    with written(tmp_path / "faq") as opened:
        for text, label in [*KNOWN, *((text, None) for text in UNKNOWN)]:
            for asked in (text, f"{text} hall"):
                opened.feedback(opened.encoder.encode([asked])[0], label)
    both = (f"shop={link}", f"faq={tmp_path / 'faq'}")
    with serving(Path(both[0]), both[1], "--jobs", str(folder)) as server, Client(server.url) as api:
        job = until(api, api.start_job("recalibrate", {"collection": "faq"}).id, ended)
        assert job.state == "succeeded", job.error
        with pytest.raises(ServiceProblem, match="recalibrated faq, not shop"):
            api.promote_job(job.id, "shop")
        assert api.promote_job(job.id).promoted
    assert (tmp_path / "faq").resolve().is_relative_to(folder)
    assert link.resolve() == tmp_path / "home"


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
        assert [(job.id, job.state) for job in api.send(module_jobs()).jobs] == [
            (id, "cancelled"),
            (waiting, "cancelled"),
        ]
        assert api.delete_job(id).state == "cancelled"
        assert not (folder / id).exists()
        assert [job.id for job in api.send(module_jobs()).jobs] == [waiting]


def module_jobs() -> Any:

    return Calls.jobs()


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


def test_events_for_old_clients_come_without_chunks_and_end_with_the_connection(folder: Path, collection: Path) -> None:
    with serving(collection, "--jobs", str(folder)) as server, Client(server.url) as api:
        id = api.start_job("index", INDEX).id
        with socket.create_connection(server.address, timeout=60) as connection:
            connection.sendall(f"GET /v1/jobs/{id}/events HTTP/1.0\r\n\r\n".encode())
            api.cancel_job(id)
            said = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    events = body.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: {") for event in events)
    assert json.loads(events[-1].removeprefix("data: "))["state"] == "cancelled"


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


def test_a_job_reads_no_picture_outside_the_folder(folder: Path, collection: Path, tmp_path: Path) -> None:
    write_image_encoder(folder / "pictures")
    write_digits(folder / "data" / "scans", range(2), range(2))
    outside = write_digits(tmp_path / "outside", range(1), range(1)) / "d0" / "000.png"
    (folder / "data" / "inside.csv").write_text("path,label\nscans/d0/000.png,a\nscans/d1/001.png,b\n")
    (folder / "data" / "outside.csv").write_text(f"path,label\n{outside},a\n../../outside/d0/000.png,a\n")
    os.mkfifo(folder / "data" / "pipe.csv")
    with serving(collection, "--jobs", str(folder)) as server, Client(server.url, timeout=60) as api:
        asked = {"model": "pictures", "label": "label"}
        fine, refused = (
            until(api, api.start_job("index", {**asked, "data": [f"data/{name}.csv"]}).id, ended)
            for name in ("inside", "outside")
        )
        with pytest.raises(ServiceProblem, match="no such file below the folder of --jobs"):
            api.start_job("index", {**asked, "data": ["data/pipe.csv"]})
    assert fine.state == "succeeded", fine.error
    assert refused.state == "failed"
    assert refused.error is not None
    assert "2 files cannot be used" in refused.error
    assert refused.error.count("leads out of") == 2


@pytest.fixture(scope="module")
def refusing(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service whose folder of jobs has a link out of it."""
    base = tmp_path_factory.mktemp("refusing")
    for name in ("elsewhere", "jobs"):
        write(base / name / "x.csv", GALLERY)
    (base / "jobs" / "way-out").symlink_to(base / "elsewhere")
    with serving(collection, "--jobs", str(base / "jobs")) as server:
        yield server


@pytest.mark.parametrize(
    "path",
    [
        "../elsewhere/x.csv",
        "/etc/passwd",
        "no.csv",
        "",
        ".",
        "x/../..",
        "way-out/x.csv",
        "x.csv\0y",
        "--config=x.csv",
        "x" * 300,
    ],
)
def test_paths_stay_inside(refusing: Server, path: str) -> None:
    fine = {"model": "static", "data": ["x.csv"]}
    for settings in ({**fine, "data": [path]}, {**fine, "model": path}, {**fine, "calibrate": [path]}):
        reply = httpx2.post(f"{refusing.url}/v1/jobs", json={"kind": "index", "settings": settings})
        problem(reply, "invalid-request")
    assert httpx2.get(f"{refusing.url}/v1/jobs").json() == {"jobs": []}


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "train", "settings": {"data": ["x.csv"], "encoder": "someone/on-the-hub"}},
        {"kind": "train", "settings": {"data": ["x.csv"], "loss": "--overwrite"}},
        {"kind": "train", "settings": {"data": ["x.csv"], "out": "/tmp/x"}},
        {"kind": "shell", "settings": {}},
        {"kind": "index", "settings": {"data": ["x.csv"]}},
        {"kind": "recalibrate", "settings": {"collection": "../x"}},
        {},
    ],
)
def test_what_is_no_job_is_refused(refusing: Server, body: dict[str, Any]) -> None:
    problem(httpx2.post(f"{refusing.url}/v1/jobs", json=body), "invalid-request")


def test_jobs_are_off_without_a_folder_and_need_an_admin(
    server: Server, collection: Path, folder: Path, tmp_path: Path
) -> None:
    for method, path in (("GET", ""), ("POST", ""), ("GET", "/x"), ("DELETE", "/x"), ("GET", "/x/events")):
        reply = httpx2.request(method, f"{server.url}/v1/jobs{path}", json={} if method == "POST" else None)
        problem(reply, "conflict")
    file = tmp_path / "keys.json"
    writer, admin = (keys.add(file, name, [name]) for name in ("write", "admin"))
    with serving(collection, "--jobs", str(folder), "--keys", str(file)) as guarded:
        for key, status in ((writer, 403), (admin, 200)):
            assert httpx2.get(f"{guarded.url}/v1/jobs", headers={"X-Api-Key": key}).status_code == status
        assert httpx2.get(f"{guarded.url}/v1/jobs").status_code == 401
        command = [sys.executable, "-m", "service.cli", "serve", str(collection), "--port", "0", "--jobs", str(folder)]
        other = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert other.returncode == 2
        assert "another service runs the jobs there" in other.stderr
        assert "Traceback" not in other.stderr


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
        last = await jobs.add("three", asked, None)
        async with asyncio.timeout(120):
            while last.state not in ENDED:
                last = await jobs.change("three", 10) or last
        assert last.state == "succeeded"
        await jobs.stop()

    asyncio.run(run())


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


def test_faulty_pictures_are_left_out_where_a_job_is_told_so(folder: Path, collection: Path) -> None:
    write_image_encoder(folder / "pictures")
    write_digits(folder / "people", range(2), range(3))
    (folder / "people" / "d0" / "torn.png").write_bytes(b"no picture")
    asked = {"model": "pictures", "data": ["people"]}
    with serving(collection, "--jobs", str(folder)) as server, Client(server.url, timeout=60) as api:
        strict = until(api, api.start_job("index", asked).id, ended)
        lenient = until(api, api.start_job("index", {**asked, "skip_faulty": True}).id, ended)
        said = httpx2.get(f"{server.url}/v1/jobs/{lenient.id}/log").text
    assert strict.state == "failed"
    assert "torn.png" in (strict.error or "")
    assert lenient.state == "succeeded", lenient.error
    assert "torn.png" in said


def test_an_index_job_takes_the_label_column_of_the_training_unless_it_names_one(folder: Path, link: Path) -> None:
    rows = [("text", "intent", "room"), *((text, label, "hall") for text, label in GALLERY)]
    with (folder / "data" / "intents.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    (folder / "encoder" / RECORD).write_text(json.dumps({"settings": {"label": "intent"}}), encoding="utf-8")
    asked = {"model": "encoder", "data": ["data/intents.csv"]}
    with serving(link, "--jobs", str(folder)) as server, Client(server.url, timeout=60) as api:
        remembered = until(api, api.start_job("index", asked).id, ended)
        named = until(api, api.start_job("index", {**asked, "label": "room"}).id, ended)
    for job, labels in ((remembered, {label for _, label in GALLERY}), (named, {"hall"})):
        assert job.result is not None, job.error
        with contextlib.closing(Collection.open(folder / job.result)) as made:
            assert set(made.state.gallery.names) == labels


@pytest.mark.skipif("SUREMATCH_TRAIN_JOB" not in os.environ, reason="training takes long: make test-jobs")
def test_an_encoder_of_pictures_is_trained_and_indexed(folder: Path, link: Path) -> None:
    write_digits(folder / "people", range(4), range(12))
    asked = {"data": ["people"], "encoder": "image", "image_size": 16, "augment": "none", "epochs": 1.0}
    with serving(link, "--jobs", str(folder)) as server, Client(server.url, timeout=60) as api:
        model = until(api, api.start_job("train", asked).id, ended)
        assert model.state == "succeeded", model.error
        further = until(api, api.start_job("train", {**asked, "encoder": model.result}).id, ended)
        assert further.state == "succeeded", further.error
        job = until(api, api.start_job("index", {"model": further.result, "data": ["people"]}).id, ended)
        assert job.state == "succeeded", job.error
        assert api.promote_job(job.id).promoted
        found = api.search([(folder / "people" / "d1" / "000.png").read_bytes()]).results[0]
        assert found.hits[0].label == "d1"


@pytest.mark.skipif("SUREMATCH_TRAIN_JOB" not in os.environ, reason="training takes long: make test-jobs")
def test_a_trained_model_is_indexed_by_the_next_job(folder: Path, link: Path) -> None:
    with serving(link, "--jobs", str(folder)) as server, Client(server.url, timeout=60) as api:
        started = api.start_job("train", {"data": ["data/items.csv"], "epochs": 1.0})
        model = until(api, started.id, ended, seconds=240)
        assert model.state == "succeeded", model.error
        assert model.progress is not None
        assert model.progress.what == "training"
        with pytest.raises(ServiceProblem, match="A model is not served: index with it"):
            api.promote_job(model.id)
        job = until(api, api.start_job("index", {**INDEX, "model": model.result}).id, ended)
        assert job.state == "succeeded", job.error
        assert api.promote_job(job.id).promoted
        assert api.search([KNOWN[0][0]]).results[0].hits


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
