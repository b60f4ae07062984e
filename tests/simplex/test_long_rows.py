"""Rows of ten million scores against float64 oracles: where sums drift, ranks overflow and thresholds drown."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, special

import simplex
from simplex import perturb
from tests.simplex.registry import LAWS

N = 10_000_000
both = pytest.mark.parametrize("library", ["numpy", "torch"])
F4, F8 = ("f4", 5e-7, 3e-6), ("f8", 1e-12, 1e-10)
"""Type, absolute and relative tolerance."""


@pytest.fixture(scope="module")
def row() -> np.ndarray:
    """Standard normal float32 scores, one in ten of them masked."""
    x = np.random.default_rng(0).standard_normal(N, dtype=np.float32)
    x[::10] = -np.inf
    return x


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def taylor(x: np.ndarray) -> np.ndarray:
    held = np.maximum(x, -1)
    f = np.where(np.isneginf(x), 0, 1 + held + held * held / 2)
    return np.asarray(f / f.sum())


def top_100(x: np.ndarray) -> np.ndarray:
    p, kept = np.zeros_like(x), np.argpartition(-x, 100)[:100]
    p[kept] = softmax(x[kept])
    return p


def nucleus_half(x: np.ndarray) -> np.ndarray:
    p, order = np.zeros_like(x), np.argsort(-x)
    kept = order[: 1 + np.searchsorted(np.cumsum(softmax(x[order])), 0.5)]
    p[kept] = softmax(x[kept])
    return p


def entmax(alpha: float) -> Callable[[np.ndarray], np.ndarray]:
    """Bisection for the threshold, over the scores that can be above it."""

    def oracle(x: np.ndarray) -> np.ndarray:
        beta = alpha - 1
        near = np.flatnonzero(x > x.max() - 1 / beta)
        z = beta * (x[near] - x.max())
        low, high = -1.0, 0.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if (np.maximum(z - middle, 0) ** (1 / beta)).sum() > 1 else (low, middle)
        p = np.zeros_like(x)
        p[near] = np.maximum(z - low, 0) ** (1 / beta)
        return p

    return oracle


MAPS: dict[str, tuple[Callable[[Any], Any], Callable[[np.ndarray], np.ndarray]]] = {
    "softmax": (simplex.softmax, softmax),
    "taylor": (simplex.taylor_softmax, taylor),
    "top_k": (lambda x: simplex.sparse_softmax(x, top_k=100), top_100),
    "nucleus": (lambda x: simplex.sparse_softmax(x, top_p=0.5), nucleus_half),
    "sparsemax": (simplex.sparsemax, entmax(2.0)),
    "entmax15": (simplex.entmax15, entmax(1.5)),
    "entmax1.3": (lambda x: simplex.entmax(x, 1.3), entmax(1.3)),
    "entmax1.75": (lambda x: simplex.entmax(x, 1.75), entmax(1.75)),
}


def applied(function: Callable[[Any], Any], x: np.ndarray, library: str) -> np.ndarray:
    return np.asarray(function(torch.from_numpy(x) if library == "torch" else x))


@pytest.mark.parametrize("name", MAPS)
def test_every_map_agrees_with_its_oracle(row: np.ndarray, name: str) -> None:
    """Absolutely, as any row; and relatively where no score is cut off, for most probabilities are below 1e-7 here."""
    function, oracle = MAPS[name]
    want = oracle(row.astype("f8"))
    cases = [("numpy", *F4), ("torch", *F8), ("torch", *F4)]
    # The slowest three run the same code for both libraries.
    for library, dtype, absolute, relative in cases[:2] if name in ("entmax1.3", "entmax1.75", "nucleus") else cases:
        got = applied(function, row.astype(dtype), library)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=absolute, err_msg=f"{library} {dtype}")
        assert abs(got.sum(dtype="f8") - 1) < 1e-6
        assert not got[::10].any()
        if "max" not in name or name == "softmax":
            np.testing.assert_allclose(got, want, rtol=relative, atol=0, err_msg=f"{library} {dtype}")


@both
@pytest.mark.parametrize(("dtype", "relative"), [("f4", 5e-7), ("f8", 1e-12)])
def test_logarithms(row: np.ndarray, library: str, dtype: str, relative: float) -> None:
    wide = row.astype("f8")
    total = np.log(np.exp(wide - wide.max()).sum()) + wide.max()
    got = applied(simplex.log_softmax, row.astype(dtype), library)
    np.testing.assert_allclose(got, wide - total, rtol=relative, atol=0)
    assert applied(simplex.logsumexp, row.astype(dtype), library) == pytest.approx(total, rel=relative)


@pytest.mark.parametrize("name", MAPS)
def test_ten_million_ties(name: str) -> None:
    x = np.full(N, 3e4, dtype="f4")
    share = {"top_k": 100, "nucleus": N // 2}.get(name, N)
    for library in ("numpy",) if name in ("entmax1.3", "entmax1.75") else ("numpy", "torch"):
        got = applied(MAPS[name][0], x, library)
        np.testing.assert_allclose(got[:share], 1 / share, rtol=1e-6, err_msg=library)
        assert not got[share:].any()


@pytest.mark.parametrize("alpha", [1.3, 1.9])
def test_near_ties(alpha: float) -> None:
    """The first Newton step falls by a factor of n and is rounded; no normalization could hide an error in it."""
    x = np.linspace(0, 0.3 * (N / 5) ** (1 - alpha), N // 5, dtype="f4")
    np.testing.assert_allclose(simplex.entmax(x, alpha), entmax(alpha)(x.astype("f8")), rtol=1e-5)


def lattice(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, so that an oracle can raise each distribution to the number of its ties."""
    x = np.random.default_rng(1).normal(size=n).round(2)
    x[::10] = -np.inf
    values, counts = np.unique(x, return_counts=True)
    return x, values[1:], counts[1:]


@pytest.mark.parametrize(("noise", "library", "n"), [("normal", "numpy", N), ("logistic", "torch", 100_000)])
def test_perturb_max_of_smooth_noise(noise: str, library: str, n: int) -> None:
    x, values, counts = lattice(n)
    s = np.linspace(values[-1] - 9, values[-1] + 60, 10_001)[:, None]
    log_cdf = special.log_ndtr if noise == "normal" else special.log_expit
    every = (counts * log_cdf(s - values)).sum(-1)
    got = applied(lambda scores: simplex.perturb_max(scores, noise=noise), x, library)
    assert abs(got.sum() - 1) < 1e-12
    assert not got[::10].any()
    for value in values[:: len(values) // 20]:
        away = s[:, 0] - value
        want = (LAWS[noise].pdf(away) * np.exp(every - log_cdf(away))).sum() * (s[1, 0] - s[0, 0])
        np.testing.assert_allclose(got[x == value], want, rtol=1e-9, atol=1e-12)


def test_perturb_max_of_gumbel_noise_is_softmax(row: np.ndarray) -> None:
    """Ten million distinct scores: no ties help here."""
    got = simplex.perturb_max(row.astype("f8"), noise="gumbel")
    np.testing.assert_allclose(got, softmax(row.astype("f8")), rtol=1e-10, atol=1e-18)


def test_perturb_max_of_bounded_noise() -> None:
    """Adaptive quadrature between the edges of the density, the last interval halved towards its upper end."""
    x, values, counts = lattice(N)
    values, counts = values[values > values[-1] - 2], counts[values > values[-1] - 2]
    edges = [values[-1] - 1, *(values + 1)[:-1], *(values[-1] + 1 - 0.01 * 2.0 ** -np.arange(1, 30)), values[-1] + 1]

    def density(s: float, of: float) -> float:
        held = np.minimum((s - values + 1) / 2, 1)
        return float(np.exp((counts * np.log(held)).sum()) / (s - of + 1)) if s <= of + 1 else 0.0

    got = simplex.perturb_max(x, noise="uniform")
    for value in (values[-1], values[-5], values[-60], values[0]):
        spans = [integrate.quad(density, a, b, (value,), epsabs=1e-17, epsrel=1e-13) for a, b in pairwise(edges)]
        want = sum(part for part, _ in spans)
        np.testing.assert_allclose(got[x == value], want, rtol=1e-9, atol=1e-12)
    assert not got[x < values[0]].any()


@pytest.mark.parametrize("noise", ["normal", "gumbel", "uniform"])
def test_perturb_max_of_ten_million_ties(noise: str) -> None:
    x = np.where(np.arange(N) < N // 2, 3e4, -np.inf)
    got = simplex.perturb_max(x, noise=noise)
    np.testing.assert_allclose(got[: N // 2], 2 / N, rtol=1e-10)
    assert not got[N // 2 :].any()


LAPLACE = simplex.Noise(
    "laplace",
    lambda u: np.log(np.where(u < 0, np.exp(np.minimum(u, 0)) / 2, 1 - np.exp(-abs(u)) / 2)),
    lambda u: -abs(u) - np.log(2),
    0.0,
    -42.0,
    42.0,
)


@pytest.mark.parametrize(
    "noise", ["normal", "logistic", "gumbel", "uniform", LAPLACE], ids=lambda law: getattr(law, "name", law)
)
def test_long_rows_of_perturb_max_are_as_short_ones(noise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(2).normal(size=(2, 3, 50)) * 3
    x[0, 0, :20] = x[0, 0, 20]
    x[0, 1, ::7] = -np.inf
    x[1, 0] += 1e3
    x[1, 1, :3] = np.nan
    x[1, 2] = -np.inf
    want = simplex.perturb_max(x, noise=noise, points=4096)
    potential = simplex.perturb_max_loss(x[:1], np.full((1, 3), 1), noise=noise, points=4096, reduction="none")
    monkeypatch.setattr(perturb, "LONG", 49)
    np.testing.assert_allclose(simplex.perturb_max(x, noise=noise, points=4096), want, rtol=0, atol=1e-12)
    again = simplex.perturb_max_loss(x[:1], np.full((1, 3), 1), noise=noise, points=4096, reduction="none")
    np.testing.assert_allclose(again, potential, rtol=0, atol=1e-10)


@pytest.mark.parametrize("noise", ["normal", "logistic", "gumbel", "uniform"])
def test_gradients_of_long_rows(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 12))).requires_grad_()
    g = torch.from_numpy(np.random.default_rng(4).normal(size=(2, 12)))
    label = torch.tensor([3, 5])

    def gradients() -> list[torch.Tensor]:
        p = simplex.perturb_max(x, noise=noise, points=4096, temperature=0.7)
        loss = simplex.perturb_max_loss(x, label, noise=noise, points=4096, temperature=0.7)
        return [*torch.autograd.grad((p * g).sum(), x), *torch.autograd.grad(loss, x)]

    want = gradients()
    monkeypatch.setattr(perturb, "LONG", 11)
    for got, expected in zip(gradients(), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
