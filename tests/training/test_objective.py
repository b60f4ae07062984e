from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.heads import class_means, load_head, save_head
from training.objective import AMSoftmaxLoss


@pytest.fixture
def loss(tiny_encoder: Path) -> AMSoftmaxLoss:
    from sentence_transformers import SentenceTransformer

    return AMSoftmaxLoss(SentenceTransformer(str(tiny_encoder), device="cpu"), classes=5, scale=30, margin=0.35)


def test_am_softmax_agrees_with_its_formula_in_float64(loss: AMSoftmaxLoss) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(8, 16, generator=generator)
    labels = torch.randint(5, (8,), generator=generator)
    weights, x = loss.head.weight.detach().double().numpy(), vectors.double().numpy()
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (weights / np.linalg.norm(weights, axis=1)[:, None]).T
    expected = []
    for row, t in zip(cosines, labels.tolist(), strict=True):
        own = np.exp(30 * (row[t] - 0.35))
        expected.append(-np.log(own / (own + sum(np.exp(30 * row[j]) for j in range(5) if j != t))))
    assert loss.loss_of(vectors, labels).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_margin_costs(loss: AMSoftmaxLoss) -> None:
    vectors, labels = torch.randn(4, 16), torch.tensor([0, 1, 2, 3])
    with_margin = loss.loss_of(vectors, labels)
    loss.margin = 0.0
    assert with_margin > loss.loss_of(vectors, labels)


def test_forward_encodes_the_features_of_one_column(loss: AMSoftmaxLoss) -> None:
    texts, labels = ["my card", "the rain"], torch.tensor([0, 3])
    vectors = loss.model.encode(texts, convert_to_tensor=True)
    assert loss([loss.model.preprocess(texts)], labels).item() == pytest.approx(loss.loss_of(vectors, labels).item())


@pytest.mark.parametrize(("scale", "margin"), [(0.0, 0.3), (-1.0, 0.3), (30.0, -0.1)])
def test_wrong_scale_or_margin_is_refused(loss: AMSoftmaxLoss, scale: float, margin: float) -> None:
    with pytest.raises(ValueError, match=f"scale={scale}, margin={margin}"):
        AMSoftmaxLoss(loss.model, 5, scale, margin)


def test_class_means_are_unit_means_of_directions() -> None:
    vectors = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-3.0, 0.0]])
    means = class_means(vectors, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(means, torch.tensor([[0.5**0.5, 0.5**0.5], [-1.0, 0.0]]))


def test_a_class_without_vectors_has_no_mean() -> None:
    with pytest.raises(ValueError, match="class 1"):
        class_means(torch.eye(2), torch.tensor([0, 0]), 2)


def test_the_head_survives_saving(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    save_head(tmp_path, weight, ["a", "ünï", "c, d"])
    loaded, labels = load_head(tmp_path)
    assert torch.equal(loaded, weight)
    assert labels == ["a", "ünï", "c, d"]
