"""Each map against its oracle: values, types, axes and the policy for bad input."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import simplex
from simplex import kernel, losses
from tests.simplex.registry import MAPS, Map, entmax_row

INF = np.inf
each_map = pytest.mark.parametrize("mapping", MAPS, ids=str)
both = pytest.mark.parametrize("library", ["numpy", "torch"])


def rows(n: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    normal = rng.normal(size=(3, n))
    masked = normal.copy()
    masked[:, 1::2] = -INF
    return {
        "random": normal,
        "spread": 4 * normal,
        "close": 0.01 * normal,
        "tied": np.round(normal),
        "constant": np.zeros((1, n)),
        "integer": rng.integers(-3, 4, size=(3, n)).astype(float),
        "masked": masked if n > 1 else normal,
    }


def as_library(x: np.ndarray, library: str) -> Any:
    return torch.tensor(x) if library == "torch" else x


@both
@each_map
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 5e-7)])
def test_agrees_with_the_oracle(mapping: Map, library: str, dtype: str, tolerance: float) -> None:
    for n in (1, 2, 7) if mapping.slow_oracle else (1, 2, 7, 300):
        for name, x in rows(n).items():
            if mapping.slow_oracle and name not in ("random", "tied", "masked"):
                continue
            scores = x[:1].astype(dtype) if mapping.slow_oracle else x.astype(dtype)
            got = np.asarray(mapping.call(as_library(scores, library)))
            want = np.stack([mapping.oracle(row.astype(np.float64)) for row in scores])
            assert str(got.dtype) == dtype
            np.testing.assert_allclose(got, want.astype(np.float64), rtol=0, atol=tolerance, err_msg=f"{name} n={n}")


@both
@each_map
@pytest.mark.parametrize(("dtype", "tolerance", "offset"), [("float64", 1e-12, 1e9), ("float32", 5e-7, 3e5)])
def test_a_huge_offset_costs_nothing(mapping: Map, library: str, dtype: str, tolerance: float, offset: float) -> None:
    if not mapping.shift_invariant or mapping.slow_oracle:
        pytest.skip("this map depends on the zero of the scores, or its oracle is slow: see the invariance property")
    x = (rows(50)["random"] * 2 + offset).astype(dtype)
    want = np.stack([mapping.oracle(row.astype(np.float64) - offset) for row in x])
    got = np.asarray(mapping.call(as_library(x, library)))
    np.testing.assert_allclose(got, want.astype(np.float64), rtol=0, atol=tolerance)
    cold = np.asarray(mapping.call(as_library(x, library), temperature=0.5))
    want = np.stack([mapping.oracle((row.astype(np.float64) - offset) / 0.5) for row in x])
    np.testing.assert_allclose(cold, want.astype(np.float64), rtol=0, atol=tolerance)


@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "torch"])
@pytest.mark.parametrize("scale", [3.0, 1.0, 0.2, 0.01, 0.0])
@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-7)], ids=["f64", "f32"])
def test_long_rows(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, scale: float, alpha: float, dtype: torch.dtype, tolerance: float
) -> None:
    """Rows long enough for the two-level top-k and the compiled path, from tiny supports to full ones."""
    if not compiled:
        monkeypatch.setattr(kernel, "usable", lambda x, alpha: False)
    elif kernel.library() is None:
        pytest.skip("no C compiler on this machine")
    x = torch.randn(3, 5003, dtype=dtype, generator=torch.Generator().manual_seed(5)) * scale
    x[1, ::3] = -INF
    x[2] = x[2].round(decimals=1)
    want = np.stack([entmax_row(row.double().numpy(), alpha) for row in x]).astype(np.float64)
    np.testing.assert_allclose(simplex.entmax(x, alpha).double().numpy(), want, rtol=0, atol=tolerance)
    assert (simplex.entmax(x, alpha).double().sum(-1) - 1).abs().max() < (1e-12 if dtype == torch.float64 else 2e-6)


@each_map
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, np.float16], ids=str)
def test_half_precision_is_computed_in_float32(mapping: Map, dtype: Any) -> None:
    x = np.random.default_rng(1).normal(size=(2, 200)).astype(np.float16)
    half = x if dtype is np.float16 else torch.tensor(x.astype(np.float32)).to(dtype)
    got = mapping.call(half)
    assert got.dtype == dtype
    wide = half.astype(np.float32) if dtype is np.float16 else half.float()
    want = mapping.call(wide)
    precision = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
    np.testing.assert_allclose(
        np.asarray(want).astype(dtype) if dtype is np.float16 else want.to(dtype).float(),
        got if dtype is np.float16 else got.float(),
    )
    few = half[:, :5]
    exact = np.stack(
        [mapping.oracle(np.asarray(row, dtype=np.float64)) for row in (few if dtype is np.float16 else few.double())]
    )
    np.testing.assert_allclose(
        np.asarray(mapping.call(few) if dtype is np.float16 else mapping.call(few).float()),
        exact.astype(np.float64),
        rtol=0,
        atol=precision / 2,
    )
    total = got.astype(np.float32).sum(-1) if dtype is np.float16 else got.float().sum(-1)
    np.testing.assert_allclose(total, 1, atol=2 * precision)


@both
@each_map
def test_integers_are_promoted(mapping: Map, library: str) -> None:
    x = np.array([[3, 1, 2], [0, 0, 0]])
    np.testing.assert_allclose(
        mapping.call(as_library(x, library)), mapping.call(as_library(x.astype(np.float32), library)), atol=1e-6
    )


@both
@each_map
def test_any_axis_and_batch_shape(mapping: Map, library: str) -> None:
    x = np.random.default_rng(2).normal(size=(2, 3, 4))
    scores = as_library(x, library)
    for dim in (0, 1, 2, -1, -2, -3):
        want = np.moveaxis(np.asarray(mapping.call(as_library(np.moveaxis(x, dim, -1).copy(), library))), -1, dim)
        np.testing.assert_allclose(np.asarray(mapping.call(scores, dim=dim)), want, atol=1e-15)
    assert tuple(mapping.call(as_library(np.empty((0, 3)), library)).shape) == (0, 3)
    assert tuple(mapping.call(as_library(x[0, 0], library)).shape) == (4,)


@both
@each_map
def test_rows_that_cannot_be_answered_are_nan_and_leave_others_alone(mapping: Map, library: str) -> None:
    x = np.array([[1.0, 0.5, -INF], [np.nan, 1, 2], [-INF, -INF, -INF], [INF, 1, 2], [INF, -INF, 0]])
    got = np.asarray(mapping.call(as_library(x, library)))
    assert np.isnan(got[1:]).all()
    assert got[0, 2] == 0
    np.testing.assert_allclose(got[0].sum(), 1)


@each_map
def test_a_score_of_minus_infinity_has_gradient_zero(mapping: Map) -> None:
    x = torch.tensor([[0.3, -INF, 0.1, 0.2]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mapping.call(x)[0, 0], x)
    assert gradient[0, 1] == 0
    assert gradient.isfinite().all()


@both
@each_map
def test_bad_arguments_are_named(mapping: Map, library: str) -> None:
    x = as_library(np.ones((2, 3)), library)
    for temperature in (0, -1, np.nan, INF):
        with pytest.raises(ValueError, match="temperature must be positive"):
            mapping.call(x, temperature=temperature)
    with pytest.raises(ValueError, match="x must hold at least one score"):
        mapping.call(x[:, :0])
    with pytest.raises(ValueError, match="dim must name an axis of x"):
        mapping.call(x, dim=2)


@both
def test_bad_parameters_are_named(library: str) -> None:
    x = as_library(np.ones(3), library)
    cases: list[tuple[str, Any]] = [
        ("alpha must be at least 1", lambda: simplex.entmax(x, 0.9)),
        ("alpha must be at least 1", lambda: simplex.entmax(x, np.nan)),
        ("order must be even", lambda: simplex.taylor_softmax(x, order=3)),
        ("order must be at most 10", lambda: simplex.taylor_softmax(x, order=12)),
        ("top_k must be at least 1", lambda: simplex.sparse_softmax(x, top_k=0)),
        ("top_p must lie in", lambda: simplex.sparse_softmax(x, top_p=0.0)),
        ("exactly one of top_k and top_p", lambda: simplex.sparse_softmax(x)),
        ("noise must be one of", lambda: simplex.perturb_max(x, noise="cauchy")),
        ("points must be at least 2", lambda: simplex.perturb_max(x, points=1)),
        ("tau must be positive", lambda: simplex.gumbel_softmax(x, tau=0.0)),
        ("order must be a whole number", lambda: simplex.taylor_softmax(x, order=2.0)),  # type: ignore[arg-type]
        ("top_k must be a whole number", lambda: simplex.sparse_softmax(x, top_k=1.5)),  # type: ignore[arg-type]
        ("temperature must be positive", lambda: simplex.softmax(x, temperature=None)),  # type: ignore[arg-type]
        ("n_total must be a whole number", lambda: simplex.certify(x, np.nan)),  # type: ignore[arg-type]
        ("lowest must be a number", lambda: simplex.certify(x, 10, alpha=1, lowest=np.nan)),
    ]
    other = as_library(np.ones(1), "torch" if library == "numpy" else "numpy")
    for mapping in (simplex.softmax, simplex.entmax15, simplex.logsumexp):
        cases.append(("temperature must be a number or of the kind", partial(mapping, x, temperature=other)))
    for text, call in cases:
        with pytest.raises(ValueError, match=text):
            call()


def test_taylor_raw_is_not_monotone_and_the_default_is() -> None:
    x = np.array([0.0, -5.0])
    np.testing.assert_allclose(simplex.taylor_softmax(x, monotone=False), [2 / 19, 17 / 19])
    held = simplex.taylor_softmax(x)
    assert held[0] > held[1]


def test_logsumexp_lies_between_the_maximum_and_its_bound() -> None:
    x = np.random.default_rng(3).normal(size=(5, 9)) * 10
    for temperature in (0.01, 1.0, 7.0):
        got = simplex.logsumexp(x, temperature=temperature)
        np.testing.assert_allclose(got, simplex.logsumexp(torch.tensor(x), temperature=temperature).numpy())
        assert (got >= x.max(-1) - 1e-12).all()
        assert (got <= x.max(-1) + temperature * np.log(9) + 1e-12).all()


@both
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_temperature_that_the_scores_cannot_hold_takes_the_best(library: str, dtype: Any, shape: Any) -> None:
    x = as_library(np.array([5.0, 6.0, 1.0], dtype=dtype), library)
    for temperature in (1e-46, 5e-324):
        for cold in (temperature, as_library(np.full(shape, temperature), library)):
            for function in (simplex.softmax, simplex.sparsemax, simplex.entmax15, simplex.perturb_max):
                assert np.asarray(function(x, temperature=cold)).tolist() == [0, 1, 0]
            assert int(simplex.gumbel_max(x, temperature=cold)) == 1
            assert float(losses.cross_entropy(x, as_library(np.array(1), library), temperature=cold)) == 0
        assert float(simplex.logsumexp(x, temperature=temperature)) == 6


def test_a_temperature_per_row_broadcasts_along_any_axis() -> None:
    x, each = np.random.default_rng(4).normal(size=(3, 5, 4)), np.array([0.2, 0.5, 1.0, 3.0])
    for scores, temperature in ((x, each), (torch.tensor(x), torch.tensor(each))):
        got = np.asarray(simplex.softmax(scores, dim=1, temperature=temperature))
        want = np.stack([simplex.softmax(x[..., j], temperature=t) for j, t in enumerate(each)], -1)
        np.testing.assert_allclose(got, want, atol=1e-15)


def test_alpha_per_row_and_its_limits() -> None:
    x = np.random.default_rng(4).normal(size=(4, 30))
    alphas = np.array([[1.0], [1.3], [1.5], [2.0]])
    for scores, orders in ((x, alphas), (torch.tensor(x), torch.tensor(alphas))):
        got = np.asarray(simplex.entmax(scores, orders))
        for row, alpha, p in zip(x, alphas[:, 0], got, strict=True):
            np.testing.assert_allclose(p, simplex.entmax(row, float(alpha)), atol=1e-14)
        columns = np.asarray(simplex.entmax(scores.T, orders.T, dim=0))
        np.testing.assert_allclose(columns, got.T, atol=1e-15)
