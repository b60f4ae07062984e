"""Where a training writes: what came to be there meanwhile is left alone, and two trainings never share a place."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import training.pipeline
from index.errors import SettingsError
from tests.training.conftest import Write, sentences
from training.cli import train
from training.runs.folder import FORMAT, new_folder
from training.runs.lock import LOCK, RunLock
from training.runs.run import Run
from training.runs.writing import settle

PROGRAM = "import sys; from training.cli import train; sys.exit(train(sys.argv[1:]))"


@pytest.fixture
def command(tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> list[str]:
    recipe = ("--batch-size", "16", "--learning-rate", "0.1", "--checkpoint-steps", "3")
    return [str(write_csv(sentences(8))), "--encoder", str(tiny_encoder), *recipe, "--out", str(tmp_path / "m")]


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens) -> None:
    """Calls `happens` when the training has begun."""
    real = training.pipeline.fit

    def fit(*args, **kwargs):
        happens()
        return real(*args, **kwargs)

    monkeypatch.setattr(training.pipeline, "fit", fit)


@pytest.mark.parametrize("what", ["folder", "file", "link"])
@pytest.mark.parametrize("flags", [(), ("--overwrite",)], ids=["plain", "overwrite"])
def test_what_came_to_be_at_the_place_stays_and_the_encoder_too(
    what: str, flags: tuple[str, ...], command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"

    def comes() -> None:
        if what == "folder":
            out.mkdir()
            (out / "notes.txt").write_text("precious")
        elif what == "file":
            out.write_text("precious")
        else:
            out.symlink_to(tmp_path / "elsewhere")

    meanwhile(monkeypatch, comes)
    with pytest.raises(SettingsError, match=r"left as it is\. The trained encoder is whole") as caught:
        train([*command, *flags])
    if what == "link":
        assert out.is_symlink()
    else:
        assert (out if what == "file" else out / "notes.txt").read_text() == "precious"
    assert not (tmp_path / "m.run").exists(), "it is finished"
    move, finished, name = shlex.split(str(caught.value).rpartition(": ")[2])
    assert (move, name) == ("mv", "NAME")
    Path(finished).rename(tmp_path / "kept")
    again = [*command[:-1], str(tmp_path / "more"), "--epochs", "1"]
    again[again.index("--encoder") + 1] = str(tmp_path / "kept")
    monkeypatch.undo()
    assert train(again) == 0, "what was kept is an encoder"


def test_a_model_that_came_to_be_is_replaced_only_where_that_was_said(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, out = tmp_path / "other", tmp_path / "m"
    assert train([*command[:-1], str(other)]) == 0
    (other / "mine").write_text("precious")
    meanwhile(monkeypatch, lambda: other.rename(out))
    with pytest.raises(SettingsError, match=r"m: came to be while this trained"):
        train(command)
    assert (out / "mine").read_text() == "precious"
    out.rename(other)
    assert train([*command, "--overwrite"]) == 0
    assert (out / "training.json").is_file()
    assert not (out / "mine").exists()


def test_a_model_that_is_replaced_and_cannot_be_removed_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "m"
    for version in ("old", "new"):
        with monkeypatch.context() as patch, new_folder(out, True, tmp_path) as folder:
            (folder / "training.json").write_text(json.dumps({"format": FORMAT, "version": version}))
            patch.setattr(
                "training.runs.folder.shutil.rmtree", lambda path, **how: None
            )  # as with a folder of another owner
    assert json.loads((out / "training.json").read_text())["version"] == "new"
    (left,) = tmp_path.glob(".m.*")
    assert str(left) in caplog.text


def test_one_training_at_a_time_into_a_place(command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "m.run"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *command, "--epochs", "9999"], stderr=subprocess.DEVNULL)
    while process.poll() is None and not any((run / "checkpoints").glob("checkpoint-*/objective.safetensors")):
        time.sleep(0.005)
    for flags in ((), ("--overwrite",), ("--resume",)):
        with pytest.raises(SettingsError, match=rf"Process {process.pid} is training .*m now\. Wait for it"):
            train([*command, "--epochs", "9999", *flags])
    assert (run / "run.json").is_file()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not list(tmp_path.glob(".*")), "what it leaves lies in the run folder"
    with pytest.raises(SettingsError, match="holds an interrupted run"):
        train([*command, "--epochs", "9999"])
    with pytest.raises(SettingsError, match=r"epochs was 9999\.0, is 1\.0"):
        train([*command, "--epochs", "1", "--resume"])
    assert train([*command, "--epochs", "1", "--overwrite"]) == 0
    assert not run.exists()


def test_a_training_that_ended_while_another_read_its_rows_is_not_replaced(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun = training.pipeline.prepare, []

    def prepare(settings, console):
        if not begun:
            begun.append(settings)
            assert train(command) == 0
        return real(settings, console)

    monkeypatch.setattr(training.pipeline, "prepare", prepare)
    with pytest.raises(SettingsError, match="m exists already"):
        train([*command, "--seed", "1"])
    assert '"seed": 0' in (tmp_path / "m" / "training.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "rows.csv"]


def test_a_lock_that_was_removed_with_its_run_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, folder = tmp_path / "m", tmp_path / "m.run"
    real, ended = fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        if not ended:  # the holder's last act, between our opening the file and locking it
            ended.append((folder / LOCK).unlink())
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = RunLock(folder, out)
    assert (folder / LOCK).read_text() == f"{os.getpid()}\n"
    with pytest.raises(SettingsError, match="is training"):
        RunLock(folder, out)
    lock.release()
    RunLock(folder, out).release()


def test_without_locks_one_still_trains(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert train(command) == 0


def test_a_run_folder_of_something_else_is_left_alone(command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "m.run"
    run.mkdir()
    (run / "notes.txt").write_text("precious")
    with pytest.raises(SettingsError, match=r"m\.run is in the way and not a run of ours"):
        train(command)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]
    (run / "notes.txt").rename(tmp_path / "notes.txt")
    run.rmdir()
    run.write_text("precious")
    with pytest.raises(SettingsError, match="is in the way"):
        train(command)
    run.unlink()
    run.mkdir()  # its process was killed before it could say whose it is
    (run / LOCK).touch()
    assert train(command) == 0


def test_an_encoder_that_cannot_be_moved_stays_in_the_run_folder(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rename

    def refuse(path: Path, to: Path) -> Path:
        if path.name == "encoder":
            raise PermissionError(13, "Permission denied")
        return real(path, to)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", refuse)
        with pytest.raises(SettingsError, match=r"The trained encoder is whole, in .*m\.run.encoder"):
            train(command)
    kept = tmp_path / "m.run" / "encoder"
    assert (kept / "training.json").is_file()
    with pytest.raises(SettingsError, match="is a trained encoder that did not come to its place"):
        train(command)
    assert train([*command, "--overwrite"]) == 0
    assert not kept.exists()


def test_a_refused_resume_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(SettingsError, match="no interrupted run"),
        Run(tmp_path / "m", {}).begun(resume=True, overwrite=False),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mask", "others"), [(0o077, 0), (0o022, 0o055)])
def test_a_trained_folder_is_as_readable_as_the_umask_lets_it_be(tmp_path: Path, mask: int, others: int) -> None:
    before = os.umask(mask)
    try:
        with new_folder(tmp_path / "m", False, tmp_path) as folder:
            (folder / "1_Pooling").mkdir()
            for name in ("report.html", "1_Pooling/config.json"):
                (folder / name).touch()
            (folder / "model.safetensors").touch(0o600)
            settle(folder)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "m", *(tmp_path / "m").rglob("*"))}
    assert modes == {name: others if name in ("m", "1_Pooling") else others & 0o066 for name in modes}
