"""Several workers at one address, as real processes: they share the load, the dead are replaced, all stop together."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from index.calibration.drift import CHANGED
from index.collection import Collection
from service.telemetry.counters import PREFIX, counters_folder
from tests.service.conftest import ROOT, Server, serving, until
from tests.service.gallery import KNOWN, UNKNOWN
from tests.service.test_cli import run
from tests.service.test_reload import QUERIES, Crowd, point


@contextlib.contextmanager
def fleet(collection: Path, *flags: str) -> Iterator[Server]:
    with serving(collection, "--workers", "2", *flags) as server:
        yield server


def workers(server: Server) -> list[psutil.Process]:
    """The processes that answer, without the one that multiprocessing keeps for itself."""
    return [child for child in psutil.Process(server.process.pid).children() if "spawn_main" in _command(child)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it ended since it was listed, buried or not
        return ""


def counted(server: Server) -> dict[str, float]:
    """Requests each worker has answered, by its pid, from one scrape of whichever answers."""
    found = re.findall(r'^surematch_worker_requests{pid="(\d+)"} (\S+)', _metrics(server), re.MULTILINE)
    return {pid: float(count) for pid, count in found}


def _metrics(server: Server) -> str:
    return httpx2.get(f"{server.url}/metrics").text


def test_both_answer_metrics_tell_who_and_sum_up_and_a_killed_one_is_replaced(collection: Path) -> None:
    with fleet(collection) as server:
        first = {str(worker.pid) for worker in workers(server)}
        assert len(first) == 2
        asked = 0
        while set(counted(server)) != first or min(counted(server).values()) < 2:  # each scrape a new connection
            with Crowd(server, clients=4) as crowd:
                crowd.answered(20)
            assert not crowd.failed
            assert {status for status, _, _ in crowd.seen} == {200}
            asked += crowd.seen.total()
            assert asked < 5000
        (searches,) = re.findall(r'^surematch_requests_total{method="POST".*"200"} (\S+)', _metrics(server), re.M)
        assert float(searches) == asked
        victim = workers(server)[0]
        victim.kill()
        victim.wait(30)
        until(lambda: len(workers(server)) == 2)
        until(lambda: str(victim.pid) not in counted(server) and len(counted(server)) == 2)
        assert httpx2.post(f"{server.url}/v1/search", json=QUERIES).status_code == 200
        kept = workers(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert not any(worker.is_running() for worker in kept)


def test_drift_of_a_version_that_was_replaced_is_not_shown(collection: Path) -> None:
    strangers = {"queries": [{"text": text} for text in UNKNOWN[:8]]}

    def drift() -> list[float]:
        return [float(value) for value in re.findall(r"^surematch_drift{.*} (\S+)", _metrics(server), re.MULTILINE)]

    with fleet(collection) as server:
        assert all(math.isnan(value) for value in drift())
        deadline = time.monotonic() + 120
        while not any(value > CHANGED for value in drift()):
            assert time.monotonic() < deadline
            for _ in range(10):  # each on a new connection, which either worker may take
                assert httpx2.post(f"{server.url}/v1/search", json=strangers).status_code == 200
        assert httpx2.post(f"{server.url}/v1/admin/reload").status_code == 200
        assert all(math.isnan(value) for value in drift())


def test_a_stop_answers_on_every_connection_it_has(collection: Path) -> None:
    with fleet(collection, "--drain-notice-seconds", "1") as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx2.Client(base_url=server.url, timeout=30)) for _ in range(8)]
        for client in clients:
            assert client.post("/v1/search", json=QUERIES).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            assert client.post("/v1/search", json=QUERIES).status_code == 200
        assert server.process.wait(30) == 0


def test_a_stop_while_processes_are_started_reaches_all_of_them(collection: Path) -> None:
    words = ["serve", str(collection), "--workers", "32", "--port", "0", "--drain-notice-seconds", "0"]
    command = [sys.executable, "-c", "import sys; from service.cli import main; sys.exit(main(sys.argv[1:]))", *words]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    server = Server("", subprocess.Popen(command, cwd=ROOT, text=True, **output))  # type: ignore[call-overload]
    try:
        until(lambda: bool(workers(server)))
        server.process.terminate()
        said, _ = server.process.communicate(timeout=60)
    finally:
        server.process.kill()
    assert "killed" not in said
    assert server.process.returncode == 0


def test_workers_end_when_their_supervisor_is_killed(collection: Path) -> None:
    with fleet(collection) as server:
        mine = workers(server)
        server.process.kill()
        for worker in mine:
            worker.wait(30)


@pytest.fixture
def versions(collection: Path, uncalibrated: Path, tmp_path: Path) -> Path:
    """A folder with `one` and `two` (which shows no probability), and `current`, a link to the first."""
    shutil.copytree(collection, tmp_path / "one")
    shutil.copytree(uncalibrated, tmp_path / "two")
    point(tmp_path, "one")
    return tmp_path


def test_one_that_hangs_is_replaced_and_holds_no_reload_up(collection: Path) -> None:
    with fleet(collection, "--worker-silence-seconds", "2") as server:
        hanging, other = workers(server)
        hanging.suspend()
        assert httpx2.post(f"{server.url}/v1/admin/reload", timeout=60).status_code == 200
        assert hanging not in workers(server)
        until(lambda: len(workers(server)) == 2)
        assert other in workers(server), "it was asked, too, and has answered"


def test_one_that_hangs_while_it_starts_is_replaced(collection: Path) -> None:
    with fleet(collection, "--worker-silence-seconds", "2") as server:
        victim, other = workers(server)
        victim.kill()
        until(lambda: len(set(workers(server)) - {victim, other}) == 1)
        (hanging,) = set(workers(server)) - {victim, other}
        hanging.suspend()
        until(lambda: hanging not in workers(server), 300)  # ten times what a start takes, and more
        until(lambda: len(counted(server)) == 2)
        assert str(hanging.pid) not in counted(server)


def test_a_reload_is_every_workers(versions: Path) -> None:
    snapshots = {}
    for version in ("one", "two"):
        opened = Collection.open(versions / version)
        snapshots[version] = opened.snapshot_id
        opened.close()

    def served(server: Server) -> set[str]:
        """By several new connections, so that no worker is left out."""
        return {str(httpx2.post(f"{server.url}/v1/search", json=QUERIES).json()["snapshot"]) for _ in range(12)}

    with fleet(versions / "current") as server:
        with Crowd(server) as crowd:
            for version in ("two", "one", "two"):
                point(versions, version)
                reply = httpx2.post(f"{server.url}/v1/admin/reload", timeout=60)
                assert reply.status_code == 200, reply.text
                assert reply.json()["snapshot"] == snapshots[version]
                assert served(server) == {snapshots[version]}
        assert not crowd.failed
        assert set(crowd.seen) <= {(200, snapshots["one"], True), (200, snapshots["two"], False)}
        (versions / "current").unlink()
        refused = httpx2.post(f"{server.url}/v1/admin/reload", timeout=60)
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/conflict")
        assert served(server) == {snapshots["two"]}


def test_what_replaces_a_worker_serves_what_the_others_do(collection: Path, tmp_path: Path) -> None:
    for version in ("good", "damaged"):
        shutil.copytree(collection, tmp_path / version)
    for file in (tmp_path / "damaged").glob("snapshots/0*/vectors*"):
        file.write_bytes(file.read_bytes()[:-4] + b"####")
    point(tmp_path, "good")

    def answered(server: Server) -> set[tuple[str, bool]]:
        replies = [httpx2.post(f"{server.url}/v1/search", json=QUERIES).json() for _ in range(16)]
        return {(str(reply["snapshot"]), bool(reply["results"][0]["calibrated"])) for reply in replies}

    with fleet(tmp_path / "current") as server:
        before = answered(server)
        point(tmp_path, "damaged")
        assert httpx2.post(f"{server.url}/v1/admin/reload", timeout=60).status_code == 409
        first = {worker.pid for worker in workers(server)}
        for worker in workers(server):
            worker.kill()
            worker.wait(30)
            until(lambda: len(workers(server)) == 2)
            until(lambda: len(counted(server)) == 2)
        assert first.isdisjoint(worker.pid for worker in workers(server))
        assert answered(server) == before


def calibrated(server: Server) -> set[bool]:
    """What new connections are told, so many that no worker is left out."""
    replies = [httpx2.post(f"{server.url}/v1/search", json=QUERIES).json() for _ in range(16)]
    return {bool(reply["results"][0]["calibrated"]) for reply in replies}


@pytest.mark.parametrize("linked", [True, False])
def test_one_that_starts_while_the_others_reload_follows(versions: Path, linked: bool) -> None:
    with fleet(versions / ("current" if linked else "one")) as server:
        victim = workers(server)[0]
        victim.kill()
        victim.wait(30)
        until(lambda: len(workers(server)) == 2)  # the new one has begun to start, from where all serve
        time.sleep(0.2)
        if linked:
            point(versions, "two")
        else:
            (versions / "one").rename(versions / "away")
            (versions / "two").rename(versions / "one")
        assert httpx2.post(f"{server.url}/v1/admin/reload", timeout=60).status_code == 200
        until(lambda: len(counted(server)) == 2 and str(victim.pid) not in counted(server))
        until(lambda: calibrated(server) == {False})
        assert calibrated(server) == {False}


def test_what_one_worker_refuses_none_serves(versions: Path) -> None:
    with fleet(versions / "current") as server:
        point(versions, "two")
        poor = workers(server)[0]
        before = poor.rlimit(psutil.RLIMIT_NOFILE)
        poor.rlimit(psutil.RLIMIT_NOFILE, (poor.num_fds() + 3, before[1]))  # enough for requests, not for a collection
        refused = httpx2.post(f"{server.url}/v1/admin/reload", timeout=60)
        assert refused.status_code == 409, refused.text
        poor.rlimit(psutil.RLIMIT_NOFILE, before)
        assert calibrated(server) == {True}
        assert httpx2.get(f"{server.url}/readyz").json()["degraded"] is True
        assert httpx2.post(f"{server.url}/v1/admin/reload", timeout=60).status_code == 200
        assert calibrated(server) == {False}
        assert httpx2.get(f"{server.url}/readyz").json()["degraded"] is False


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_link_that_leads_to_itself_is_refused(versions: Path, count: str) -> None:
    with serving(versions / "current", "--workers", count) as server:
        point(versions, "current")
        refused = httpx2.post(f"{server.url}/v1/admin/reload", timeout=60)
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/conflict")
        assert calibrated(server) == {True}


def test_while_others_serve_a_worker_does_not_start_with_a_damaged_collection(versions: Path) -> None:
    with fleet(versions / "one") as server:
        vectors = next((versions / "one").glob("snapshots/0*/vectors*"))
        sound = vectors.read_bytes()
        damaged = versions / "damaged"
        damaged.write_bytes(sound[:-4] + b"####")
        damaged.replace(vectors)  # what serves has mapped or read the other file
        victim = workers(server)[0]
        victim.kill()
        victim.wait(30)
        until(lambda: len(workers(server)) == 2)  # it has begun to start
        until(lambda: len(workers(server)) == 1)  # and refuses
        assert calibrated(server) == {True}
        mended = versions / "mended"
        mended.write_bytes(sound)
        mended.replace(vectors)
        until(lambda: len(counted(server)) == 2 and str(victim.pid) not in counted(server))
        assert calibrated(server) == {True}
        server.process.terminate()
        assert server.process.stdout
        ends = [json.loads(line) for line in server.process.stdout if "is replaced" in line]
    assert "fault" not in ends[0], "it was killed"
    assert vectors.name in ends[1]["fault"]


def test_what_was_damaged_from_the_start_is_served_by_as_many_as_before(versions: Path) -> None:
    vectors = next((versions / "one").glob("snapshots/0*/vectors*"))
    vectors.write_bytes(vectors.read_bytes()[:-4] + b"####")
    with fleet(versions / "one") as server:
        assert calibrated(server) == {False}
        victim = workers(server)[0]
        victim.kill()
        victim.wait(30)
        until(lambda: len(counted(server)) == 2 and str(victim.pid) not in counted(server))


def damage(file: Path) -> None:
    """What serves has read or mapped the file that was there before."""
    damaged = file.with_name("damaged")
    damaged.write_bytes(file.read_bytes()[:-4] + b"####")
    damaged.replace(file)


@pytest.mark.parametrize("together", [True, False])
def test_when_none_is_left_and_none_can_start_the_service_ends_and_says_why(versions: Path, together: bool) -> None:
    with fleet(versions / "one") as server:
        assert server.process.stdout
        first, second = workers(server)
        damage(next((versions / "one" / "encoder").rglob("*.safetensors")))
        first.kill()
        if not together:
            assert any('"fault"' in line for line in server.process.stdout)
            assert calibrated(server) == {True}, "the other serves what it has open"
        second.kill()
        assert server.process.wait(60) == 2
        *_, said = server.process.stdout
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.url}/healthz")
    again = run(
        "serve", str(versions / "one"), "--port", "0", "--workers", "2", code="from service.cli import main; main"
    )
    assert (again.returncode, again.stderr) == (2, said)


@pytest.mark.parametrize("damaged", [False, True])
def test_when_none_is_left_others_start_as_well_as_they_can(versions: Path, damaged: bool) -> None:
    with fleet(versions / "one") as server:
        first, second = workers(server)
        if damaged:
            damage(next((versions / "one").glob("snapshots/0*/vectors*")))
        first.kill()
        until(lambda: len(set(workers(server)) - {first, second}) == 1)  # it may be strict: the second serves it whole
        second.kill()
        until(lambda: {first, second}.isdisjoint(workers(server)) and len(workers(server)) == 2)
        assert httpx2.get(f"{server.url}/healthz", timeout=60).status_code == 200
        assert calibrated(server) == {not damaged}


@pytest.mark.parametrize(("flags", "said"), [(["--writable"], "one writer"), ([], "not a collection")])
def test_what_cannot_be_served_by_several_is_said(tmp_path: Path, flags: list[str], said: str) -> None:
    code = "from service.cli import main; main"
    done = run("serve", str(tmp_path), "--port", "0", "--workers", "2", *flags, code=code)
    assert done.returncode == 2
    assert done.stderr.count(said) == 1
    assert "Traceback" not in done.stderr


def test_nothing_is_left_behind(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with fleet(collection) as server:
        assert len(list(tmp_path.iterdir())) == 1  # the workers' metrics
        assert httpx2.post(f"{server.url}/v1/search", json={"queries": [{"text": KNOWN[0][0]}]}).status_code == 200
    assert not list(tmp_path.iterdir())


def test_what_a_killed_service_left_is_removed_by_the_next(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with fleet(collection) as killed, fleet(collection) as other:
        orphans = workers(killed)
        killed.process.kill()
        killed.process.wait(30)
        psutil.wait_procs(orphans, 30)
        assert len(list(tmp_path.iterdir())) == 2
        with fleet(collection):
            assert len(list(tmp_path.iterdir())) == 2  # its own, and that of the service that goes on
        assert len(counted(other)) == 2
    assert not list(tmp_path.iterdir())


def test_only_what_nobody_holds_is_removed_and_what_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / f"{PREFIX}file").touch()
    others = set(tmp_path.iterdir())
    left = tmp_path / f"{PREFIX}left"
    left.mkdir()
    (left / "counter.db").touch()
    with monkeypatch.context() as another:
        another.setattr(os, "getuid", lambda: left.stat().st_uid + 1)
        with counters_folder() as one:
            assert set(tmp_path.iterdir()) == others | {left, Path(one)}
    with counters_folder() as one, counters_folder() as two:
        assert set(tmp_path.iterdir()) == others | {Path(one), Path(two)}
    assert set(tmp_path.iterdir()) == others


def test_counters_need_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(fcntl, "flock", refused)
    with counters_folder() as one, counters_folder() as two:
        assert set(tmp_path.iterdir()) == {Path(one), Path(two)}
    assert not list(tmp_path.iterdir())
