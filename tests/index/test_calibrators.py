"""Every calibrator by name: against scikit-learn, scipy and the venn-abers package, and through `calibrate`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from venn_abers import VennAbers

from index import metrics
from index.calibration.calibrate import calibrate
from index.calibration.calibrators import CALIBRATORS, BestCosine, Calibrator, Temperature, calibrator_from_json
from index.calibration.conditional_logit import NO_MATCH
from index.calibration.conformal import nonconformity
from index.calibration.evidence import Evidence
from index.calibration.examples import Examples, concatenate, select
from index.calibration.outcome import distribution, table
from index.calibration.staleness import Seen
from index.errors import CalibrationError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ON_BEST = ("platt", "isotonic", "venn-abers")


def evidence_of(best: Floats, seed: int = 0) -> Evidence:
    """Two labels a query, the first at `best` (n,)."""
    random = np.random.default_rng(seed)
    first = np.repeat(best[:, None], 5, axis=1)
    second = first - random.uniform(0.02, 0.3, (len(best), 1))
    features = np.stack([first, second], axis=1).reshape(-1, 5)
    features[:, 4] = 0.4
    return Evidence(
        features, np.tile([0, 1], len(best)), 2 * np.arange(len(best) + 1), best - random.uniform(0.2, 0.4, len(best))
    )


def simulated(n: int, seed: int = 0, digits: int = 9) -> tuple[Evidence, Ints]:
    """The top label is right with a probability that only the best cosine decides, else nothing matches."""
    random = np.random.default_rng(seed)
    best = np.round(random.uniform(0.2, 0.95, n), digits)
    right = random.random(n) < 1 / (1 + np.exp(-12 * (best - 0.6)))
    return evidence_of(best, seed + 1), np.where(right, 2 * np.arange(n), NO_MATCH)


def top_probability(found: Calibrator, evidence: Evidence) -> Floats:
    p: Floats = distribution(table(evidence, *found.logits(evidence)), "softmax", 1.0)[:, 1]
    return p


def best_and_right(evidence: Evidence, target: Ints) -> tuple[Floats, NDArray[np.bool_]]:
    return evidence.features[evidence.starts[:-1], 0], target == evidence.starts[:-1]


def fitted(name: str, n: int = 300, **options: Any) -> Calibrator:
    evidence, target = simulated(n, **options)
    return CALIBRATORS[name](evidence, target, np.ones(n))


@pytest.mark.parametrize("name", CALIBRATORS)
def test_logits_are_finite_but_for_labels_it_cannot_speak_of(name: str) -> None:
    evidence = evidence_of(np.linspace(-1, 1, 41))
    logits, no_match = fitted(name).logits(evidence)
    assert (logits.shape, no_match.shape) == ((82,), (41,))
    assert np.isfinite(no_match).all()
    assert np.isfinite(logits[::2]).all()
    assert np.isneginf(logits[1::2]).all() if name in ON_BEST else np.isfinite(logits).all()
    np.testing.assert_allclose(distribution(table(evidence, logits, no_match), "softmax", 1.0).sum(axis=1), 1)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_json_round_trip(name: str) -> None:
    found = fitted(name)
    again = calibrator_from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again == found
    evidence = evidence_of(np.linspace(-1, 1, 41))
    for mine, other in zip(found.logits(evidence), again.logits(evidence), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_a_damaged_record_is_refused(name: str) -> None:
    record = fitted(name).to_json()
    for key, value in record.items():
        for damage in (None, "x", float("nan"), [float("inf")], {}):
            if key == "kind" or damage != value:
                with pytest.raises(CalibrationError, match="Build the index again"):
                    calibrator_from_json(record | {key: damage})
        with pytest.raises(CalibrationError, match="Build the index again"):
            calibrator_from_json({name: kept for name, kept in record.items() if name != key})


@pytest.mark.parametrize("kind", ["isotonic", "venn-abers"])
@pytest.mark.parametrize(
    "steps",
    [
        {"edges": [], "levels": []},
        {"edges": [0.1, 0.2], "levels": [0.5]},
        {"edges": [0.2, 0.1], "levels": [0.4, 0.5]},
        {"edges": [0.1, 0.2], "levels": [0.5, 0.4]},
        {"edges": [0.1, 0.2], "levels": [0.5, 1.5]},
    ],
    ids=["none", "unlike lengths", "edges fall", "levels fall", "no probability"],
)
def test_steps_that_are_none_are_refused(kind: str, steps: dict[str, list[float]]) -> None:
    with pytest.raises(CalibrationError, match="Build the index again"):
        calibrator_from_json({"kind": kind, "slope": 0.0, "intercept": 0.0, **steps})


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("falling", [False, True], ids=["closer is righter", "closer is wronger"])
def test_closer_never_means_less_probable(name: str, falling: bool) -> None:
    evidence, target = simulated(300)
    if falling:
        target = np.where(target < 0, evidence.starts[:-1], NO_MATCH)
    found = CALIBRATORS[name](evidence, target, np.ones(300))
    one = evidence_of(np.array([0.5]))
    grid = np.linspace(-1, 1, 401)
    # the same query, but for its best label's closeness
    near = Evidence(
        np.repeat(one.features[None], len(grid), axis=0).reshape(-1, 5),
        np.tile([0, 1], len(grid)),
        2 * np.arange(len(grid) + 1),
        np.repeat(one.background, len(grid)),
    )
    near.features[::2, :4] = grid[:, None]
    assert (np.diff(top_probability(found, near)) >= -1e-12).all()


def test_platt_is_the_logistic_regression_on_smoothed_targets() -> None:
    evidence, target = simulated(300)
    best, right = best_and_right(evidence, target)
    weight = np.random.default_rng(1).uniform(0.5, 2, 300)
    found = CALIBRATORS["platt"](evidence, target, weight)
    assert isinstance(found, BestCosine)
    yes, no = weight[right].sum(), weight[~right].sum()
    soft = np.where(right, (yes + 1) / (yes + 2), 1 / (no + 2))
    # a soft target is a right example and a wrong one with its share of the weight
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000)
    twice = np.concatenate([best, best])[:, None]
    oracle.fit(twice, np.repeat([1, 0], 300), np.concatenate([weight * soft, weight * (1 - soft)]))
    assert found.slope == pytest.approx(oracle.coef_[0, 0], rel=1e-3)
    assert found.intercept == pytest.approx(oracle.intercept_[0], rel=1e-3)


def test_platt_of_separable_queries_is_finite() -> None:
    best = np.concatenate([np.full(50, 0.9), np.full(50, 0.2)])
    evidence = evidence_of(best)
    found = CALIBRATORS["platt"](evidence, np.where(best > 0.5, evidence.starts[:-1], NO_MATCH), np.ones(100))
    assert isinstance(found, BestCosine)
    p = top_probability(found, evidence)
    assert p[0] == pytest.approx(51 / 52, abs=1e-3)
    assert p[-1] == pytest.approx(1 / 52, abs=1e-3)


@pytest.mark.parametrize("digits", [9, 2], ids=["no ties", "ties"])
def test_isotonic_is_scikit_learns(digits: int) -> None:
    evidence, target = simulated(300, digits=digits)
    best, right = best_and_right(evidence, target)
    weight = np.random.default_rng(1).uniform(0.5, 2, 300)
    found = CALIBRATORS["isotonic"](evidence, target, weight)
    oracle = IsotonicRegression(y_min=1e-4, y_max=1 - 1e-4).fit(best, right, sample_weight=weight)
    np.testing.assert_allclose(top_probability(found, evidence), oracle.predict(best), atol=1e-9)


@pytest.mark.parametrize("digits", [9, 2], ids=["no ties", "ties"])
def test_venn_abers_is_the_package_at_scores_it_never_saw(digits: int) -> None:
    evidence, target = simulated(200, digits=digits)
    best, right = best_and_right(evidence, target)
    found = CALIBRATORS["venn-abers"](evidence, target, np.ones(200))
    asked = np.random.default_rng(5).uniform(0.15, 0.99, 500)
    asked = np.concatenate([asked, best])
    package = VennAbers()
    scores, at = (best + 1) / 2, (asked + 1) / 2
    package.fit(np.column_stack([1 - scores, scores]), right.astype(float))
    expected = np.asarray(package.predict_proba(np.column_stack([1 - at, at]))[0])[:, 1]
    np.testing.assert_allclose(top_probability(found, evidence_of(asked)), np.clip(expected, 1e-4, 1 - 1e-4), atol=1e-9)


def test_temperature_is_the_optimum() -> None:
    evidence, target = simulated(300)
    weight = np.random.default_rng(1).uniform(0.5, 2, 300)
    found = CALIBRATORS["temperature"](evidence, target, weight)
    assert isinstance(found, Temperature)

    def loss(theta: Floats) -> float:
        total = 1e-3 * float(theta @ theta)
        for i in range(300):
            part = slice(evidence.starts[i], evidence.starts[i + 1])
            g = theta[0] * evidence.features[part, 2]
            truth = theta[1] if target[i] < 0 else g[target[i] - evidence.starts[i]]
            total += weight[i] * (np.logaddexp.reduce([*g, theta[1]]) - truth)
        return total

    oracle = minimize(loss, [10.0, 5.0], method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-9})
    assert loss(np.array([found.scale, found.no_match])) <= oracle.fun + 1e-5
    assert [found.scale, found.no_match] == pytest.approx(oracle.x, rel=1e-2)


@pytest.mark.parametrize("name", [name for name in CALIBRATORS if name != "venn-abers"])
def test_integer_weights_mean_copies(name: str) -> None:
    evidence, target = simulated(150)
    copies = np.random.default_rng(2).integers(1, 4, 150)
    repeated = np.repeat(np.arange(150), copies)
    some = select(evidence, repeated)
    moved = np.where(target[repeated] >= 0, some.starts[:-1], NO_MATCH)
    by_weight = CALIBRATORS[name](evidence, target, copies.astype(float))
    by_copies = CALIBRATORS[name](some, moved, np.ones(len(repeated)))
    np.testing.assert_allclose(top_probability(by_weight, evidence), top_probability(by_copies, evidence), atol=2e-3)


def test_venn_abers_draws_examples_by_their_weight() -> None:
    """Rights at a tenth of the weight: the odds fall tenfold."""
    evidence, target = simulated(4000, seed=3)  # not the seed of the draw, which would tie it to the cosines
    _, right = best_and_right(evidence, target)
    weight = np.where(right, 0.1, 1.0)
    best = evidence_of(np.full(1, 0.6))
    p = top_probability(CALIBRATORS["venn-abers"](evidence, target, weight), best)[0]
    assert p / (1 - p) == pytest.approx(0.1, rel=0.5)


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("fault", ["all right", "all wrong", "NaN", "infinity"])
def test_what_teaches_nothing_is_refused(name: str, fault: str) -> None:
    evidence, target = simulated(100)
    if fault.startswith("all"):
        target = evidence.starts[:-1] if fault == "all right" else np.full(100, NO_MATCH)
    else:
        evidence.features[7, 0] = np.nan if fault == "NaN" else np.inf
    with pytest.raises(CalibrationError):
        CALIBRATORS[name](evidence, target, np.ones(100))


@pytest.mark.parametrize("name", CALIBRATORS)
def test_calibrated_data_come_out_near_the_floor(name: str) -> None:
    """Data from a model each of them holds: no match against one label far above the other."""
    (evidence, target), (fresh, truth) = simulated(3000), simulated(3000, seed=77)
    for part in (evidence, fresh):
        part.features[1::2, :4] = -1
    p = top_probability(CALIBRATORS[name](evidence, target, np.ones(3000)), fresh)
    assert metrics.ece(p, truth == fresh.starts[:-1]) < metrics.ece_floor(p) + 0.02


def mixed(n: int) -> Examples:
    """Some queries belong to the second label, which a calibrator on the best cosine cannot name."""
    evidence, target = simulated(n)
    second = (target < 0) & (np.arange(n) % 4 == 0)
    target = np.where(second, evidence.starts[:-1] + 1, target)
    codes = np.where(target < 0, -1, np.where(second, 1, 0))
    return Examples(evidence, target, codes, np.ones(n), np.arange(n), np.arange(n), 0.3, "simulated", "simulated")


@pytest.mark.parametrize("name", CALIBRATORS)
def test_usable_for_every_map_and_for_sets(name: str) -> None:
    made = mixed(300)
    found = calibrate(made, Seen(100, 2), warnings=[], calibrator=name)
    json.dumps(found.to_json(), allow_nan=False)
    assert found.report["calibrator"] == name
    rows = table(made.evidence, *found.calibrator.logits(made.evidence))
    for map_name, temperature in found.temperatures.items():
        p = distribution(rows, map_name, temperature)
        assert np.isfinite(p).all()
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-9)
        assert found.report["ece_by_map"][map_name] < 0.3
    cut, _ = found.set_thresholds(0.6)
    inside = [nonconformity(row)[max(code, -1) + 1] <= cut for row, code in zip(rows, made.codes, strict=True)]
    assert np.mean(inside) >= 0.55
    if name in ON_BEST:
        assert not any(nonconformity(row)[2] <= cut for row in rows), "a label of logit -inf is in no set"
        with pytest.raises(CalibrationError, match="support at most"):
            found.set_thresholds(0.99)


def test_the_helpers_make_what_they_say() -> None:
    made = mixed(300)
    assert {(made.codes == code).any() for code in (-1, 0, 1)} == {True}
    two = concatenate([made.evidence, made.evidence])
    assert len(replace(made, evidence=two).evidence) == 600
    assert set(asdict(BestCosine("platt"))) == {"kind", "slope", "intercept", "edges", "levels"}
