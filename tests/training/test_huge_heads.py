"""Heads for very many classes: equal to the dense losses, touching few rows, and refused where memory would run out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from index.errors import SettingsError
from training.config import Loss, Recipe
from training.learning.capacity import check_memory, head_memory
from training.learning.optimizer import RowAdamW
from training.objectives import huge, make_objective

CLASSES, DIMENSION = 300, 16


class Encoder(nn.Module):
    def get_embedding_dimension(self) -> int:
        return DIMENSION


def pair(dense: str, few: str, **options: float):
    torch.manual_seed(0)
    shared = {name: options[name] for name in ("scale", "margin", "alpha") if name in options}
    whole = make_objective(dense, Encoder(), CLASSES, **shared)
    part = make_objective(few, Encoder(), CLASSES, **options)
    part.imprint(whole.head.weight)
    part.sparse_gradients = True
    return whole, part


@pytest.mark.parametrize(
    ("dense", "few", "options"),
    [
        ("am-softmax", "partial-fc", {"fraction": 1.0}),
        ("am-softmax", "partial-fc", {"fraction": 1.0, "margin": 0.1, "scale": 5.0}),
        ("entmax", "exact-sparse", {"alpha": 1.5}),
        ("entmax", "exact-sparse", {"alpha": 2.0, "margin": 0.0}),
        ("entmax", "exact-sparse", {"alpha": 1.3, "scale": 8.0}),
        ("entmax", "exact-sparse", {"alpha": 1.5, "scale": 0.5}),  # hundreds of classes have a probability
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_the_dense_head(
    dense: str, few: str, options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge, "BLOCK", 128)
    whole, part = pair(dense, few, **options)
    vectors = torch.randn(20, DIMENSION, requires_grad=True)
    copy = vectors.detach().clone().requires_grad_()
    labels = torch.randint(0, CLASSES, (20,))
    labels[1] = labels[0]
    with torch.no_grad():
        vectors[2] = copy[2] = whole.head.weight[labels[2]]  # a text that is right enough
    expected, got = whole.loss_of(vectors, labels), part.loss_of(copy, labels)
    torch.testing.assert_close(got, expected)
    (3 * expected).backward()
    (3 * got).backward()
    torch.testing.assert_close(copy.grad, vectors.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(part.head.weight.grad.to_dense(), whole.head.weight.grad, atol=1e-5, rtol=1e-4)


def test_exact_sparse_touches_the_support_and_the_targets_alone() -> None:
    _, part = pair("entmax", "exact-sparse")
    labels = torch.arange(20)
    part.loss_of(torch.randn(20, DIMENSION), labels).backward()
    rows = set(part.head.weight.grad.coalesce().indices()[0].tolist())
    assert set(labels.tolist()) <= rows
    assert len(rows) < CLASSES / 3


def test_a_text_that_is_right_enough_costs_nothing() -> None:
    _, part = pair("entmax", "exact-sparse")
    with torch.no_grad():
        part.head.weight[:2] = torch.eye(2, DIMENSION) * 3
        part.head.weight[2:, :2] = 0
    loss = part.loss_of(torch.eye(2, DIMENSION), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 0
    assert part.head.weight.grad._nnz() == 0


def test_partial_fc_draws_the_classes_of_the_batch_and_a_fraction_of_the_others() -> None:
    _, part = pair("am-softmax", "partial-fc", fraction=0.1)
    present = torch.tensor([3, 250, 299])
    drawn = [part._drawn(present).tolist() for _ in range(200)]
    assert all(len(columns) == 30 and columns == sorted(set(columns)) for columns in drawn)
    assert all({3, 250, 299} <= set(columns) for columns in drawn)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=CLASSES)
    assert counts.min() > 0
    assert sorted(counts.topk(3).indices.tolist()) == [3, 250, 299]
    assert len(part._drawn(torch.arange(100))) == 100
    part.loss_of(torch.randn(2, DIMENSION), torch.tensor([3, 250])).backward()
    assert part.head.weight.grad._nnz() == 30


def test_row_adam_is_adam_on_the_rows_that_have_a_gradient() -> None:
    torch.manual_seed(1)
    weight = torch.randn(6, 4)
    ours, theirs, dense = (nn.Parameter(weight.clone()) for _ in range(3))
    optimizer = RowAdamW([{"params": [ours, dense], "weight_decay": 0.0}], lr=0.1, betas=(0.8, 0.9))
    oracle = torch.optim.SparseAdam([theirs], lr=0.1, betas=(0.8, 0.9))
    whole = nn.Parameter(weight.clone())
    plain = torch.optim.AdamW([whole], lr=0.1, betas=(0.8, 0.9), weight_decay=0.0)
    for rows in ([0, 2, 2], [2, 5, 1], [0, 1, 1]):
        gradient = torch.sparse_coo_tensor([rows], torch.randn(3, 4), (6, 4), check_invariants=True)
        ours.grad, theirs.grad = gradient, gradient.clone()
        dense.grad = whole.grad = torch.randn(6, 4)
        for step in (optimizer, oracle, plain):
            step.step()
        assert ours.grad is gradient
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(dense, whole)
    assert torch.equal(ours[3:5], weight[3:5])
    with pytest.raises(ValueError, match="weight_decay must be 0"):
        RowAdamW([ours], lr=0.1, weight_decay=0.1).step()


@pytest.mark.parametrize(
    ("few", "options", "message"),
    [
        ("partial-fc", {"fraction": 0.0}, "fraction must be over 0"),
        ("partial-fc", {"fraction": 1.1}, "at most 1"),
        ("exact-sparse", {"alpha": 1.0}, "alpha must be greater than 1"),
    ],
)
def test_options_out_of_range(few: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_objective(few, Encoder(), CLASSES, **options)


def recipe(loss: Loss) -> Recipe:
    return Recipe(loss=loss, epochs=1, batch_size=64, learning_rate=1.0, head_learning_rate=1.0)


def test_a_class_count_above_memory_says_what_to_use_instead() -> None:
    check_memory(recipe("am-softmax"), 10_000, 256, free=2**30)
    instead = r"Use --loss exact-sparse \(3 GiB\) or --loss partial-fc \(3\.6 GiB\), or share .*torchrun"
    with pytest.raises(
        SettingsError, match=rf"1,000,000 classes x 256 with am-softmax take about 8\.8 GiB, .*{instead}"
    ):
        check_memory(recipe("am-softmax"), 1_000_000, 256, free=4 * 2**30)
    with pytest.raises(SettingsError, match="fewer classes or a smaller encoder"):
        check_memory(recipe("exact-sparse"), 10_000_000, 256, free=2**30)
    check_memory(recipe("multiple-negatives-ranking"), 10_000_000, 256, free=2**20)
    assert head_memory("partial-fc", 1000, 8, 64, processes=2) == head_memory("partial-fc", 1000, 8, 64) / 2
