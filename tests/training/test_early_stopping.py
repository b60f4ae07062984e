"""Trainings that end early while somebody stops them, or are resumed when their end had been decided."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import training.pipeline
from tests.training.conftest import Write, sentences
from training.cli import train
from training.learning.early_stopping import EarlyStopping

FLAGS = ("--batch-size", "16", "--learning-rate", "0.1", "--unseen-classes", "0.5", "--held-out", "0", "--epochs", "8")
PATIENCE = ("--patience", "2", "--evaluations", "1")
VALUES = (0.3, 0.6, 0.5, 0.4, 0.9, 0.9, 0.9, 0.9)
"""MAP@R, measured every two steps. With a patience of two the fourth is the last, and the second the best."""


@pytest.fixture
def command(tiny_encoder: Path, write_csv: Write) -> list[str]:
    return [str(write_csv(sentences(20))), "--encoder", str(tiny_encoder), *FLAGS, *PATIENCE]


def measure(values: Sequence[float], monkeypatch: pytest.MonkeyPatch, *, interrupted_at: int | None = None) -> None:
    """Makes MAP@R on unseen classes what `values` say, and presses Ctrl-C while one of them is measured."""
    real, calls = training.pipeline.retrieval, []

    def retrieval(vectors, classes, *gallery):
        result, at = real(vectors, classes, *gallery), len(calls) - 1
        calls.append(at)
        if at == interrupted_at:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # the signal arrives between two instructions of Python
        return replace(result, map_at_r=values[at]) if 0 <= at < len(values) else result  # -1: before the training

    monkeypatch.setattr(training.pipeline, "retrieval", retrieval)


def weights_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("model.safetensors", "head.safetensors")]


def curve_of(folder: Path) -> list[float]:
    curve = json.loads((folder / "training.json").read_text())["metrics"]["loss"]
    return [point["unseen_map_at_r"] for point in curve if "unseen_map_at_r" in point]


def stop(*args: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_the_end_is_decided_keeps_the_best_weights(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, interrupted_at in (("undisturbed", None), ("m", 3)):
        with monkeypatch.context() as patch:
            measure(VALUES, patch, interrupted_at=interrupted_at)
            assert train([*command, "--out", str(tmp_path / name)]) == 0
    assert weights_of(tmp_path / "m") == weights_of(tmp_path / "undisturbed")
    assert not (tmp_path / "m.run").exists()


def test_ctrl_c_while_map_at_r_is_measured_leaves_a_checkpoint_of_that_step(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        measure(VALUES, patch)
        assert train([*command, "--out", str(tmp_path / "undisturbed")]) == 0
    with monkeypatch.context() as patch:
        measure(VALUES, patch, interrupted_at=1)
        assert train([*command, "--out", str(tmp_path / "m")]) == 130
    assert [path.name for path in (tmp_path / "m.run" / "checkpoints").iterdir()] == ["checkpoint-4"]
    measure(VALUES[2:], monkeypatch)
    assert train([*command, "--out", str(tmp_path / "m"), "--resume"]) == 0
    assert weights_of(tmp_path / "m") == weights_of(tmp_path / "undisturbed")


def test_a_resume_of_a_training_whose_end_was_decided_ends_it(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*command, "--checkpoint-steps", "1"]
    with monkeypatch.context() as patch:
        measure(VALUES, patch)
        assert train([*command, "--out", str(tmp_path / "undisturbed")]) == 0
    with monkeypatch.context() as patch:
        measure(VALUES, patch)
        patch.setattr(EarlyStopping, "take_best", stop)  # when the last checkpoint is written
        assert train([*command, "--out", str(tmp_path / "m")]) == 130
    measure(VALUES[4:], monkeypatch)
    assert train([*command, "--out", str(tmp_path / "m"), "--resume"]) == 0
    assert weights_of(tmp_path / "m") == weights_of(tmp_path / "undisturbed")
    assert curve_of(tmp_path / "m") == curve_of(tmp_path / "undisturbed")


@pytest.mark.parametrize("patient", [True, False])
def test_classes_that_chose_the_weights_are_said_to_have(command: list[str], tmp_path: Path, patient: bool) -> None:
    words = command if patient else command[: -len(PATIENCE)]
    assert train([*words, "--epochs", "1", "--out", str(tmp_path / "m")]) == 0
    record = json.loads((tmp_path / "m" / "training.json").read_text())
    assert record["unseen"]["chose_the_weights"] is patient
    for name in ("report.html", "README.md"):
        assert ("also chose the weights" in (tmp_path / "m" / name).read_text(encoding="utf-8")) is patient
