"""Sampling, perturb-max beyond its oracle, and Taylor attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import simplex
from simplex.attention import features

both = pytest.mark.parametrize("library", ["numpy", "torch"])


def generator(library: str) -> Any:
    return torch.Generator().manual_seed(7) if library == "torch" else np.random.default_rng(7)


@both
def test_gumbel_max_samples_softmax(library: str) -> None:
    x = np.array([0.5, -1.0, 2.0, -np.inf])
    tiled = np.tile(x, (100_000, 1))
    drawn = simplex.gumbel_max(torch.tensor(tiled) if library == "torch" else tiled, generator=generator(library))
    shares = np.bincount(np.asarray(drawn), minlength=4) / 1e5
    p = simplex.softmax(x)
    assert (np.abs(shares - p) <= 5 * np.sqrt(p * (1 - p) / 1e5)).all()
    bad = np.array([[np.nan, 1], [-np.inf, -np.inf], [np.inf, 0.0]])
    assert np.asarray(simplex.gumbel_max(torch.tensor(bad) if library == "torch" else bad)).tolist() == [-1] * 3


@both
@pytest.mark.parametrize("n", [2, 3])
def test_gumbel_max_draws_every_row_at_its_own_temperature(library: str, n: int) -> None:
    x, temperature = np.zeros((n, 2, 2000)), np.array([1e-3, 1e3])[:, None]  # the cold rows take the best, the hot any
    x[0] = 1
    scores, each = (torch.tensor(x), torch.tensor(temperature)) if library == "torch" else (x, temperature)
    drawn = np.asarray(simplex.gumbel_max(scores, dim=0, temperature=each, generator=generator(library)))
    assert (drawn[0] == 0).all()
    assert (drawn[1] == 0).mean() == pytest.approx(1 / n, abs=0.06)


@both
def test_gumbel_softmax_and_straight_through(library: str) -> None:
    x = np.random.default_rng(0).normal(size=(6, 5))
    scores = torch.tensor(x, requires_grad=True) if library == "torch" else x
    soft: Any = simplex.gumbel_softmax(scores, tau=0.5, generator=generator(library))
    hard: Any = simplex.gumbel_softmax(scores, tau=0.5, hard=True, generator=generator(library))
    soft_values, hard_values = (v.detach().numpy() if library == "torch" else v for v in (soft, hard))
    np.testing.assert_allclose(soft_values.sum(-1), 1)
    np.testing.assert_allclose(hard_values.max(-1), 1)
    np.testing.assert_array_equal(hard_values.argmax(-1), soft_values.argmax(-1))
    if library == "torch":
        weights = torch.arange(5.0, dtype=torch.float64)
        got, want = (torch.autograd.grad((v * weights).sum(), scores)[0] for v in (hard, soft))
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("noise", ["normal", "logistic", "gumbel", "uniform"])
def test_perturb_max_jacobian_is_the_derivative(noise: str) -> None:
    x = torch.tensor([0.3, -0.5, 0.1, 0.9], dtype=torch.float64)
    jacobian = simplex.perturb_max_jacobian(x, noise=noise, temperature=0.8)
    automatic = torch.func.jacrev(lambda z: simplex.perturb_max(z, noise=noise, temperature=0.8))(x)
    torch.testing.assert_close(jacobian, automatic, rtol=0, atol=1e-10)
    torch.testing.assert_close(jacobian, jacobian.T)
    torch.testing.assert_close(jacobian.sum(-1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    np.testing.assert_allclose(simplex.perturb_max_jacobian(x.numpy(), noise=noise, temperature=0.8), jacobian.numpy())
    h = 1e-5
    for j in range(4):
        step = h * torch.eye(4, dtype=torch.float64)[j]
        change = [simplex.perturb_max(x + s * step, noise=noise, temperature=0.8) for s in (1, -1)]
        torch.testing.assert_close((change[0] - change[1]) / (2 * h), jacobian[j], rtol=0, atol=1e-4)
    potential = torch.func.grad(lambda z: simplex.perturb_max_potential(z, noise=noise))(x)
    torch.testing.assert_close(potential, simplex.perturb_max(x, noise=noise), rtol=0, atol=1e-10)


def test_perturb_max_with_ones_own_noise() -> None:
    scaled = simplex.Noise(
        "laplace",
        lambda u: np.where(u < 0, u - math.log(2), np.log1p(-np.exp(-np.maximum(u, 0)) / 2)),
        lambda u: -np.abs(u) - math.log(2),
        0.0,
        -41.0,
        41.0,
    )
    x, rng = np.array([0.4, 0.0, -0.7]), np.random.default_rng(0)
    p = simplex.perturb_max(x, noise=scaled, points=4000)
    drawn = np.bincount((x + rng.laplace(size=(400_000, 3))).argmax(-1)) / 4e5
    assert (np.abs(p - drawn) < 5 * np.sqrt(p * (1 - p) / 4e5)).all()


def test_perturb_max_with_many_scores() -> None:
    x = np.random.default_rng(1).normal(size=5_000)
    np.testing.assert_allclose(simplex.perturb_max(x, noise="gumbel"), simplex.softmax(x), atol=1e-13)
    for noise in ("normal", "logistic"):
        few, many = (simplex.perturb_max(x, noise=noise, points=k) for k in (256, 700))
        np.testing.assert_allclose(few, many, atol=1e-12)


@both
def test_taylor_attention_is_the_quadratic_one(library: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(2, 3, 131, 5)), rng.normal(size=(2, 3, 131, 5)), rng.normal(size=(2, 3, 131, 4))
    product = q @ np.swapaxes(k, -1, -2) / math.sqrt(5)
    weights = 1 + product + product**2 / 2
    arrays = [torch.tensor(a) if library == "torch" else a for a in (q, k, v)]
    for causal in (False, True):
        used = np.tril(weights) if causal else weights
        want = used / used.sum(-1, keepdims=True) @ v
        np.testing.assert_allclose(
            np.asarray(simplex.taylor_attention(*arrays, causal=causal)), want, rtol=0, atol=2e-14
        )
    assert features(q).shape[-1] == 1 + 5 + 15
    for text, bad in (("same number of features", (q, k[..., :3], v)), ("same length", (q, k, v[..., :9, :]))):
        with pytest.raises(ValueError, match=text):
            simplex.taylor_attention(*bad)
    with pytest.raises(ValueError, match="same length when causal"):
        simplex.taylor_attention(q[..., :9, :], k, v, causal=True)


def test_taylor_attention_derivatives() -> None:
    q, k, v = (
        torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(s)).requires_grad_()
        for s in range(3)
    )
    for causal in (False, True):
        assert gradcheck(lambda *a, c=causal: simplex.taylor_attention(*a, causal=c), (q, k, v))
        assert gradgradcheck(lambda *a, c=causal: simplex.taylor_attention(*a, causal=c), (q, k, v))
