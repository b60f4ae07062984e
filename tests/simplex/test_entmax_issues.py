"""What users of the `entmax` package report, each working here, and agreement with it where it is right."""

from __future__ import annotations

import entmax as reference
import pytest
import torch

import simplex
from simplex import losses

INF = torch.inf


@pytest.mark.parametrize("n", [5, 100, 3000])
def test_agrees_with_the_package_where_it_is_right(n: int) -> None:
    x = torch.randn(4, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(simplex.sparsemax(x), reference.sparsemax(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(simplex.entmax15(x), reference.entmax15(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(simplex.entmax(x, 1.3), reference.entmax_bisect(x, 1.3, n_iter=80), rtol=0, atol=1e-9)
    target = torch.randint(n, (4,), generator=torch.Generator().manual_seed(1))
    for ours, theirs in (
        (losses.sparsemax_loss, reference.sparsemax_loss),
        (losses.entmax15_loss, reference.entmax15_loss),
    ):
        torch.testing.assert_close(ours(x, target, reduction="none"), theirs(x, target))


def test_masked_logits_give_no_nan() -> None:
    x = torch.tensor([[1.0, -INF, 0.2]], requires_grad=True)
    for f in (simplex.sparsemax, simplex.entmax15, lambda z: simplex.entmax(z, 1.3)):
        p = f(x)
        assert p[0, 1] == 0
        assert torch.autograd.grad((p**2).sum(), x)[0].isfinite().all()
    assert losses.entmax15_loss(x, torch.tensor([0])).isfinite()


def test_a_fully_masked_row_is_nan_and_raises_nothing() -> None:
    x = torch.full((2, 3), -INF)
    for f in (simplex.sparsemax, simplex.entmax15, lambda z: simplex.entmax(z, 1.3)):
        assert f(x).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_sums_to_one(dtype: torch.dtype) -> None:
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    for f in (simplex.sparsemax, simplex.entmax15, lambda z: simplex.entmax(z, 1.3)):
        assert (f(x).float().sum(-1) - 1).abs().max() < 2e-2


def test_alpha_one_is_softmax() -> None:
    x = torch.randn(3, 9)
    torch.testing.assert_close(simplex.entmax(x, 1.0), x.softmax(-1))
    torch.testing.assert_close(simplex.entmax(x, torch.tensor(1.0)), x.softmax(-1))


def test_ignore_index_has_a_default_that_works() -> None:
    x, target = torch.randn(3, 4), torch.tensor([0, -100, 2])
    kept = losses.sparsemax_loss(x[[0, 2]], target[[0, 2]])
    torch.testing.assert_close(losses.sparsemax_loss(x, target), kept)


def test_alpha_can_be_learned() -> None:
    u = torch.zeros(1, requires_grad=True)
    x, goal = torch.randn(8, 6, generator=torch.Generator().manual_seed(3)), 1.7
    optimizer = torch.optim.Adam([u], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (simplex.entmax(x, 1 + u.sigmoid()) - simplex.entmax(x, goal)).pow(2).sum().backward()
        optimizer.step()
    assert (1 + u.sigmoid()).item() == pytest.approx(goal, abs=0.01)


def test_soft_targets() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    y = torch.randn(3, 4).softmax(-1)
    (gradient,) = torch.autograd.grad(losses.entmax15_loss(x, y, reduction="sum"), x)
    torch.testing.assert_close(gradient, simplex.entmax15(x) - y)


def test_second_derivative_of_entmax15() -> None:
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradgradcheck(simplex.entmax15, x)
