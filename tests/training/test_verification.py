"""Verification rates against scikit-learn and brute force; bootstrap intervals against what is known of means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

import training.measures.retrieval
from training.measures.bootstrap import interval
from training.measures.verification import BINS, Verification, verification


def some(seed: int, n: int = 40, classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors, classes, and the binned cosine and sameness of each pair, found one by one."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, classes, n)
    codes[:3] = 0, 0, 1
    vectors = (generator.normal(size=(n, 6)) + 2 * np.eye(6)[codes % 6]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    upper = np.triu_indices(n, 1)
    binned = np.minimum(np.floor(((vectors @ vectors.T)[upper] + 1) * (BINS / 2)), BINS - 1)
    return vectors, codes, binned, (codes[:, None] == codes[None])[upper]


def pairs(*bins: int, count: int = 1) -> np.ndarray:
    """So many pairs in each of these bins."""
    return count * np.bincount(bins, minlength=BINS)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_the_roc_is_that_of_scikit_learn(seed: int, block: int) -> None:
    vectors, codes, binned, same = some(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.measures.retrieval, "BLOCK", block)
        found = verification(vectors, codes)
    assert found is not None
    assert found.pairs == (same.sum(), (~same).sum())
    far, tar, thresholds = roc_curve(same, binned, drop_intermediate=False)
    ours = dict(zip(found.roc()[0].tolist(), zip(*found.roc()[1:], strict=True), strict=True))
    for threshold, rate, hit in zip(thresholds[1:], far[1:], tar[1:], strict=True):
        # a product of another shape may round a cosine at the edge of a bin to the other side
        assert ours[threshold / (BINS / 2) - 1] == pytest.approx((rate, hit), abs=1.01 / min(found.pairs))


@pytest.mark.parametrize("seed", range(5))
def test_the_equal_error_rate_lies_where_the_errors_cross(seed: int) -> None:
    vectors, codes, binned, same = some(seed, n=200)
    found = verification(vectors, codes)
    assert found is not None
    errors = [(np.mean(binned[~same] >= t), np.mean(binned[same] < t)) for t in np.unique(binned)]
    best = min(errors, key=lambda pair: abs(pair[0] - pair[1]))
    assert found.eer() == pytest.approx(np.mean(best), abs=2e-3)
    assert min(best) - 2e-3 <= found.eer() <= max(best) + 2e-3


def test_separated_pairs_have_no_errors_and_mixed_ones_half() -> None:
    apart = Verification(pairs(BINS - 1, count=9), pairs(3, count=9))
    assert apart.eer() == pytest.approx(0)
    alike = Verification(pairs(7, count=9), pairs(7, count=9))
    assert alike.eer() == pytest.approx(0.5)


def test_tar_at_far_accepts_no_more_impostors_than_asked() -> None:
    vectors, codes, binned, same = some(1, n=120)
    found = verification(vectors, codes)
    assert found is not None
    for far in (0.5, 0.1, 0.02):
        rate = found.tar_at(far)
        level = (rate["threshold"] + 1) * BINS / 2
        assert np.mean(binned[~same] >= level) <= far
        allowed = [t for t in np.unique(binned) if np.mean(binned[~same] >= t) <= far]
        assert rate["tar"] == pytest.approx(np.mean(binned[same] >= min(allowed)), abs=1e-3)


@pytest.mark.parametrize(("impostors", "supported"), [(29_999, False), (30_000, True)])
def test_a_rate_that_the_pairs_cannot_support_is_not_told(impostors: int, supported: bool) -> None:
    rate = Verification(pairs(9), pairs(5, count=impostors)).tar_at(1e-3)
    assert rate["supported"] is supported
    assert (rate["tar"] is None) is not supported
    assert supported or rate["pairs_needed"] == 30_000


@pytest.mark.parametrize("impostors", [9, 30, 31, 300, 30_000])
def test_no_point_is_drawn_where_no_rate_is_told(impostors: int) -> None:
    found = Verification(pairs(BINS - 1, count=9), pairs(*(number % 1000 for number in range(impostors))))
    drawn = found.curve()
    assert [rate for rate, _ in drawn if not found.tar_at(rate)["supported"]] == []
    assert bool(drawn) == (impostors > 30)
    if drawn:
        assert drawn[0][0] == pytest.approx(30 / impostors)  # and it begins where one is
        assert drawn[-1] == (1.0, 1.0)


def test_without_two_kinds_of_pairs_there_is_nothing_to_verify() -> None:
    vectors = np.eye(3, dtype=np.float32)
    assert verification(vectors, np.array([0, 1, 2])) is None
    assert verification(vectors, np.array([1, 1, 1])) is None
    assert verification(vectors[:0], np.array([], dtype=np.int64)) is None


def test_an_interval_is_as_wide_as_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    low, high = interval(values) or (0, 0)
    width = 1.96 * values.std() / np.sqrt(2000)
    assert (values.mean() - low, high - values.mean()) == pytest.approx((width, width), rel=0.1)


def test_whole_classes_make_the_interval_as_wide_as_classes_differ() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 40)
    centres = generator.normal(size=50)
    values = centres[groups] + 0.01 * generator.normal(size=2000)
    low, high = interval(values, groups) or (0, 0)
    assert (high - low) / 2 == pytest.approx(1.96 * centres.std() / np.sqrt(50), rel=0.15)
    plain = interval(values) or (0, 0)
    assert plain[1] - plain[0] < (high - low) / 3


@pytest.mark.parametrize("classes", [5, 10, 20])
def test_few_classes_have_an_interval_that_is_wide_enough(classes: int) -> None:
    """400 rounds; that of resamples alone held .81, .87 and .93."""
    generator, held = np.random.default_rng(0), []
    for _ in range(400):
        shares = generator.beta(4, 1.5, classes)
        hits = (generator.random((classes, 20)) < shares[:, None]).ravel()
        found = interval(hits, np.repeat(np.arange(classes), 20), draws=200)
        assert found is not None
        held.append(found[0] <= 4 / 5.5 <= found[1])
        assert 0 <= found[0] <= hits.mean() <= found[1] <= 1
    assert np.mean(held) >= 0.9


def test_one_value_or_few_classes_have_no_interval() -> None:
    assert interval([1.0]) is None
    assert interval([1.0, 0.0], np.array([3, 3])) is None
    assert interval([1.0, 0.0, 1.0, 0.5], np.arange(4)) is None


def test_what_is_always_right_is_not_certain() -> None:
    from scipy.stats import binomtest

    exact = binomtest(12, 12).proportion_ci(0.95)
    assert interval(np.ones(12, bool)) == pytest.approx((exact.low, exact.high))
    assert interval(np.zeros(12, bool)) == pytest.approx((1 - exact.high, 1 - exact.low))
    assert interval(np.ones(60, bool), np.arange(60) // 5) == pytest.approx((exact.low, exact.high))  # twelve classes
    half = binomtest(6, 12).proportion_ci(0.95)
    assert interval(np.arange(12) % 2 == 0) == pytest.approx((half.low, half.high))
    assert interval(np.full(12, 0.7)) is None
    assert interval(np.full(60, 0.7), np.arange(60) // 5) is None
    assert interval(np.arange(60) % 2 == 0, np.arange(60) // 6) is None  # every class half right
