"""Exact search in parts: the hits of a product in float64, for every number of queries, threads and vectors."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.engines import side_by_side
from index.engines.faiss_flat import FaissFlat
from index.engines.native_faiss import faiss

RNG = np.random.default_rng(5)


def unit(n: int, d: int) -> NDArray[np.float32]:
    vectors = RNG.standard_normal((n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


GALLERY = unit(21_001, 24)
QUERIES = unit(70, 24)
TRUTH = QUERIES.astype(np.float64) @ GALLERY.T.astype(np.float64)


@given(n=st.integers(1, 70), k=st.integers(1, 120), size=st.integers(121, 21_001), threads=st.integers(1, 6))
def test_finds_what_a_product_in_float64_finds(n: int, k: int, size: int, threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss, "omp_get_max_threads", lambda: threads)
        scores, positions = side_by_side.top(QUERIES[:n], GALLERY[:size], k)
    truth = TRUTH[:n, :size]
    assert scores.shape == positions.shape == (n, k)
    assert all(len(set(row)) == k for row in positions.tolist())
    np.testing.assert_allclose(scores, np.take_along_axis(truth, positions, 1), atol=1e-6)
    np.testing.assert_allclose(scores, -np.sort(-truth, axis=1)[:, :k], atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_copies_on_both_sides_of_a_cut_are_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: 3)
    gallery = GALLERY.copy()
    copies = [0, 6_999, 7_008, 14_015, 14_016, 21_000]
    gallery[copies] = QUERIES[0]
    _, positions = side_by_side.top(QUERIES[:2], gallery, len(copies))
    assert sorted(positions[0].tolist()) == copies


@pytest.mark.parametrize("size", [300, 4_500, 17_000])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 11, 12, 16, 17, 28, 63, 64, 65])
def test_the_engine_finds_the_same_in_batches_of_every_size(n: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above and below every line where another way of searching begins."""
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: 2)
    vectors, queries = unit(size, 256), unit(n, 256)
    scores, rows = FaissFlat.build(vectors, np.arange(5, size + 5)).search(queries, 10)
    truth = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    best = np.argsort(-truth, axis=1)[:, :10]
    np.testing.assert_allclose(scores, np.take_along_axis(truth, best, 1), atol=1e-6)
    assert rows.tolist() == (best + 5).tolist()


def test_other_threads_keep_theirs() -> None:
    """The parts' threads use one core each; FAISS elsewhere goes on with all."""
    before = faiss.omp_get_max_threads()
    side_by_side.top(QUERIES[:3], GALLERY, 5)
    assert faiss.omp_get_max_threads() == before


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of newer Pythons, where threads run
def test_after_a_fork_a_search_has_threads_of_its_own() -> None:
    side_by_side.top(QUERIES[:3], GALLERY, 5)
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        try:
            faiss.omp_set_num_threads(1)
            _, positions = side_by_side.top(QUERIES[:3], GALLERY, 5)
            right = (positions == np.argsort(-TRUTH[:3, :], axis=1)[:, :5]).all()
        except BaseException:
            os._exit(2)
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
