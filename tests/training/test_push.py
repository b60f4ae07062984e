"""`surematch push`: what is sent, what stays here, and what a Hub that refuses or is not there leads to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from index.errors import EncoderError, SettingsError
from tests.training.conftest import sentences
from training.cli import push, train
from training.push import files_to_send, send

WHOLE = {
    "1_Normalize/config.json",
    "README.md",
    "config_sentence_transformers.json",
    "head.safetensors",
    "model.safetensors",
    "modules.json",
    "tokenizer.json",
    "trained_rows.npy",
    "training.json",
    "training.toml",
}


@pytest.fixture(scope="module")
def model(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    rows = sentences(8)
    lines = [f"{text},{label}" for text, label in [*rows, rows[0]]]
    (folder / "rows.csv").write_text("text,label\n" + "\n".join(lines), encoding="utf-8")
    command = [str(folder / "rows.csv"), "--encoder", str(tiny_encoder), "--epochs", "1", "--out", str(folder / "m")]
    assert train(command) == 0
    return folder / "m"


class FakeHub:
    """Takes what `HfApi` would be asked."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def create_repo(self, repository: str, **flags: Any) -> str:
        self.asked |= {"repository": repository, **flags}
        return f"https://hub.invalid/{repository}"

    def create_commit(self, repository: str, operations: list[Any], **flags: Any) -> None:
        self.asked["files"] = {operation.path_in_repo: operation for operation in operations}


def test_an_encoder_is_sent_whole_and_without_texts(model: Path, tmp_path: Path) -> None:
    hub: Any = FakeHub()
    assert (
        send(files_to_send(model, with_texts=False), "me/mine", private=True, api=hub) == "https://hub.invalid/me/mine"
    )
    assert (hub.asked["repository"], hub.asked["private"], hub.asked["exist_ok"]) == ("me/mine", True, True)
    assert set(hub.asked["files"]) == WHOLE
    for name, operation in hub.asked["files"].items():
        with operation.as_file() as file:
            content = file.read()
        target = tmp_path / "got" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        if name.endswith((".json", ".md", ".toml")) and name != "tokenizer.json":
            for text, _ in sentences(8):
                assert text.encode() not in content
    from sentence_transformers import SentenceTransformer

    sent, ours = (SentenceTransformer(str(folder), device="cpu") for folder in (tmp_path / "got", model))
    assert (sent.encode(["the card"]) == ours.encode(["the card"])).all()
    assert json.loads((tmp_path / "got" / "training.json").read_text())["data"]["report"] == []


def test_texts_are_sent_on_request(model: Path) -> None:
    files = files_to_send(model, with_texts=True)
    assert set(files) == {*WHOLE, "report.html", "evaluation.json"}
    content = files["training.json"]
    assert isinstance(content, bytes)
    assert json.loads(content)["data"]["report"][0]["text"] == sentences(8)[0][0]


def test_a_dry_run_lists_and_sends_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push([str(model), "me/mine", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert {line.split()[1] for line in shown.splitlines()[:-1]} == WHOLE
    assert "Nothing was sent" in shown


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a hub that answers 403 to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = b'{"error": "no right to write"}'
            self.send_response(403)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_that_refuses_or_is_not_there_is_named(
    model: Path, refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    files = files_to_send(model, with_texts=False)
    with pytest.raises(SettingsError, match=r"The Hub refused me/mine: .*403.*may write there"):
        send(files, "me/mine", private=True, api=HfApi(endpoint=refusing, token="hf_x"))
    with pytest.raises(SettingsError, match="The Hub gave no answer"):
        send(files, "me/mine", private=True, api=HfApi(endpoint="http://127.0.0.1:9", token="hf_x"))


def test_wrong_names_and_folders_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="OWNER/NAME"):
        push([str(model), "mine"])
    with pytest.raises(EncoderError, match="is not a folder that `surematch train` wrote"):
        push([str(tmp_path), "me/mine"])
