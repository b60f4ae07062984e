"""Two real processes under torchrun train what one does, with whole class weights and with shards of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from index.errors import SettingsError
from tests.training.conftest import Write, sentences
from training.cli import train
from training.config import Recipe, TrainSettings
from training.learning import capacity

PROGRAM = """
import sys
from training import distributed
from training.cli import train

with distributed.processes():
    assert distributed.world() == 2
    for flags in sys.argv[1:]:
        assert train(flags.split()) == 0
"""
RUNS = {
    "adaface": "--loss adaface",  # whole class weights, and statistics of the batch
    "partial-fc": "--loss partial-fc --options fraction=1",
    "exact-sparse": "--loss exact-sparse --accumulate 2",
}


def test_two_processes_train_what_one_does(tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> None:
    data = write_csv([row for row in sentences(32) if row[1] != "food"])  # three classes: shards of two and one
    common = f"{data} --encoder {tiny_encoder} --batch-size 16 --learning-rate 0.1 --held-out 0 --epochs 8 --out"
    commands = [f"{common} {tmp_path}/two-{name} {flags}" for name, flags in RUNS.items()]
    (tmp_path / "program.py").write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(tmp_path / "program.py"), *commands], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Next:") == len(RUNS)  # one process speaks
    for name, flags in RUNS.items():
        assert train(f"{common} {tmp_path}/one-{name} {flags}".split()) == 0
        one, two = tmp_path / f"one-{name}", tmp_path / f"two-{name}"
        curves = [json.loads((folder / "training.json").read_text())["metrics"]["loss"] for folder in (one, two)]
        assert curves[0]
        assert [point["loss"] for point in curves[1]] == pytest.approx(
            [point["loss"] for point in curves[0]], rel=1e-4, abs=1e-6
        )
        for file in ("model.safetensors", "head.safetensors"):
            assert_close(load_file(two / file), load_file(one / file), atol=1e-4, rtol=1e-4)
    assert sorted(path.name for path in tmp_path.glob("two-*")) == sorted(f"two-{name}" for name in RUNS)


@pytest.mark.parametrize(
    ("flags", "loss", "message"),
    [
        ({"resume": True}, "adacos", "keep no checkpoints"),
        ({"checkpoint_steps": 50}, "adacos", "Leave out --checkpoint-steps"),
        ({"batch_size": 15}, "adacos", r"15 rows do not divide by 2\. Choose --batch-size 14"),
        ({}, "cosent", "one process's part of a batch"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(
    flags: dict, loss: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity.distributed, "world", lambda: 2)
    settings = TrainSettings(data=[], out=tmp_path, loss=loss, **flags)
    with pytest.raises(SettingsError, match=message):
        capacity.check_processes(settings, Recipe.resolve(settings, "static"))
