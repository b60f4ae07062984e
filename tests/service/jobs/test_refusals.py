"""What is no job, reads outside its folder, or has no folder to lie in is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from index.errors import SettingsError
from service.client import Client, ServiceProblem
from service.http import keys
from service.jobs.runner import Jobs
from service.schemas.jobs import TrainSettings
from tests.pictures import write_digits
from tests.service.conftest import ROOT, Server, serving
from tests.service.gallery import GALLERY
from tests.service.jobs.helpers import ended, until, write, write_image_encoder
from tests.service.test_hostile import problem
from training import config


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
