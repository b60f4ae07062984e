"""Long-tail sampling: how often each class comes, and that it reaches a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from index.errors import SettingsError
from tests.training.conftest import Write, sentences
from training.cli import train
from training.config import PAIRING
from training.learning.samplers import BalancedSampler
from training.objectives import OBJECTIVES

SIZES = [1, 4, 15, 80]


def rows_of(sizes: list[int]) -> Dataset:
    labels = [code for code, size in enumerate(sizes) for _ in range(size)]
    return Dataset.from_dict({"text": ["x" * (1 + at % 7) for at in range(len(labels))], "label": labels})


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_classes_come_as_often_as_their_size_to_the_power_says(balance: float) -> None:
    data = rows_of(SIZES)
    sampler = BalancedSampler(data, batch_size=10, drop_last=False, seed=0, balance=balance)
    counts = torch.zeros(len(SIZES))
    labels = torch.tensor(data["label"])
    for epoch in range(300):
        sampler.set_epoch(epoch)
        for batch in sampler:
            counts += torch.bincount(labels[batch], minlength=len(SIZES))
    expected = torch.tensor([size ** (1 - balance) for size in SIZES])
    torch.testing.assert_close(counts / counts.sum(), expected / expected.sum(), atol=0.012, rtol=0)
    assert counts.sum() == 300 * sum(SIZES)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**31), st.floats(0, 1), st.booleans())
def test_batches_are_whole_seeded_and_as_many_as_said(sizes: list[int], seed: int, balance: float, drop: bool) -> None:
    data = rows_of(sizes)
    first, second = (BalancedSampler(data, batch_size=4, drop_last=drop, seed=seed, balance=balance) for _ in range(2))
    batches = list(first)
    assert batches == list(second)
    assert len(batches) == len(first)
    assert all(0 <= row < len(data) for batch in batches for row in batch)
    assert sum(map(len, batches)) == (len(data) // 4 * 4 if drop else len(data))


def test_the_flag_reaches_the_training(tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> None:
    rows = sentences(12)
    data = write_csv(rows[:12] + rows[12:15] + rows[24:27])
    command = [str(data), "--encoder", str(tiny_encoder), "--epochs", "1", "--batch-size", "4", "--held-out", "0"]
    assert train([*command, "--out", str(tmp_path / "a")]) == 0
    assert train([*command, "--out", str(tmp_path / "b"), "--balance", "1"]) == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first != second


@pytest.mark.parametrize(
    ("flags", "message"), [(["--per-class", "2"], "leave one out"), (["--loss", "triplet"], "groups")]
)
def test_two_ways_to_fill_a_batch_are_refused(flags: list[str], message: str, tmp_path: Path, write_csv: Write) -> None:
    with pytest.raises(SettingsError, match=message):
        train([str(write_csv(sentences(4))), "--out", str(tmp_path / "m"), "--balance", "0.5", *flags])


def test_the_losses_said_to_compare_rows_are_those_without_class_weights() -> None:
    assert set(PAIRING) == {name for name, entry in OBJECTIVES.items() if entry.shape != "labelled"}
