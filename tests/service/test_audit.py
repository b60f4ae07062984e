"""The audit log of a real server: every search and write leaves a line, and none holds what was asked."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import httpx2
import pytest
from fastapi import Request

from index.errors import DiskFull, SettingsError
from service.client import Client, ServiceProblem
from service.http import keys
from service.telemetry.audit import AuditLog
from tests.service.conftest import serving


def lines(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_searches_and_writes_leave_a_line_each(collection: Path, tmp_path: Path) -> None:
    folder, log = Path(shutil.copytree(collection, tmp_path / "home")), tmp_path / "audit.jsonl"
    with (
        serving(folder, "--writable", "--audit-log", str(log)) as server,
        httpx2.Client(base_url=server.url, timeout=60) as api,
    ):
        text = "turn on lamp kitchen secretly"
        reply = api.post("/v1/search", json={"queries": [{"text": text}, {"text": "score goal"}], "k": 2})
        answered = lines(log)
        assert len(answered) == 1, "the line is there when the answer is"
        item = {"id": "new/1", "label": "light_on", "text": "brighten lamp attic", "metadata": {"n": 1}}
        api.put("/v1/items", json={"items": [item]}, headers={"X-Request-Id": "mine-1"})
        api.put("/v1/items", json={"items": [{"id": "bad", "vector": [1.0]}]})
        api.delete("/v1/items/new/1")
        api.request("POST", "/v1/items:delete", json={"ids": ["a", "b"]})
        api.request("POST", "/v1/items:delete", json={"filter": {"n": 7}})
        api.get("/v1/search", params={"text": text})
        api.get("/v1/items/new/1")
    (search,) = answered
    assert search["event"] == "search"
    assert search["collection"] == "home"
    assert search["client"] == "127.0.0.1"
    assert [logged["query_id"] for logged in search["queries"]] == reply.json()["query_ids"]  # type: ignore[attr-defined]
    for logged, answer in zip(search["queries"], reply.json()["results"], strict=True):  # type: ignore[call-overload]
        assert logged["shown"] == [hit["id"] for hit in answer["hits"]]
        assert {name: logged[name] for name in ("label", "id", "probability")} == answer["decision"]
    found = lines(log)
    events = [line["event"] for line in found]
    assert events == ["search", "enrol", "enrol", "failed", "delete", "delete", "delete", "search"]
    assert found[1]["items"] == [{"id": "new/1", "label": "light_on"}]
    assert found[1]["request_id"] == "mine-1"
    assert [line.get("ids") for line in found[4:7]] == [["new/1"], ["a", "b"], None]
    assert found[6]["filter"] == {"n": 7}
    assert "secretly" not in log.read_text()
    assert "attic" not in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_feedback_and_what_operators_do_leave_a_line_each(collection: Path, tmp_path: Path) -> None:
    folder, log = Path(shutil.copytree(collection, tmp_path / "home")), tmp_path / "audit.jsonl"
    file = tmp_path / "keys.json"
    key = keys.add(file, "operator", ["search", "write", "admin"])
    with (
        serving(folder, "--writable", "--audit-log", str(log), "--keys", str(file)) as server,
        Client(server.url, key=key, timeout=60) as api,
    ):
        (query_id, other) = api.search(["turn on lamp secretly", "score goal"]).query_ids or []
        api.feedback(query_id, "light_on")
        api.feedback(other, None)
        calibration = str(api.calibration().version)
        api.use_calibration(calibration)
        api.snapshot()
        for refused in (
            lambda: api.reload(),  # of what this service writes itself
            lambda: api.recalibrate(),
            lambda: api.use_calibration("nobody"),
            lambda: api.feedback("unknown", None),
            lambda: api.feedback(query_id, "no such label"),
        ):
            with pytest.raises(ServiceProblem):
                refused()
    found = lines(log)
    assert [line["event"] for line in found] == [
        *("search", "feedback", "feedback", "calibration", "snapshot"),
        *("reload", "failed", "recalibrate", "failed", "calibration", "failed"),
    ]
    assert {(line["key"], line["collection"], line["client"]) for line in found} == {("operator", "home", "127.0.0.1")}
    assert [(line["query_id"], line["label"]) for line in found[1:3]] == [(query_id, "light_on"), (other, None)]
    assert [line["id"] for line in found if line["event"] == "calibration"] == [calibration, "nobody"]
    assert found[5]["request_id"] == found[6]["request_id"]
    assert "secretly" not in log.read_text()


@pytest.mark.parametrize(
    ("flags", "clients"),
    [([], ["127.0.0.1"] * 2), (["--trusted-proxies", "127.0.0.1"], [None, "192.0.2.7"])],
)
def test_a_client_is_who_a_trusted_proxy_says(
    collection: Path, tmp_path: Path, flags: list[str], clients: list[str | None]
) -> None:
    log = tmp_path / "audit.jsonl"
    with serving(collection, "--audit-log", str(log), *flags) as server:
        for said in ("Alice", "Alice, 192.0.2.7"):
            query = {"queries": [{"text": "turn on lamp"}]}
            httpx2.post(f"{server.url}/v1/search", json=query, headers={"X-Forwarded-For": said}).raise_for_status()
    assert [line["client"] for line in lines(log)] == clients


def test_what_cannot_be_logged_is_refused(collection: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this machine: a full disk was not tried")
    folder = Path(shutil.copytree(collection, tmp_path / "home"))
    with (
        serving(folder, "--writable", "--audit-log", "/dev/full") as server,
        httpx2.Client(base_url=server.url, timeout=60) as api,
    ):
        for refused in (
            api.post("/v1/search", json={"queries": [{"text": "turn on lamp"}]}),
            api.put("/v1/items", json={"items": [{"id": "new", "text": "turn on lamp"}]}),
            api.delete("/v1/items/intents.csv:2"),
            api.post("/v1/admin/reload"),
            api.post("/v1/admin/snapshot"),
        ):
            assert refused.status_code in (404, 507), refused.text
        paths = api.get("/openapi.json").json()["paths"]
        assert "507" in paths["/v1/search"]["post"]["responses"]
        assert api.get("/v1/items/new").status_code == 404


@pytest.mark.parametrize("taken_back", [True, False])
def test_a_line_that_was_cut_off_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_back: bool
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    request, real = Request({"type": "http", "headers": []}), os.write
    log.failed(request, "first")
    with monkeypatch.context() as patch:
        patch.setattr("service.telemetry.audit.os.write", lambda file, line: real(file, line[:9]))
        if not taken_back:
            patch.setattr("service.telemetry.audit.os.ftruncate", cannot)
        with pytest.raises(DiskFull, match="9 of"):
            log.failed(request, "lost")
    log.failed(request, "second")
    log.failed(request, "third")
    log.close()
    said = (tmp_path / "audit.jsonl").read_text().splitlines()
    whole = [json.loads(line)["collection"] for line in said if line.endswith("}")]
    assert whole == ["first", "second", "third"]
    assert len(said) == (3 if taken_back else 4)


def test_half_a_line_of_before_a_power_cut_spoils_none_of_after_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"time": "2026-01-01T00:00:00Z", "event": "sea')
    one, other = AuditLog(path), AuditLog(path)  # of two workers
    for log, name in ((one, "first"), (other, "second"), (one, "third")):
        log.failed(Request({"type": "http", "headers": []}), name)
    assert [json.loads(line)["collection"] for line in path.read_text().splitlines()[1:]] == [
        "first",
        "second",
        "third",
    ]
    for log in (one, other):
        log.close()


def test_a_log_that_was_moved_or_deleted_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "audit.jsonl"
    path.parent.mkdir()
    one, other = AuditLog(path), AuditLog(path)  # of two workers
    request = Request({"type": "http", "headers": []})
    one.failed(request, "before")
    moved = path.rename(path.with_suffix(".1"))
    one.failed(request, "first")
    other.failed(request, "second")
    assert [[line["collection"] for line in lines(log)] for log in (moved, path)] == [["before"], ["first", "second"]]
    path.unlink()
    other.failed(request, "third")
    assert [line["collection"] for line in lines(path)] == ["third"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shutil.rmtree(path.parent)
    with pytest.raises(DiskFull, match="No such file"):
        one.failed(request, "nowhere")
    path.parent.mkdir()
    one.failed(request, "fourth")
    assert [line["collection"] for line in lines(path)] == ["fourth"]
    one.close()
    other.close()


def cannot(file: int, size: int) -> None:
    raise OSError("cannot be cut")


def test_a_log_that_cannot_be_opened_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--audit-log .*cannot be written"):
        AuditLog(tmp_path / "missing" / "audit.jsonl")
