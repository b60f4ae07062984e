"""API keys: made once, kept as hashes, scoped, revoked without a restart, and never seen in a log."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from index.errors import SettingsError
from service.app import create_app
from service.http import keys
from service.http.access import scope_needed
from service.http.keys import SCOPES, Keys
from service.keys_cli import keys as command
from service.problems import Problem, response
from service.settings import ServeSettings
from service.telemetry.logs import JsonLines
from tests.service.conftest import ROOT, Server, serving
from tests.service.test_cli import SERVE, run

SEARCH = {"queries": [{"text": "turn on the kitchen light"}]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return {"file": str(file)} | {scope: keys.add(file, scope, [scope]) for scope in SCOPES}


@pytest.fixture(scope="module")
def locked(collection: Path, made: dict[str, str]) -> Iterator[Server]:
    with serving(collection, "--keys", made["file"], "--access-log") as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_shown_once_and_only_its_hash_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    assert command(["add", "shop", "--scope", "search", "--scope", "write", "--file", str(file)]) == 0
    key = capsys.readouterr().out.strip()
    assert key.startswith("sm_")
    secret = key.rpartition("_")[2] if "_" not in key[20:] else key[20:]
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = Keys(file).find(key)
    assert found is not None
    assert (found.name, found.scopes) == ("shop", ("search", "write"))
    assert command(["list", "--file", str(file)]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("shop\tsearch,write\t")
    assert secret not in listed
    assert command(["remove", "shop", "--file", str(file)]) == 0
    assert Keys(file).find(key) is None


def test_wrong_keys_are_not_found(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = keys.add(file, "one", ["search"])
    other = keys.add(file, "two", ["search"])
    store = Keys(file)
    last = "A" if key[-1] != "A" else "B"
    mixed = key[:20] + other[20:]
    for wrong in ("", "x", key[:-1], key[:-1] + last, key + "A", key.upper(), " " + key, mixed, "sm_" + "0" * 16, "ü"):
        assert store.find(wrong) is None, wrong
    assert store.find(key) is not None


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "-x", "ü"])
def test_a_name_is_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError):
        keys.add(tmp_path / "keys.json", name, ["search"])


def test_a_name_is_given_once_and_an_unknown_one_cannot_be_removed(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys.add(file, "shop", ["search"])
    with pytest.raises(SettingsError, match="already"):
        keys.add(file, "shop", ["admin"])
    with pytest.raises(SettingsError, match="There is: shop"):
        keys.remove(file, "shops")


_ADD_AND_REMOVE = """
import sys
from pathlib import Path
from service.http import keys
file, name = Path(sys.argv[1]), sys.argv[2]
for at in range(20):
    print(keys.add(file, f"{name}-{at}", ["search"]))
    keys.add(file, f"{name}-gone-{at}", ["search"])
    keys.remove(file, f"{name}-gone-{at}")
"""


def test_keys_made_and_removed_at_once_are_all_kept_and_gone(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _ADD_AND_REMOVE, str(file), name],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abcd"
    ]
    printed = [key for worker in workers for key in worker.communicate(timeout=60)[0].split()]
    assert [worker.returncode for worker in workers] == [0, 0, 0, 0]
    assert len(printed) == 80
    store = Keys(file)
    assert all(store.find(key) is not None for key in printed)
    assert len(keys.read(file)) == 80
    assert {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()} == {0o600}


def test_nothing_is_left_beside_a_file_of_keys_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        keys.remove(tmp_path / "keys.json", "shop")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 2, "keys": []}', '{"format": 1, "keys": [{"id": "x"}]}', "[" * 100_000],
    ids=["empty", "list", "object", "newer", "half", "deep"],
)
def test_a_damaged_file_of_keys_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)
    with pytest.raises(SettingsError, match="keys"):
        keys.read(file)


def test_words_without_effect_and_places_for_no_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    command(["add", "shop", "--file", str(file)])
    with pytest.raises(SettingsError, match=r"list shows all keys\. Leave shop out"):
        command(["list", "shop", "--file", str(file)])
    with pytest.raises(SettingsError, match=r"--scope: is given to a key that is added\. Leave it out to remove"):
        command(["remove", "shop", "--scope", "write", "--file", str(file)])
    assert [key.name for key in keys.read(file).values()] == ["shop"]
    with pytest.raises(SettingsError, match=r"more\.json: the keys cannot be written \(Not a directory\)"):
        command(["add", "shop", "--file", str(file / "more.json")])


def test_a_scope_nobody_knows_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys.add(file, "shop", ["search"])
    table = json.loads(file.read_text())
    table["keys"][0]["scopes"] = ["everything"]
    file.write_text(json.dumps(table))
    with pytest.raises(SettingsError, match="everything"):
        keys.read(file)


def test_a_file_others_may_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys.add(file, "shop", ["search"])
    file.chmod(0o666)
    with pytest.raises(SettingsError, match="chmod"):
        keys.read(file)


def test_a_removed_key_is_refused_without_a_restart_and_damage_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CHECK_EVERY", 0)
    file = tmp_path / "keys.json"
    kept, gone = keys.add(file, "kept", ["search"]), keys.add(file, "gone", ["search"])
    store = Keys(file)
    keys.remove(file, "gone")
    assert store.find(gone) is None
    assert store.find(kept) is not None
    file.write_text("half a fi")
    assert store.find(kept) is not None
    file.unlink()
    assert store.find(kept) is not None


def test_a_key_that_was_removed_while_the_file_could_not_be_read_is_refused_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "CHECK_EVERY", 0)
    file = tmp_path / "keys.json"
    key = keys.add(file, "thief", ["search"])
    store = Keys(file)
    keys.remove(file, "thief")
    file.chmod(0o620)
    assert [store.find(key) is not None for _ in range(3)] == [True] * 3
    assert len([said for said in caplog.messages if "chmod 600" in said]) == 1
    file.chmod(0o600)
    assert store.find(key) is None


def test_every_operation_states_its_scope_and_unknown_ones_need_admin(collection: Path, made: dict[str, str]) -> None:
    app = create_app(ServeSettings(collection=collection, keys=Path(made["file"])))
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            needed = scope_needed(method.upper(), path)
            assert operation.get("security") == ([{"key": [needed]}] if needed else None)
            assert ("401" in operation["responses"]) == (needed is not None)
    assert scope_needed("GET", "/v1/new") == "admin"
    assert scope_needed("POST", "/v1/search/") == "admin"
    assert scope_needed("PUT", "/v1/items") == scope_needed("DELETE", "/v1/items/7") == "write"
    assert scope_needed("GET", "/v1/items/7") == "search"


def test_scopes_over_a_socket(locked: Server, made: dict[str, str]) -> None:
    with httpx2.Client(base_url=locked.url) as api:
        assert api.get("/healthz").status_code == api.get("/readyz").status_code == api.get("/").status_code == 200
        nobody = api.post("/v1/search", json=SEARCH)
        assert nobody.status_code == 401
        assert nobody.headers["www-authenticate"] == "Bearer"
        assert nobody.json()["type"] == "/problems/unauthorized"
        assert api.post("/v1/search", json=SEARCH, headers=bearer("sm_wrong")).status_code == 401
        assert (
            api.post("/v1/search", json=SEARCH, headers={"Authorization": f"Basic {made['search']}"}).status_code == 401
        )
        assert api.post("/v1/search", json=SEARCH, headers=bearer(made["search"])).status_code == 200
        assert api.post("/v1/search", json=SEARCH, headers={"X-API-Key": made["search"]}).status_code == 200
        refused = api.post("/v1/search", json=SEARCH, headers=bearer(made["write"]))
        assert refused.status_code == 403
        assert "scope search" in refused.json()["detail"]
        assert api.get("/metrics").status_code == 401
        assert api.post("/v1/admin/reload", headers=bearer(made["search"])).status_code == 403
        assert api.get("/v1/nothing", headers=bearer(made["search"])).status_code == 403
        assert api.get("/v1/nothing", headers=bearer(made["admin"])).status_code == 404
        # with keys a foreign page cannot pose as this service, so any name is answered
        assert api.get("/healthz", headers={"Host": "search.example"}).status_code == 200


def test_the_log_has_ids_and_times_and_neither_texts_nor_keys(collection: Path, made: dict[str, str]) -> None:
    with serving(collection, "--keys", made["file"], "--access-log") as server:
        with httpx2.Client(base_url=server.url) as api:
            own = api.get("/v1/search", params={"text": "zanzibar"}, headers=bearer(made["search"]))
            given = api.get("/nowhere-zanzibar", headers={"X-Request-Id": "abc-1", **bearer(made["admin"])})
            forged = api.get("/healthz", headers={"X-Request-Id": 'x" "y'})
        server.process.terminate()
        assert server.process.stdout
        said = server.process.stdout.read()
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    by_id = {line["request_id"]: line for line in lines if line["message"] == "request"}
    assert (
        by_id[own.headers["x-request-id"]] | {"route": "/v1/search", "status": 200, "key": "search"}
        == by_id[own.headers["x-request-id"]]
    )
    assert by_id["abc-1"]["status"] == 404
    assert given.headers["x-request-id"] == "abc-1"
    assert '"' not in forged.headers["x-request-id"]
    assert "zanzibar" not in said
    assert all(made[scope] not in said for scope in SCOPES)


def test_beyond_loopback_keys_or_public_are_needed(tmp_path: Path, collection: Path, made: dict[str, str]) -> None:
    refused = run("serve", str(collection), "--host", "0.0.0.0", code=SERVE)
    assert refused.returncode == 2
    assert "surematch keys add" in refused.stderr
    missing = run("serve", str(collection), "--port", "0", "--keys", str(tmp_path / "none.json"), code=SERVE)
    assert missing.returncode == 2
    assert "none.json" in missing.stderr
    with serving(collection, "--host", "0.0.0.0", "--keys", made["file"]) as server:
        assert httpx2.get(f"{server.url}/v1/collection").status_code == 401


def test_commands_for_a_file_of_keys_can_be_pasted(tmp_path: Path) -> None:
    file = tmp_path / "my keys.json"
    with pytest.raises(SettingsError) as caught:
        keys.read(file)
    assert str(caught.value).endswith(f"surematch keys add NAME --file '{file}'")
    file.write_text("{}")
    file.chmod(0o622)
    with pytest.raises(SettingsError) as caught:
        keys.read(file)
    assert str(caught.value).endswith(f"Run: chmod 600 '{file}'")


def test_a_log_line_is_one_line_of_json() -> None:
    record = logging.LogRecord("a", logging.ERROR, __file__, 1, "two\nlines %s", ("x",), None)
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "two\nlines x"


def test_a_path_that_is_no_unicode_spoils_no_log_line_and_no_answer() -> None:
    path = os.fsdecode(b"caf\xe9/s")
    record = logging.LogRecord("a", logging.ERROR, __file__, 1, "%s is damaged", (path,), None)
    assert json.loads(JsonLines().format(record))["message"] == "caf\\udce9/s is damaged"
    answer = response(Problem("conflict", f"{path} is damaged"), "/v1/admin/reload")
    assert (answer.status_code, json.loads(bytes(answer.body))["detail"]) == (409, "caf\\udce9/s is damaged")


def test_the_environment_can_name_the_file(made: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SUREMATCH_KEYS", made["file"])
    assert ServeSettings(collection=Path("x")).keys == Path(made["file"])


def test_what_is_refused_is_counted_under_the_route_it_asked_for(locked: Server, made: dict[str, str]) -> None:
    with httpx2.Client(base_url=locked.url, timeout=30) as api:
        assert api.put("/v1/collections/home/items", json={"items": []}).status_code == 401
        assert api.delete("/v1/items/an/id", headers=bearer(made["search"])).status_code == 403
        large = {"queries": [{"text": "x" * 9_000_000}]}
        assert api.post("/v1/search", json=large, headers=bearer(made["search"])).status_code == 413
        assert api.get("/v1/nothing", headers=bearer(made["admin"])).status_code == 404
        said = api.get("/metrics", headers=bearer(made["search"])).text
    counted = re.findall(r'^surematch_requests_total{method="(\w+)",route="(.+)",status="(40[134]|413)"}', said, re.M)
    assert {
        ("PUT", "/v1/items", "401"),
        ("DELETE", "/v1/items/{id:id}", "403"),
        ("POST", "/v1/search", "413"),
        ("GET", "-", "404"),
    } <= set(counted)


def test_a_key_that_is_removed_while_the_file_is_first_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.json"
    gone, _ = keys.add(file, "gone", ["search"]), keys.add(file, "stays", ["search"])
    read, removed = keys.read, []

    def racing(path: Path) -> dict[str, keys.Key]:
        found = read(path)
        if not removed:
            removed.append(path)
            keys.remove(path, "gone")
        return found

    monkeypatch.setattr(keys, "read", racing)
    monkeypatch.setattr(keys, "CHECK_EVERY", 0)
    assert keys.Keys(file).find(gone) is None
