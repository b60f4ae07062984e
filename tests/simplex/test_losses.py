"""Losses: closed forms, gradient p - y, the built-in margin, targets, and margins on cosines."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import simplex
from simplex import losses, margins

INF = math.inf
FENCHEL_YOUNG = [1.0, 1.2, 1.5, 2.0, 3.0]


def batch(n: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, n, dtype=torch.float64, generator=generator).requires_grad_()
    return x, torch.randint(n, (5,), generator=generator)


@pytest.mark.parametrize("alpha", FENCHEL_YOUNG)
def test_gradient_is_p_minus_y(alpha: float) -> None:
    x, target = batch()
    soft = torch.softmax(batch(seed=1)[0].detach(), -1)
    p = simplex.entmax(x.detach(), alpha)
    onehot = torch.nn.functional.one_hot(target, 6).double()
    for loss in (losses.fenchel_young, losses.stop_gradient):
        for goal, y in ((target, onehot), (soft, soft)):
            (gradient,) = torch.autograd.grad(loss(x, goal, alpha, reduction="sum"), x)
            torch.testing.assert_close(gradient, p - y, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(simplex.perturb_max_loss(x, target, reduction="sum"), x)
    torch.testing.assert_close(gradient, simplex.perturb_max(x.detach()) - onehot, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(losses.sparse_softmax_loss(x, target, top_k=2, reduction="sum"), x)
    torch.testing.assert_close(gradient, simplex.sparse_softmax(x.detach(), top_k=2) - onehot, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    x=st.lists(st.floats(-5, 5), min_size=2, max_size=6).map(np.array),
    alpha=st.sampled_from(FENCHEL_YOUNG),
    data=st.data(),
)
def test_never_negative_and_zero_exactly_at_the_margin(x: np.ndarray, alpha: float, data: Any) -> None:
    t = data.draw(st.integers(0, len(x) - 1))
    assert losses.fenchel_young(x, np.array(t), alpha) >= 0
    assert losses.fenchel_young(x, simplex.entmax(x, alpha), alpha) == pytest.approx(0, abs=1e-12)
    assert simplex.perturb_max_loss(x, np.array(t)) >= -1e-12
    if alpha > 1:
        x[t] = np.delete(x, t).max() + 1 / (alpha - 1) * (1 + 1e-12) + 1e-12
        assert losses.fenchel_young(x, np.array(t), alpha) == 0
        assert losses.fenchel_young(torch.tensor(x), torch.tensor(t), alpha) == 0
        x[t] -= 0.01
        assert losses.fenchel_young(x, np.array(t), alpha) > 0


def test_closed_forms() -> None:
    x, target = batch()
    p = simplex.sparsemax(x)
    tau = (x - p).amax(-1, keepdim=True)
    own = x.gather(-1, target[:, None])[:, 0]
    want = 0.5 - own + 0.5 * torch.where(p > 0, x**2 - tau**2, 0).sum(-1)
    torch.testing.assert_close(losses.sparsemax_loss(x, target, reduction="none"), want)
    margined = losses.cross_entropy(30 * margins.cosface(x / 5, target, 0.35), target, reduction="none")
    direct = torch.stack(
        [
            torch.tensor(np.log1p(np.exp(30 * (np.delete(row / 5, t) + 0.35 - row[t] / 5)).sum()))
            for row, t in zip(x.detach().numpy(), target.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(margined.detach(), direct)
    torch.testing.assert_close(
        losses.smooth_accuracy(x, target, reduction="none"), 1 - x.softmax(-1).gather(-1, target[:, None])[:, 0]
    )
    torch.testing.assert_close(
        losses.taylor(x, target, order=4, reduction="none").exp(),
        1 / simplex.taylor_softmax(x, order=4).gather(-1, target[:, None])[:, 0],
    )
    # Normal perturbations with two scores: E max has a closed form.
    z, d = np.array([0.3, -0.4]), 0.7 / math.sqrt(2)
    want2 = (
        -0.4
        + 0.7 * 0.5 * (1 + math.erf(d / math.sqrt(2)))
        + math.sqrt(2) * math.exp(-d * d / 2) / math.sqrt(2 * math.pi)
    )
    assert simplex.perturb_max_potential(z) == pytest.approx(want2, abs=1e-13)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_agrees_with_torch(reduction: Any, weighted: bool) -> None:
    x, target = batch()
    target = torch.where(torch.arange(5) == 2, -100, target)
    weight = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) if weighted else None
    got = losses.cross_entropy(x, target, weight=weight, reduction=reduction)
    want = torch.nn.functional.cross_entropy(x, target, weight=weight, reduction=reduction)
    torch.testing.assert_close(got, want)
    moved = losses.cross_entropy(x.T, target, weight=weight, reduction=reduction, dim=0)
    torch.testing.assert_close(moved, want)
    array = losses.cross_entropy(
        x.detach().numpy(), target.numpy(), weight=None if weight is None else weight.numpy(), reduction=reduction
    )
    np.testing.assert_allclose(array, want.detach().numpy())


@pytest.mark.parametrize("alpha", FENCHEL_YOUNG)
def test_infinite_and_ignored_scores(alpha: float) -> None:
    x = torch.tensor([[1.0, -INF, 0.5], [0.2, 0.1, -INF]], dtype=torch.float64, requires_grad=True)
    assert losses.fenchel_young(x, torch.tensor([1, 2]), alpha) == INF
    value = losses.fenchel_young(x, torch.tensor([0, 1]), alpha, reduction="sum")
    (gradient,) = torch.autograd.grad(value, x)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0, 1] == 0
    bad = torch.tensor([[1.0, 2.0], [math.nan, INF]], dtype=torch.float64, requires_grad=True)
    value = losses.fenchel_young(bad, torch.tensor([0, -100]), alpha)
    (gradient,) = torch.autograd.grad(value, bad)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()


@pytest.mark.parametrize("columns", [4, 5])
def test_a_temperature_of_every_row_goes_with_its_row_along_any_axis(columns: int) -> None:
    x, target = batch()
    rows, goal = x.detach()[:columns, :4].requires_grad_(), target[:columns] % 4
    each = torch.linspace(0.3, 3, columns, dtype=torch.float64)
    for loss in (losses.cross_entropy, losses.sparsemax_loss, losses.smooth_accuracy, losses.taylor):
        expected = torch.stack(
            [loss(row, t, temperature=float(kept)) for row, t, kept in zip(rows, goal, each, strict=True)]
        )
        for scores, temperature, dim in (
            (rows, each[:, None], -1),
            (rows.T, each[None], 0),
            (rows.T, each, 0),  # broadcasts against the last axis, as everywhere
            (rows.T[None], each, 1),
        ):
            goals = goal[None] if scores.ndim == 3 else goal
            got = loss(scores, goals, dim=dim, temperature=temperature, reduction="none")
            torch.testing.assert_close(got, expected[None] if scores.ndim == 3 else expected)
            array = loss(
                scores.detach().numpy(), goals.numpy(), dim=dim, temperature=temperature.numpy(), reduction="none"
            )
            np.testing.assert_allclose(array, got.detach().numpy())


def test_bad_targets_are_named() -> None:
    x, target = batch()
    for text, call in (
        ("target must lie in", lambda: losses.cross_entropy(x, target + 6)),
        ("target must hold one class per row", lambda: losses.cross_entropy(x, target[:3])),
        ("soft target must have the shape", lambda: losses.cross_entropy(x, torch.ones(5))),
        ("reduction must be", lambda: losses.cross_entropy(x, target, reduction="median")),  # type: ignore[arg-type]
        ("weight must hold one number per class", lambda: losses.cross_entropy(x, target, weight=torch.ones(1, 6))),
        ("x and target must both", lambda: losses.cross_entropy(x, target.numpy())),
        ("target must lie in", lambda: margins.cosface(x, target + 6)),
        ("target must hold one class index", lambda: margins.cosface(x, target[:2])),
        ("margin must lie in", lambda: margins.arcface(x, target, -0.1)),
        ("margin must be at least 1", lambda: margins.sphereface(x, target, 0.5)),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(TypeError, match="unexpected keyword"):
        losses.cross_entropy(x, target, reducton="sum")  # type: ignore[call-arg]


MARGINS = {
    "cosface": (margins.cosface, lambda theta: math.cos(theta) - 0.35),
    "arcface": (
        margins.arcface,
        lambda theta: math.cos(theta + 0.5) if theta + 0.5 < math.pi else math.cos(theta) - 0.5 * math.sin(0.5),
    ),
    "arcface-mirror": (
        lambda c, t: margins.arcface(c, t, beyond="mirror"),
        lambda theta: math.cos(theta + 0.5) if theta + 0.5 < math.pi else -2 - math.cos(theta + 0.5),
    ),
    "sphereface": (
        margins.sphereface,
        lambda theta: (-1) ** int(4 * theta / math.pi) * math.cos(4 * theta) - 2 * int(4 * theta / math.pi),
    ),
    "combined": (
        lambda c, t: margins.combined(c, t, 1.0, 0.3, 0.2),
        lambda theta: math.cos(theta + 0.3) - 0.2 if theta + 0.3 < math.pi else -2 - math.cos(theta + 0.3) - 0.2,
    ),
}


@pytest.mark.parametrize("name", MARGINS)
def test_margin_formula_and_derivatives(name: str) -> None:
    function, formula = MARGINS[name]
    angles = torch.linspace(0.05, 3.1, 40, dtype=torch.float64)
    cos = torch.stack([angles.cos(), angles.cos() / 2], -1).requires_grad_()
    target = torch.zeros(40, dtype=torch.long)
    got = function(cos, target)
    np.testing.assert_allclose(got[:, 0].detach().numpy(), [formula(float(a)) for a in angles], atol=1e-9)
    assert torch.equal(got[:, 1], cos[:, 1])
    assert (got[:, 0] <= cos[:, 0] + 1e-12).all()
    assert (got[:-1, 0] - got[1:, 0]).min() > (-0.1 if name == "arcface" else 0)  # falls with the angle
    few = cos.detach()[::7].clone().requires_grad_()
    assert gradcheck(lambda c: function(c, target[::7]), few)
    assert gradgradcheck(lambda c: function(c, target[::7]), few)
    edge = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(edge, torch.tensor([0, 0])).sum(), edge)
    assert gradient.isfinite().all()
    ignored = function(cos, torch.full((40,), -100))
    assert torch.equal(ignored, cos)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MARGINS)
def test_margins_of_half_precision_are_those_of_float32(name: str, dtype: torch.dtype) -> None:
    function, target = MARGINS[name][0], torch.tensor([0, 1, 2, 0])
    half = torch.tensor([[1.0, 0.2, -1.0], [0.5, 0.996, 0.1], [0.0, 0.0, -1.0], [0.3, 0.9, 0.1]], dtype=dtype)
    cos, wide = half.clone().requires_grad_(), half.float().requires_grad_()
    got, want = function(cos, target), function(wide, target)
    assert torch.equal(got, want.to(dtype))
    weights = torch.arange(12.0).reshape(4, 3)
    gradient, expected = (torch.autograd.grad((p * weights).sum(), x)[0] for p, x in ((got, cos), (want, wide)))
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient.float(), expected, rtol=0.02, atol=0.02)


def test_combined_contains_the_others() -> None:
    cos, target = torch.linspace(-0.8, 0.9, 12).double().reshape(4, 3), torch.tensor([0, 1, 2, 0])
    for got, want in (
        (margins.combined(cos, target, 1, 0, 0.35), margins.cosface(cos, target)),
        (margins.combined(cos, target, 1, 0.5, 0), margins.arcface(cos, target, beyond="mirror")),
        (margins.combined(cos, target, 4, 0, 0), margins.sphereface(cos, target)),
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-7)


def test_triangle_margin_sub_centers_and_annealing() -> None:
    cos, target = torch.rand(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    own = cos.gather(-1, target[:, None])[:, 0]
    margin = margins.adaptive_margin(cos, target)
    assert margin.item() == pytest.approx(2 * (1 - own).sqrt().mean().item())
    logits = margins.triangle(cos, target)
    torch.testing.assert_close(logits.gather(-1, target[:, None])[:, 0], -(1 - own).sqrt() - margin)
    centers = torch.rand(4, 3, 5)
    torch.testing.assert_close(margins.sub_centers(centers), centers.max(-1).values)
    margined = margins.cosface(cos, target)
    torch.testing.assert_close(margins.annealed(cos, margined, 0.0), margined)
    torch.testing.assert_close(margins.annealed(cos, margined, 1.0), (cos + margined) / 2)
