"""A full disk is said, with how to go on, whichever library meets it; other faults stay what they are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from index.errors import DiskFull
from tests.training.conftest import Write, sentences
from training.cli import compare, train
from training.room import room_at, torch_saves_to

RUST = "No space left on device (os error 28)"
RECIPE = ("--batch-size", "16", "--learning-rate", "0.1", "--checkpoint-steps", "3")


@pytest.fixture
def command(tiny_encoder: Path, write_csv: Write) -> list[str]:
    return [str(write_csv(sentences(8))), "--encoder", str(tiny_encoder), *RECIPE]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of so many KiB, in place of the one before."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(size: int) -> Path:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
        options = ["-t", "tmpfs", "-o", f"size={size}k", "tmpfs"]
        tried = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"no file system can be mounted here, and so none be filled: {tried.stderr.strip()}")
        return folder

    yield mounted
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def test_a_disk_that_is_full_at_any_point_is_said(disk: Callable[[int], Path], command: list[str]) -> None:
    said = set()
    for size in range(8, 400, 24):
        out = disk(size) / "m"
        try:
            assert train([*command, "--out", str(out)]) == 0
            break
        except DiskFull as error:
            said.add(str(error).rpartition(". Make some")[2])
            assert not out.exists()
    assert said == {", then run the same command again.", " and add --resume to the same command."}


@pytest.mark.parametrize("error", [Exception(RUST), SafetensorError(f"Error while serializing: I/O error: {RUST}")])
def test_a_full_disk_says_how_to_go_on(
    error: Exception, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise error

    command += ["--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr("training.pipeline.write_encoder", full)
        with pytest.raises(DiskFull, match="add --resume to the same command"):
            train(command)
    assert train([*command, "--resume"]) == 0


def test_a_comparison_says_it_too(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise Exception(RUST)

    monkeypatch.setattr("training.pipeline.write_encoder", full)
    how = ("--losses", "softmax,am-softmax", "--unseen-classes", "0.5")
    compared = [word for word in command if word not in ("--checkpoint-steps", "3")]
    with pytest.raises(DiskFull, match="Make some; the same command continues"):
        compare([*compared, *how, "--out", str(tmp_path / "c")])


@pytest.mark.parametrize("fault", [Exception("data did not match any variant"), ValueError(RUST), OSError(5, "I/O")])
def test_other_faults_stay_what_they_are(fault: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(fault)) as caught, room_at(tmp_path, str):
        raise fault
    assert caught.value is fault


def test_what_torch_cannot_write_is_for_want_of_room_only_where_there_is_none(
    tmp_path: Path, disk: Callable[[int], Path]
) -> None:
    with pytest.raises(RuntimeError, match="of another kind"), torch_saves_to(tmp_path):
        raise RuntimeError("of another kind")
    folder = disk(64)
    with pytest.raises(OSError, match=os.strerror(28)), torch_saves_to(folder):
        torch.save({"weights": torch.zeros(100_000)}, folder / "optimizer.pt")
