"""What must hold for any scores: properties checked by hypothesis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simplex
from tests.simplex.registry import MAPS, Map

each_map = pytest.mark.parametrize("mapping", MAPS, ids=str)
finite = st.floats(-20, 20, allow_nan=False, width=32)
scores = st.lists(finite | st.integers(-3, 3).map(float), min_size=1, max_size=12).map(np.array)
few = settings(max_examples=40, deadline=None, derandomize=True)


@each_map
@few
@given(x=scores)
def test_is_a_distribution(mapping: Map, x: np.ndarray) -> None:
    p = mapping.call(x)
    assert (p >= 0).all()
    assert abs(p.sum() - 1) < 1e-12


@each_map
@few
@given(x=scores)
def test_monotone(mapping: Map, x: np.ndarray) -> None:
    if not mapping.monotone:
        return
    p = mapping.call(x)
    better = x[:, None] > x[None, :]
    assert (p[:, None] - p[None, :])[better].min(initial=0) >= -1e-12


@each_map
@few
@given(x=scores, shift=st.floats(-50, 50, width=32))
def test_shift_invariant(mapping: Map, x: np.ndarray, shift: float) -> None:
    if mapping.shift_invariant:
        np.testing.assert_allclose(mapping.call(np.round(x, 3) + shift), mapping.call(np.round(x, 3)), atol=1e-9)


@each_map
@few
@given(x=scores, seed=st.integers(0, 99))
def test_permutation_equivariant(mapping: Map, x: np.ndarray, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(x))
    if mapping.name in ("top3", "nucleus"):  # ties go to the lower position
        x = x + 1e-3 * np.arange(len(x)) if len(set(x)) < len(x) else x
        if len(set(x)) < len(x):
            return
    np.testing.assert_allclose(mapping.call(x[order]), mapping.call(x)[order], atol=1e-12)


@few
@given(x=scores)
def test_alpha_reaches_softmax_and_sparsemax(x: np.ndarray) -> None:
    np.testing.assert_allclose(simplex.entmax(x, 1.0), simplex.softmax(x), atol=1e-15)
    np.testing.assert_allclose(simplex.entmax(x, 1 + 1e-9), simplex.softmax(x), atol=1e-7)
    np.testing.assert_allclose(simplex.entmax(x, 2 - 1e-9), simplex.sparsemax(x), atol=1e-7)
    np.testing.assert_allclose(simplex.entmax(x, 2 + 1e-9), simplex.sparsemax(x), atol=1e-7)
    np.testing.assert_allclose(simplex.entmax(x, 1.5 + 1e-10), simplex.entmax15(x), atol=1e-7)


@few
@given(x=scores, extra=st.integers(0, 3))
def test_sparse_softmax_with_everything_kept_is_softmax(x: np.ndarray, extra: int) -> None:
    np.testing.assert_array_equal(simplex.sparse_softmax(x, top_k=len(x) + extra), simplex.softmax(x))
    np.testing.assert_array_equal(simplex.sparse_softmax(x, top_p=1.0), simplex.softmax(x))


@few
@given(x=scores)
def test_gumbel_perturb_max_is_softmax(x: np.ndarray) -> None:
    np.testing.assert_allclose(simplex.perturb_max(x, noise="gumbel"), simplex.softmax(x), atol=1e-13)


@few
@given(x=scores, alpha=st.floats(1.05, 3))
def test_the_support_shrinks_as_alpha_and_cold_grow(x: np.ndarray, alpha: float) -> None:
    support = (simplex.entmax(x, alpha) > 1e-9).sum()
    assert (simplex.entmax(x, alpha + 0.5) > 1e-9).sum() <= support
    assert (simplex.entmax(x, alpha, temperature=0.5) > 1e-9).sum() <= support


@few
@given(x=scores)
def test_temperature_zero_limit_splits_ties_evenly(x: np.ndarray) -> None:
    x = np.round(x)
    best = x == x.max()
    np.testing.assert_allclose(simplex.softmax(x, temperature=1e-3), best / best.sum(), atol=1e-12)
