"""Pairs files and TAR@FAR against a ROC curve computed by scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from index.errors import DataError
from training.measures.verification_pairs import Pair, read_pairs, tar_at_far


def test_both_formats_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("1\t1\nAnn\t1\t12\nAnn\t2\tBob\t3\n")
    (tmp_path / "pairs.csv").write_text(
        "image_a,image_b,same\nAnn/Ann_0001.jpg,Ann/Ann_0012.jpg,1\nAnn/Ann_0002.jpg,Bob/Bob_0003.jpg,0\n"
    )
    expected = [
        Pair("Ann/Ann_0001.jpg", "Ann/Ann_0012.jpg", True),
        Pair("Ann/Ann_0002.jpg", "Bob/Bob_0003.jpg", False),
    ]
    assert read_pairs(tmp_path / "pairs.txt") == read_pairs(tmp_path / "pairs.csv") == expected


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("Ann 1 2\nAnn one two\n", "line 2"),
        ("image_a,image_b,same\na,b,1\na,b,yes\n", "line 3"),
        ("image_a,image_b\na,b\n", "expected image_a, image_b and same"),
        ("Ann 1 2\n", "one kind only"),
        ("", "one kind only"),
    ],
)
def test_faults_are_named(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "pairs.txt").write_text(content)
    with pytest.raises(DataError, match=why):
        read_pairs(tmp_path / "pairs.txt")


@pytest.mark.parametrize("far", [0.01, 0.1, 0.5])
def test_tar_at_far_is_on_the_roc_curve(far: float) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((60, 8))
    vectors[30:] = vectors[:30] + 0.8 * random.standard_normal((30, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [str(at) for at in range(60)]
    pairs = [Pair(str(a), str(b), b == a + 30) for a in range(60) for b in range(a + 1, 60)]
    truth = [pair.same for pair in pairs]
    false, true, _ = roc_curve(
        truth, [vectors[int(p.first)] @ vectors[int(p.second)] for p in pairs], drop_intermediate=False
    )
    assert tar_at_far(vectors, names, pairs, far) == pytest.approx(true[false <= far].max())


def test_what_cannot_be_measured_is_said() -> None:
    vectors = np.eye(3)
    pairs = [Pair("a", "b", True), Pair("a", "c", False)]
    with pytest.raises(DataError, match="'c', which is not"):
        tar_at_far(vectors, ["a", "b", "x"], pairs, 0.5)
    with pytest.raises(DataError, match="cannot be measured on 1"):
        tar_at_far(vectors, ["a", "b", "c"], pairs, 0.01)
