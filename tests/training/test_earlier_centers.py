"""Training on from an encoder whose classes have several centers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from tests.training.conftest import Write, sentences
from training.cli import train
from training.parts.heads import class_means, load_head

STILL = ("--learning-rate", "1e-12", "--head-learning-rate", "1e-12")
COMMON = ("--held-out", "0", "--epochs", "4", "--batch-size", "16")


@pytest.mark.parametrize("then", ["sub-center", "am-softmax"])
def test_centers_are_continued(then: str, tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> None:
    rows = sentences(12)
    data, first, second = str(write_csv(rows)), str(tmp_path / "first"), str(tmp_path / "second")
    learning = ("--loss", "sub-center", "--learning-rate", "0.1", "--head-learning-rate", "0.1")
    assert train([data, "--encoder", str(tiny_encoder), "--out", first, *COMMON, *learning]) == 0
    assert train([data, "--encoder", first, "--out", second, *COMMON, *STILL, "--loss", then]) == 0
    weight, labels = load_head(Path(first))
    names = list(dict.fromkeys(labels))
    centers = normalize(weight, dim=1).unflatten(0, (len(names), -1))
    vectors = SentenceTransformer(first, device="cpu").encode([text for text, _ in rows], convert_to_tensor=True)
    means = class_means(vectors, torch.tensor([names.index(label) for _, label in rows]), len(names))
    nearest = (centers @ means[:, :, None])[:, :, 0].argmax(1)
    assert set(nearest.tolist()) != {centers.shape[1] - 1}, "else the last one would do"
    expected = centers.flatten(0, 1) if then == "sub-center" else centers[range(len(names)), nearest]
    torch.testing.assert_close(load_head(Path(second))[0], expected, atol=1e-5, rtol=0)
