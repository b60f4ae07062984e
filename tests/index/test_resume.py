"""Builds that stream, use several processes, are killed, and continue."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest

from index import build as module
from index.build import build_collection
from index.collection import Collection
from index.data.rows import Row, RowFiles
from index.encoders import encode
from index.encoders.by_name import load_encoder
from index.encoders.encode import encode_stream
from index.errors import CollectionError, DataError, EncoderError, WorkerError
from index.intake import take_in
from index.items.store import ItemStore
from index.storage.place import BuildBegun, building
from index.verbs import cli
from tests.index.conftest import KNOWN, World, write_csv
from tests.index.helpers import sentences


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "BATCH", 16)
    monkeypatch.setattr(module, "_CHUNK", 2)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, chunks: int, error: BaseException) -> None:
    left, real = [chunks], ItemStore.upsert

    def upsert(self: ItemStore, items: list[object]) -> int:
        if not left[0]:
            raise error
        left[0] -= 1
        return real(self, items)  # type: ignore[arg-type]

    monkeypatch.setattr(ItemStore, "upsert", upsert)


def contents(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path / "items.sqlite")) as store:
        return store.execute("SELECT row, id, label, text, metadata, vector FROM items ORDER BY row").fetchall()


def test_an_interrupted_build_continues_where_it_was(
    world: World, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None
) -> None:
    out, rows = tmp_path / "c", RowFiles([world.items], text="text", label="label")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            build_collection(str(world.encoder), rows, out)
    with pytest.raises(BuildBegun, match=r"Continue it with --resume, or start over with --no-resume"):
        build_collection(str(world.encoder), rows, out, resume=None)
    asked: list[tuple[str, int, int]] = []
    build_collection(
        str(world.encoder), rows, out, resume=True, progress=lambda what, done, of: asked.append((what, done, of))
    )
    assert [done for what, done, _ in asked if what == "encoding"] == [128, 160, 180]
    assert contents(out) == contents(built)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]
    assert {path.name for path in out.iterdir()} == {path.name for path in built.iterdir()}
    opened = Collection.open(out)
    opened.close()
    assert opened.describe()["calibrated"]


def test_an_interrupted_command_says_how_to_go_on(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_batches: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(world.encoder), str(world.items), "--label", "label", "--out", str(tmp_path / "c"), "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(cli, "check_encoder", lambda model: None)
        patch.setattr(cli.Reader, "stream", interrupted)
        assert cli.index(command) == 130
        assert "nothing to continue" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, KeyboardInterrupt())
        assert cli.index(command) == 130
    assert "add --resume to the same command" in capsys.readouterr().err
    assert cli.index([*command, "--resume"]) == 0


def interrupted(*given: object, **more: object) -> None:
    raise KeyboardInterrupt


def test_other_data_or_another_encoder_is_not_continued(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None
) -> None:
    out, file = tmp_path / "c", Path(shutil.copyfile(world.items, tmp_path / "items.csv"))
    rows = RowFiles([file], text="text", label="label")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            build_collection(str(world.encoder), rows, out)
    content = file.read_text(encoding="utf-8")
    file.write_text(content.replace("card", "chip", 1), encoding="utf-8")
    with pytest.raises(BuildBegun, match=r"rows .*items\.csv sha256 was [0-9a-f]{12}\.\.\., now"):
        build_collection(str(world.encoder), rows, out, resume=True)
    file.write_text(content + "a card,card\n", encoding="utf-8")
    with pytest.raises(BuildBegun, match=r"items\.csv rows was 180, now 181"):
        build_collection(str(world.encoder), rows, out, resume=True)
    file.write_text(content, encoding="utf-8")
    other = Path(shutil.copytree(world.encoder, tmp_path / "other"))
    config = other / "config_sentence_transformers.json"
    config.write_text(config.read_text().replace('"query": ""', '"query": "find: "'))
    with pytest.raises(BuildBegun, match="encoder was"):
        build_collection(str(other), rows, out, resume=True)
    numbered = [dataclasses.replace(row, extra={"text": row.text}) for row in rows]
    with pytest.raises(BuildBegun, match="ids was file and line, now text"):
        build_collection(str(world.encoder), numbered, out, id_column="text", resume=True)
    with pytest.raises(DataError, match="has no column 'nr'"):
        build_collection(str(world.encoder), rows, out, id_column="nr", resume=True)
    with pytest.raises(EncoderError, match="No encoder"):
        build_collection("no-such-encoder", rows, out, resume=True)
    # the refusals lost nothing, and starting over is possible
    asked: list[tuple[str, int]] = []
    build_collection(
        str(world.encoder), rows, out, resume=True, progress=lambda what, done, of: asked.append((what, done))
    )
    assert next(done for what, done in asked if what == "encoding") == 96


_KILLED = """
import os, signal, sys
from pathlib import Path
from index import build
from index.encoders import encode
from index.items.store import ItemStore
from index.data.rows import RowFiles

encode.BATCH, build._CHUNK = 16, 2
real, left = ItemStore.upsert, [3]

def upsert(self, items):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return real(self, items)

if __name__ == "__main__":
    if sys.argv[4] == "kill":
        ItemStore.upsert = upsert
    rows = RowFiles([Path(sys.argv[2])], text="text", label="label")
    build.build_collection(sys.argv[1], rows, Path(sys.argv[3]), workers=2, resume=True)
"""


def test_kill_nine_loses_nothing_and_leaves_no_worker(world: World, built: Path, tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "c"
    script.write_text(_KILLED)
    command = [sys.executable, str(script), str(world.encoder), str(world.items), str(out)]
    killed = subprocess.run([*command, "kill"], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    with closing(sqlite3.connect(tmp_path / ".c-building" / "items.sqlite")) as store:
        assert store.execute("SELECT count(*) FROM items").fetchone() == (96,)
    deadline = time.monotonic() + 60
    while workers := [p.pid for p in psutil.process_iter() if str(script) in _command(p)]:
        assert time.monotonic() < deadline, f"workers outlive their parent: {workers}"
        time.sleep(0.1)
    subprocess.run([*command, "finish"], check=True, timeout=120)
    assert contents(out) == contents(built)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join([*process.cmdline(), process.environ().get("_", "")])
    except psutil.Error:
        return ""


def test_two_builds_of_one_place_do_not_mix(tmp_path: Path) -> None:
    with (
        building(tmp_path / "c") as folder,
        pytest.raises(CollectionError, match="another process is building it"),
        building(tmp_path / "c"),
    ):
        pass
    assert (tmp_path / "c").exists()
    assert not folder.exists()


@pytest.mark.parametrize("both", [True, False], ids=["the new one is there", "only the old one is there"])
def test_a_kill_in_the_middle_of_a_replacement_is_mended(copied: Path, both: bool) -> None:
    old = copied.with_name(f".{copied.name}-old")
    shutil.copytree(copied, old) if both else copied.rename(old)
    with building(copied):
        assert copied.exists()
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


def test_workers_agree_with_this_process_in_order(world: World) -> None:
    encoder, rows = load_encoder(world.encoder), world.rows(world.items) * 20
    done = list(encode_stream(encoder, world.encoder, rows, workers=2))
    assert [row for part in done for row in part.rows] == rows
    expected = encoder.encode([row.text for row in rows])
    np.testing.assert_array_equal(np.concatenate([part.vectors for part in done]), expected)


def test_a_bad_text_in_a_worker_is_named(world: World) -> None:
    rows = [*world.rows(world.items), Row("\u2028", "card", "x.csv", 7)]
    with pytest.raises(DataError, match=r"x\.csv: line 7: The encoder finds nothing"):
        list(encode_stream(load_encoder(world.encoder), world.encoder, rows, workers=2))


def test_a_dead_worker_is_told_and_the_build_can_be_resumed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None
) -> None:
    rows, out = RowFiles([world.items], text="text", label="label"), tmp_path / "c"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2, WorkerError("died"))
        with pytest.raises(WorkerError):
            build_collection(str(world.encoder), rows, out)
    build_collection(str(world.encoder), rows, out, resume=True)
    encoder = load_encoder(world.encoder)
    with pytest.raises(WorkerError, match="fewer --workers"):
        list(encode_stream(encoder, tmp_path / "no such folder", rows, workers=2))


def test_rows_stream(tmp_path: Path) -> None:
    """The first rows of a file come before its damaged end is read: nothing holds the whole of it."""
    path = write_csv(tmp_path / "rows.csv", sentences(1000, KNOWN))
    path.write_bytes(path.read_bytes() + b"\xff\n")
    rows = RowFiles([path], text="text", label="label")
    assert len(list(islice(rows, 100))) == 100
    with pytest.raises(DataError, match="line 3002 is not UTF-8"):
        take_in(rows, None, lambda what, done, of: None)
