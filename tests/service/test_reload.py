"""A new version takes over whole while people search; a damaged one does not; a stop finishes what it has begun."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from index.collection import Collection
from service.schemas.collection import ReloadReply
from service.serving.collection import HURT, Current, Serving
from service.settings import ServeSettings
from service.telemetry.metrics import Metrics
from tests.service.conftest import Server, serving, until
from tests.service.gallery import KNOWN

QUERIES = {"queries": [{"text": text} for text, _ in KNOWN[:4]], "coverage": 0.9}


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory, collection: Path, uncalibrated: Path) -> Path:
    """A folder with `one` and `two` (which shows no probability), and `current`, a link to the first."""
    folder = tmp_path_factory.mktemp("versions")
    shutil.copytree(collection, folder / "one")
    shutil.copytree(uncalibrated, folder / "two")
    return folder


def point(folder: Path, version: str) -> None:
    beside = folder / "beside"
    beside.symlink_to(folder / version)
    beside.rename(folder / "current")


class Crowd:
    """Clients that search without a pause until told to stop; counts (status, snapshot, calibrated) of the answers."""

    def __init__(self, server: Server, clients: int = 4) -> None:
        self.seen: Counter[tuple[int, str, bool]] = Counter()
        self.failed: list[Exception] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._search, args=(server.url,)) for _ in range(clients)]

    def _search(self, url: str) -> None:
        with httpx2.Client(base_url=url, timeout=30) as api:
            while not self._over.is_set():
                try:
                    reply = api.post("/v1/search", json=QUERIES)
                    body = reply.json()
                    kinds = {answer["calibrated"] for answer in body.get("results", [])}
                    assert len(kinds) == 1, kinds
                    entry = reply.status_code, str(body.get("snapshot")), kinds.pop()
                except Exception as error:
                    self.failed.append(error)
                    return
                with self._lock:
                    self.seen[entry] += 1

    def answered(self, more: int) -> None:
        """Returns once so many more requests are answered."""
        enough = self.seen.total() + more
        deadline = time.monotonic() + 60
        while self.seen.total() < enough and not self.failed:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def test_reloads_under_load_fail_no_request_and_mix_no_versions(versions: Path) -> None:
    times = int(os.environ.get("SUREMATCH_RELOADS", "8"))
    point(versions, "one")
    snapshots = {}
    for version in ("one", "two"):
        opened = Collection.open(versions / version)
        snapshots[version] = opened.snapshot_id
        opened.close()
    with serving(versions / "current") as server, httpx2.Client(base_url=server.url, timeout=60) as api:
        with Crowd(server) as crowd:
            for at in range(times):
                version = ("two", "one")[at % 2]
                point(versions, version)
                reply = api.post("/v1/admin/reload")
                assert reply.status_code == 200, reply.text
                ReloadReply.model_validate(reply.json(), strict=True)
                assert reply.json()["snapshot"] == snapshots[version]
                assert api.post("/v1/search", json=QUERIES).json()["snapshot"] == snapshots[version]
        assert not crowd.failed
        assert set(crowd.seen) == {(200, snapshots["one"], True), (200, snapshots["two"], False)}
        said = api.get("/metrics").text
        assert f'surematch_reloads_total{{result="serves"}} {times}.0' in said


@pytest.mark.parametrize("damage", ["encoder", "snapshot", "items", "gone"])
def test_a_damaged_version_is_refused_and_the_old_one_serves_on(versions: Path, tmp_path: Path, damage: str) -> None:
    point(versions, "one")
    bad = tmp_path / "bad"
    shutil.copytree(versions / "one", bad)
    if damage == "gone":
        shutil.rmtree(bad)
    elif damage == "items":
        (bad / "items.sqlite").unlink()
    else:
        files = {"encoder": bad / "encoder", "snapshot": bad / "snapshots"}
        victim = max(
            (file for file in files[damage].rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
        )
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    shutil.copytree(versions / "one", tmp_path / "one")
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "one")
    with serving(link) as server, httpx2.Client(base_url=server.url, timeout=60) as api:
        before = api.post("/v1/search", json=QUERIES).json()
        link.unlink()
        link.symlink_to(bad)
        refused = api.post("/v1/admin/reload")
        assert refused.status_code == 409
        assert refused.json()["type"] == "/problems/conflict"
        after = api.post("/v1/search", json=QUERIES).json()
        assert (after["snapshot"], after["results"]) == (before["snapshot"], before["results"])
        assert api.get("/readyz").json()["degraded"] is True
        link.unlink()
        link.symlink_to(tmp_path / "one")
        assert api.post("/v1/admin/reload").status_code == 200
        assert api.get("/readyz").json()["degraded"] is False


def test_a_start_on_what_is_damaged_is_told_of_until_it_is_mended(
    collection: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(collection, tmp_path / "c")
    next(folder.glob("snapshots/*/calibration.json")).write_bytes(b"{")

    async def served() -> None:
        metrics = Metrics("c")
        current = Current(ServeSettings(collection=folder, refresh_seconds=0.01), metrics, "c")

        def told() -> tuple[bool, float | None]:
            return current.degraded, metrics.registry.get_sample_value("surematch_degraded", {"collection": "c"})

        await current.start()
        assert told() == (True, 1.0)
        await asyncio.sleep(0.1)
        with contextlib.closing(Collection.open(folder, writable=True, compacts=False)) as writer:
            writer.snapshot()
        while current.degraded:
            await asyncio.sleep(0.01)
        assert told() == (False, 0.0)
        await current.stop()

    asyncio.run(served())
    assert len([said for said in caplog.messages if HURT in said and "calibration.json: has 1 bytes" in said]) == 1


@pytest.mark.parametrize("flags", [["--writable"], []], ids=["writing", "reading"])
def test_a_collection_that_was_moved_away_is_told_of_until_it_is_back(
    flags: list[str], collection: Path, tmp_path: Path
) -> None:
    """Who writes can do so no more; who reads answers from what it has."""
    folder = shutil.copytree(collection, tmp_path / "c")
    lost = 503 if flags else 200
    with serving(folder, *flags, "--refresh-seconds", "0.05") as server, httpx2.Client(base_url=server.url) as api:

        def told(status: int, degraded: bool | None) -> bool:
            reply = api.get("/readyz")
            return (reply.status_code, reply.json().get("degraded")) == (status, degraded)

        assert told(200, False)
        folder.rename(tmp_path / "away")
        until(lambda: told(lost, None if flags else True))
        assert api.get("/v1/collections").json()["collections"][0]["degraded"] is True
        assert api.post("/v1/search", json=QUERIES).status_code == 200
        (tmp_path / "away").rename(folder)
        until(lambda: told(200, False))


def test_a_writer_whose_link_points_elsewhere_acknowledges_nothing(collection: Path, tmp_path: Path) -> None:
    """Whoever opens the link next would not find it there. Point the link back, and it writes again."""
    for version in ("one", "two"):
        shutil.copytree(collection, tmp_path / version)
    point(tmp_path, "one")
    with (
        serving(tmp_path / "current", "--writable", "--refresh-seconds", "0.05") as server,
        serving(tmp_path / "current", "--refresh-seconds", "0.05") as reader,
        httpx2.Client(base_url=server.url, timeout=30) as api,
    ):
        item = {"items": [{"id": "new", "label": "music", "text": "play album hall"}]}
        assert api.put("/v1/items", json=item).status_code == 200
        (query, *_) = api.post("/v1/search", json=QUERIES).json()["query_ids"]
        version = api.get("/v1/calibration").json()["version"]
        sequence = api.get("/v1/collection").json()["sequence"]
        point(tmp_path, "two")
        for refused in (
            api.put("/v1/items", json=item),
            api.delete("/v1/items/new"),
            api.post("/v1/items:delete", json={"ids": ["new"]}),
            api.post("/v1/feedback", json={"query_id": query, "label": None}),
            api.put("/v1/admin/calibration", json={"id": version}),
            api.post("/v1/admin/recalibrate"),
            api.post("/v1/admin/snapshot"),
        ):
            assert (refused.status_code, refused.json()["type"]) == (503, "/problems/unavailable"), refused.url
            assert "its link points elsewhere" in refused.json()["detail"]
            assert "start the service anew" in refused.json()["detail"]
        until(lambda: api.get("/readyz").status_code == 503)
        reload = api.post("/v1/admin/reload")
        assert reload.status_code == 409
        assert f"points to {tmp_path / 'two'} now" in reload.json()["detail"]
        assert api.post("/v1/search", json=QUERIES).json()["sequence"] == sequence
        assert httpx2.get(f"{reader.url}/readyz").json()["degraded"] is False, "who reads serves on until a reload"
        point(tmp_path, "one")
        assert api.put("/v1/items", json=item).status_code == 200
        until(lambda: api.get("/readyz").status_code == 200)


def test_a_retired_version_is_closed_after_its_last_request(collection: Path) -> None:
    serving_ = Serving.open(ServeSettings(collection=collection))
    closed = threading.Event()
    real = serving_.collection.close
    serving_.collection.close = lambda: (real(), closed.set())[0]  # type: ignore[method-assign, func-returns-value]

    async def run() -> None:
        with serving_.used(), serving_.used():
            retiring = asyncio.create_task(serving_.retire())
            await asyncio.sleep(0.05)
            assert not closed.is_set()
        await retiring
        assert closed.is_set()

    asyncio.run(run())


def test_after_sigterm_readiness_turns_first_and_requests_are_still_answered(collection: Path) -> None:
    with serving(collection, "--drain-notice-seconds", "60") as server:
        with httpx2.Client(base_url=server.url, timeout=30) as api, Crowd(server) as crowd:
            crowd.answered(20)
            assert api.get("/readyz").status_code == 200
            server.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 30
            while (ready := api.get("/readyz")).status_code == 200:
                assert time.monotonic() < deadline
            assert ready.status_code == 503
            assert ready.headers["retry-after"]
            assert ready.headers["connection"] == "close"
            assert api.get("/healthz").status_code == 200
            crowd.answered(20)
        server.process.send_signal(signal.SIGTERM)  # who asks twice means at once
        assert server.process.wait(30) == 0
    assert not crowd.failed
    assert {status for status, _, _ in crowd.seen} == {200}


def test_restarts_under_load_fail_no_request_in_flight(collection: Path) -> None:
    """Clients that keep their connection, and leave when they are told to (`Connection: close`), lose nothing."""
    for _ in range(int(os.environ.get("SUREMATCH_RESTARTS", "1"))):
        with serving(collection, "--drain-notice-seconds", "2") as server:
            answered: Counter[int] = Counter()
            started = threading.Barrier(9, timeout=60)

            def client(url: str, answered: Counter[int], started: threading.Barrier) -> int:
                with httpx2.Client(base_url=url, timeout=30) as api:
                    for at in range(100_000):
                        reply = api.post("/v1/search", json=QUERIES)
                        answered[reply.status_code] += 1
                        if at == 0:
                            started.wait()
                        if reply.headers.get("connection") == "close":
                            return at
                raise AssertionError("never told to leave")

            with ThreadPoolExecutor(8) as pool:
                asking = [pool.submit(client, server.url, answered, started) for _ in range(8)]
                started.wait()
                server.process.send_signal(signal.SIGTERM)
                assert all(one.result(60) >= 1 for one in asking)
            assert server.process.wait(30) == 0
        assert set(answered) == {200}
