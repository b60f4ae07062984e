"""Measures against scikit-learn and against loops that follow their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score, roc_curve

from index import metrics

RANDOM = np.random.default_rng(0)
N = 600
P = np.round(RANDOM.random(N), 2)  # rounded: many ties
Y = RANDOM.random(N) < P
W = RANDOM.random(N) + 0.1


@pytest.mark.parametrize("weight", [None, W], ids=["equal weights", "weighted"])
def test_against_scikit_learn(weight: np.ndarray[tuple[int], np.dtype[np.float64]] | None) -> None:
    p = np.clip(P, 0.01, 0.99)
    assert metrics.auroc(P, Y, weight) == pytest.approx(roc_auc_score(Y, P, sample_weight=weight))
    assert metrics.brier(P, Y, weight) == pytest.approx(brier_score_loss(Y, P, sample_weight=weight))
    assert metrics.event_nll(p, Y, weight) == pytest.approx(log_loss(Y, p, sample_weight=weight))
    fpr, tpr, _ = roc_curve(Y, P, sample_weight=weight, drop_intermediate=False)
    assert metrics.fpr_at_tpr(P, Y, weight) == pytest.approx(fpr[np.argmax(tpr >= 0.95 - 1e-12)])


def test_ece_of_equal_bins_by_hand() -> None:
    order = np.argsort(P, kind="stable")
    bins = np.array_split(order, 15)  # 600 = 15 * 40
    frequency = np.array([Y[p == P].mean() for p in P])  # of all queries that were given the same
    expected = np.mean([abs(P[part].mean() - frequency[part].mean()) for part in bins])
    assert metrics.ece(P, Y) == pytest.approx(expected)
    table = metrics.reliability(P, Y)
    assert [row["share"] for row in table] == pytest.approx([1 / 15] * 15)
    assert [row["probability"] for row in table] == pytest.approx([P[part].mean() for part in bins])


@pytest.mark.parametrize("weight", [None, W], ids=["equal weights", "weighted"])
def test_which_of_equal_probabilities_comes_first_says_nothing(
    weight: np.ndarray[tuple[int], np.dtype[np.float64]] | None,
) -> None:
    p = np.round(P, 1)  # as a calibrator of few steps says it
    worst_first = np.argsort(Y, kind="stable")
    for order in (worst_first, worst_first[::-1], np.random.default_rng(2).permutation(N)):
        w = None if weight is None else weight[order]
        for measure in (metrics.ece, metrics.aurc):
            assert measure(p[order], Y[order], w) == pytest.approx(measure(p, Y, weight), abs=1e-12)
        curve = metrics.risk_coverage(p[order], Y[order], w)
        expected = metrics.risk_coverage(p, Y, weight)
        assert [point["risk"] for point in curve] == pytest.approx([point["risk"] for point in expected])
    assert metrics.ece(np.full(1000, 0.8), np.arange(1000) < 800) == pytest.approx(0)


def test_integer_weights_mean_copies() -> None:
    copies = RANDOM.integers(1, 4, N)
    p, y = np.repeat(P, copies), np.repeat(Y, copies)
    for measure in (metrics.auroc, metrics.brier, metrics.fpr_at_tpr):
        assert measure(P, Y, copies) == pytest.approx(measure(p, y))


@pytest.mark.parametrize("n", [200, 2000])
def test_the_floor_is_what_a_calibrated_predictor_scores(n: int) -> None:
    p = np.random.default_rng(1).random(n)
    scored = [metrics.ece(p, np.random.default_rng(seed).random(n) < p) for seed in range(100, 200)]
    floor = metrics.ece_floor(p)
    assert floor == pytest.approx(np.mean(scored), rel=0.1)
    assert metrics.ece(p, np.random.default_rng(5).random(n) < p**3) > 2 * floor


def test_aurc_by_its_definition() -> None:
    confidence, correct = RANDOM.permutation(N).astype(float), RANDOM.random(N) < 0.7
    order = np.argsort(-confidence)
    risks = [1 - correct[order[: kept + 1]].mean() for kept in range(N)]
    assert metrics.aurc(confidence, correct) == pytest.approx(np.mean(risks))


def test_one_sided_events_have_no_rank() -> None:
    assert metrics.auroc([0.1, 0.2], [1, 1]) is None
    assert metrics.fpr_at_tpr([0.1, 0.2], [0, 0]) is None


def test_an_impossible_event_costs_infinitely_much() -> None:
    assert metrics.event_nll([0.0, 0.5], [1, 1]) == np.inf
    assert metrics.finite(np.inf) is None
    assert metrics.finite(1.5) == 1.5


def test_unlike_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="alike"):
        metrics.ece([0.1, 0.2], [1])


def test_the_risk_coverage_curve_is_counted_and_its_area_is_aurc() -> None:
    random = np.random.default_rng(4)
    p, w = random.random(60), random.uniform(0.5, 2, 60)
    right = random.random(60) < p
    curve = metrics.risk_coverage(p, right, w)
    order = sorted(range(60), key=lambda i: -p[i])
    for at, point in enumerate(curve):
        surest = order[: at + 1]
        assert point["coverage"] == pytest.approx(w[surest].sum() / w.sum())
        assert point["risk"] == pytest.approx((w[surest] * ~right[surest]).sum() / w[surest].sum())
    steps = np.diff([0.0, *(point["coverage"] for point in curve)])
    assert steps @ [point["risk"] for point in curve] == pytest.approx(metrics.aurc(p, right, w))
    thin = metrics.risk_coverage(p, right, w, points=7)
    assert len(thin) == 7
    assert (thin[0], thin[-1]) == (curve[0], curve[-1])
