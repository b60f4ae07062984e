"""The calibrator: the fit is the optimum, finds the truth in simulated data, and never punishes closeness."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import approx_fprime, minimize

from index import metrics
from index.build import build_collection
from index.calibration import conditional_logit as module
from index.calibration.calibrate import Calibration, calibrate
from index.calibration.conditional_logit import NO_MATCH, ConditionalLogit, fit
from index.calibration.evidence import Evidence, gather
from index.calibration.examples import examples
from index.calibration.outcome import column, distribution, table
from index.calibration.sources import Held
from index.calibration.staleness import Seen
from index.collection import Collection
from index.errors import CalibrationError
from tests.index.conftest import World
from tests.index.test_evidence import world as queries_of

TRUE = ConditionalLogit((0.6, 0.3, 0.8, 0.4, -0.9), 2.0, -0.7, (0.5, 0.55, 0.52, 0.5, 0.4), 0.3)


def some_evidence(n: int, seed: int = 0) -> Evidence:
    random = np.random.default_rng(seed)
    centre = random.uniform(0.2, 0.8, (n, 1))
    scores = -np.sort(-np.clip(centre + 0.15 * random.standard_normal((n, 12)), -1, 1), axis=1)
    evidence = gather(scores.astype(np.float32), random.integers(0, 5, (n, 12)))
    cohesion = np.linspace(0.2, 0.6, 5)[evidence.codes]
    centroid = np.clip(evidence.features[:, 0] - 0.2 * random.random(len(cohesion)), -1, 1)
    features = np.column_stack([evidence.features[:, :3], centroid, cohesion])
    return Evidence(features, evidence.codes, evidence.starts, evidence.background)


def outcomes(evidence: Evidence, seed: int = 1) -> NDArray[np.int64]:
    """A true candidate for every query, drawn from `TRUE`."""
    p = distribution(table(evidence, *TRUE.logits(evidence)), "softmax", 1.0)
    drawn = (p.cumsum(axis=1) > np.random.default_rng(seed).random((len(p), 1))).argmax(axis=1)
    return np.where(drawn == 0, NO_MATCH, evidence.starts[:-1] + drawn - 1)


def objective(
    theta: NDArray[np.float64], evidence: Evidence, target: Any, weight: Any, like: ConditionalLogit
) -> float:
    """The penalised likelihood in loops, from the module's formula."""
    total = 0.0
    for i in range(len(evidence)):
        part = slice(evidence.starts[i], evidence.starts[i + 1])
        g = (evidence.features[part] - np.array(like.feature_mean)) / 0.1 @ theta[:5]
        g0 = theta[5] + theta[6] * (evidence.background[i] - like.background_mean) / 0.1
        truth = g0 if target[i] < 0 else g[target[i] - evidence.starts[i]]
        total += weight[i] * (np.logaddexp.reduce([*g, g0]) - truth)
    prior = (theta - np.array([*[1.5 / 4] * 4, 0, 3, 0])) / np.array([2, 2, 2, 2, 2, 6, 2])
    return float(total + prior @ prior / 2)


def numbers(found: ConditionalLogit) -> NDArray[np.float64]:
    return np.array([*found.weights, found.intercept, found.slope])


def test_the_gradient_is_the_derivative() -> None:
    evidence, random = some_evidence(40), np.random.default_rng(2)
    target, weight = outcomes(evidence), random.random(40) + 0.5
    x, phi = module._scaled(evidence, np.array([0.5, 0.5, 0.5, 0.5, 0.4]), 0.3)
    for theta in random.standard_normal((5, 7)):
        _, gradient = module.nll(theta, x, phi, evidence, target, weight)
        expected = approx_fprime(theta, lambda t: module.nll(t, x, phi, evidence, target, weight)[0], 1e-7)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_the_fit_is_the_optimum_of_the_formula() -> None:
    evidence = some_evidence(80)
    target, weight = outcomes(evidence), np.random.default_rng(3).random(80) + 0.5
    found = fit(evidence, target, weight)
    arguments = (evidence, target, weight, found)
    start = np.array([*[1.5 / 4] * 4, 0.0, 3.0, 0.0])
    other = minimize(
        lambda t: objective(np.array([*np.exp(t[:4]), *t[4:]]), *arguments),  # w > 0 by its logarithm, not by bounds
        np.array([*np.log(start[:4]), *start[4:]]),
        method="BFGS",
    )
    assert objective(numbers(found), *arguments) <= other.fun + 1e-4
    np.testing.assert_allclose(numbers(found), [*np.exp(other.x[:4]), *other.x[4:]], atol=0.03)


def test_known_parameters_come_back() -> None:
    evidence = some_evidence(8000)
    found = fit(evidence, outcomes(evidence))
    p = distribution(table(evidence, *found.logits(evidence)), "softmax", 1.0)
    truth = distribution(table(evidence, *TRUE.logits(evidence)), "softmax", 1.0)
    assert np.abs(p - truth).mean() < 0.01
    assert sum(found.weights[:4]) == pytest.approx(sum(TRUE.weights[:4]), abs=0.15)
    assert found.weights[4] == pytest.approx(TRUE.weights[4], abs=0.15)
    assert found.slope == pytest.approx(TRUE.slope, abs=0.15)


@pytest.mark.parametrize("always", ["known", "unknown mixed"])
def test_separable_queries_stay_finite(always: str) -> None:
    scores = np.where(np.arange(100)[:, None] < 60, [[0.95, 0.1, 0.1]], [[0.2, 0.19, 0.18]]).astype(np.float32)
    evidence = gather(scores, np.tile([0, 1, 2], (100, 1)))
    target = np.where(np.arange(100) < 60, evidence.starts[:-1], NO_MATCH)
    found = fit(evidence, target, np.ones(100))
    assert np.abs(numbers(found)).max() < 50
    assert min(found.weights[:4]) >= 0


@settings(max_examples=200)
@given(
    cosines=st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=8),
    codes=st.lists(st.integers(0, 3), min_size=8, max_size=8),
    raised=st.integers(0, 7),
    by=st.floats(0.001, 1),
)
def test_a_closer_item_never_costs_its_label_odds(
    cosines: list[float], codes: list[int], raised: int, by: float
) -> None:
    """Against every other label; against no match too, while the background stays what it was."""

    def logits(values: list[float]) -> tuple[dict[int, float], float]:
        order = np.argsort([-value for value in values], kind="stable")
        evidence = gather(np.array([values])[:, order], np.array([codes[: len(values)]])[:, order])
        g, _ = TRUE.logits(evidence)
        return dict(zip(evidence.codes.tolist(), g.tolist(), strict=True)), TRUE.intercept

    at = raised % len(cosines)
    closer = [min(1.0, value + by) if i == at else value for i, value in enumerate(cosines)]
    before, after = logits(cosines)[0], logits(closer)[0]
    mine = codes[at]
    for label in before:
        if label != mine:
            assert after[mine] - after[label] >= before[mine] - before[label] - 1e-9
    assert after[mine] >= before[mine] - 1e-9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e, t: (module_select(e, 49), t[:49]), "49 calibration queries; at least 50"),
        (lambda e, t: (e, np.full(len(t), NO_MATCH)), "none have their label"),
        (lambda e, t: (e, e.starts[:-1]), "all have their label"),
        (lambda e, t: (Evidence(e.features * np.nan, e.codes, e.starts, e.background), t), "not finite"),
        (lambda e, t: (Evidence(e.features, e.codes, e.starts, e.background * np.inf), t), "not finite"),
    ],
    ids=["too few", "only unknown", "only known", "NaN", "infinity"],
)
def test_what_cannot_be_fitted_is_refused(change: Any, said: str) -> None:
    evidence = some_evidence(60)
    with pytest.raises(CalibrationError, match=said):
        fit(*change(evidence, outcomes(evidence)))


def module_select(evidence: Evidence, count: int) -> Evidence:
    end = evidence.starts[count]
    return Evidence(
        evidence.features[:end], evidence.codes[:end], evidence.starts[: count + 1], evidence.background[:count]
    )


@pytest.fixture(scope="module")
def made() -> Calibration:
    return calibrate(examples(*queries_of(known=80), 0.3), Seen(200, 5), warnings=["careful"])


def test_json_round_trip(made: Calibration) -> None:
    stored = json.loads(json.dumps(made.to_json(), allow_nan=False))
    again = Calibration.from_json(stored)
    assert again.calibrator == made.calibrator
    assert again.temperatures == made.temperatures
    assert again.to_json() == made.to_json()
    assert again.set_thresholds(0.9) == made.set_thresholds(0.9)


def test_what_an_older_calibration_says_it_promises_it_does() -> None:
    stored = calibrate(examples(*queries_of(known=50), 0.3), Seen(200, 5), warnings=[], calibrator="platt").to_json()
    del stored["held_out"]["promised"]
    stored["report"] |= {"max_coverage": 0.99}
    again = Calibration.from_json(stored)
    assert 0 < again.report["max_coverage"] < 0.99
    again.set_thresholds(again.report["max_coverage"])


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"calibrator": {"weights": [1, 2]}},
        {
            "calibrator": {
                **ConditionalLogit((1, 1, 1, 1, 1), 0, 0, (0, 0, 0, 0, 0), 0).to_json(),
                "slope": float("nan"),
            }
        },
        {"evidence": {"top_k": 50, "sharpness": [8.0, 32.0]}},
        {"held_out": None},
        {"temperatures": "warm"},
    ],
    ids=["format", "calibrator", "NaN", "evidence", "held out", "temperatures"],
)
def test_a_stored_calibration_that_means_something_else_is_refused(made: Calibration, change: dict[str, Any]) -> None:
    with pytest.raises(CalibrationError, match="Build the index again"):
        Calibration.from_json(made.to_json() | change)


def test_the_report_rests_on_held_out_queries(made: Calibration) -> None:
    queries = made.report["queries"]
    assert (queries["known"], queries["unknown"], queries["unknown_share"]) == (80, 160, 0.3)
    assert set(made.report["ece_by_map"]) == set(made.temperatures)
    # the labels of `world` are noise, so an honest report finds nothing to be sure of
    assert made.report["recall_at_1"] < 0.4
    assert 0 < made.report["max_coverage"] < 1


def test_no_reported_probability_was_fitted_on_its_own_query() -> None:
    asked = examples(*queries_of(known=80), 0.3)
    made = calibrate(asked, Seen(200, 5), warnings=[], calibrator="isotonic")
    rows = table(asked.evidence, *made.calibrator.logits(asked.evidence))
    # its steps are the shares among the very queries that they were fitted on, noise included
    own = metrics.ece(distribution(rows, "softmax", 1.0)[:, 1], asked.right, asked.weight)
    assert own < 0.02 < own + 0.03 < made.report["ece"]


@pytest.mark.parametrize(
    ("items", "labels", "stale"),
    [(200, 5, False), (299, 5, False), (301, 5, True), (134, 5, False), (133, 5, True), (200, 6, True)],
)
def test_a_calibration_knows_its_gallery(made: Calibration, items: int, labels: int, stale: bool) -> None:
    assert (made.made_for.stale(Seen(items, labels)) is not None) is stale


def test_twins_never_straddle_a_fold() -> None:
    examples_made = examples(*queries_of(known=80), 0.3)
    evidence = examples_made.evidence
    rows = column(evidence, examples_made.target)
    assert len(rows) == 240
    assert (np.bincount(examples_made.group) == 3).all()


@pytest.mark.parametrize("known", [20, 35, 49])
@pytest.mark.parametrize("asked", ["conditional-logit", "isotonic", "platt"])
def test_few_queries_get_platt_and_a_warning(known: int, asked: str) -> None:
    found = calibrate(examples(*queries_of(known=known), 0.3), Seen(200, 5), warnings=["careful"], calibrator=asked)
    assert found.calibrator.to_json()["kind"] == found.report["calibrator"] == "platt"
    careful, few, *misfit = found.warnings
    assert careful == "careful"
    # platt does not fit this sample, which it takes 49 of them to see
    assert ["probabilities are off by" in said for said in misfit] == ([True] if known == 49 else [])
    assert f"only {known} queries" in few
    assert (f"instead of {asked}" in few) is (asked != "platt")
    again = Calibration.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again.warnings == found.warnings


def test_few_queries_on_top_of_the_items_get_what_was_asked_for() -> None:
    queries, *gallery = queries_of(known=30)
    made = examples(replace(queries, items_untrained=True), *gallery, 0.3)
    found = calibrate(made, Seen(200, 5), warnings=[])
    assert found.report["calibrator"] == "conditional-logit"
    assert found.report["queries"]["prior"] == "the gallery's own items"
    assert "on top of what the gallery's own items say" in found.warnings[0]
    assert len(found.held_out.right) == len(made.evidence), "nothing is measured on the prior"
    alone = calibrate(replace(made, prior=None), Seen(200, 5), warnings=[], calibrator="platt")
    other = calibrate(made, Seen(200, 5), warnings=[], calibrator="platt")
    assert alone.calibrator != other.calibrator
    assert (alone.held_out.probability != other.held_out.probability).all()


def test_enough_queries_get_what_was_asked_for() -> None:
    found = calibrate(examples(*queries_of(known=50), 0.3), Seen(200, 5), warnings=[], calibrator="platt")
    assert (found.report["calibrator"], found.warnings) == ("platt", [])
    found = calibrate(examples(*queries_of(known=50), 0.3), Seen(200, 5), warnings=[])
    assert (found.report["calibrator"], found.warnings) == ("conditional-logit", [])


@pytest.mark.parametrize("always", [True, False])
def test_few_queries_that_say_nothing_are_refused(always: bool) -> None:
    """All right would need no unknown query at all, so the twins are given the top hit as their truth."""
    few = examples(*queries_of(known=30), 0.3)
    target = few.evidence.starts[:-1] if always else np.full(len(few.evidence), NO_MATCH)
    with pytest.raises(CalibrationError, match="always right" if always else "never right"):
        calibrate(replace(few, target=target), Seen(200, 5), warnings=[])


def test_what_another_map_is_off_by_is_said_of_what_was_measured(built: Path) -> None:
    with closing(Collection.open(built)) as collection:
        assert collection.calibration
        off = {name: f"{ece:.1%}" for name, ece in collection.calibration.report["ece_by_map"].items()}
        taylor, sparsemax, between, gentle = (
            collection.search(["bank card"], map=asked)[0].warnings[-1]
            for asked in ("taylor", "sparsemax", {"entmax": 1.3}, "entmax:1.1")
        )
    assert taylor.startswith(
        f"The map taylor (taylor:6) is not the calibrated distribution: its probabilities are off by {off['taylor:6']} "
    )
    assert "zero" not in taylor
    assert "list" not in taylor
    assert sparsemax.startswith("The map sparsemax (entmax:2) makes a short list")
    assert f"off by {off['entmax:2']} on average on held-out queries (softmax: {off['softmax']})" in sparsemax
    beside = f"{off['entmax:1.25']} (entmax:1.25) and {off['entmax:1.5']} (entmax:1.5)"
    assert f"not measured; its neighbours are off by {beside} on average on held-out queries" in between
    assert f"{off['softmax']} (softmax) and {off['entmax:1.25']} (entmax:1.25)" in gentle
    assert between.endswith("A zero is not a certainty.")


def test_the_warning_travels_to_the_answer(tmp_path: Path, world: World) -> None:
    few = [row for at, row in enumerate(world.rows(world.held)) if at % 4 == 0]
    assert len(few) == 30
    held = Held(few, world.rows(world.held_unknown))
    rows = world.rows(world.items)
    described = build_collection(str(world.encoder), rows, tmp_path / "few", held=held)
    assert described["calibrated"]
    assert any("only 30 queries" in warning for warning in described["warnings"])
    opened = Collection.open(tmp_path / "few")
    (answer,) = opened.search(["bank card"], coverage=0.8)
    opened.close()
    assert answer.calibrated
    assert any("only 30 queries" in warning for warning in answer.warnings)
    assert answer.decision is not None
    assert sum(entry.probability for entry in answer.labels or []) + (answer.no_match or 0) == pytest.approx(1)


def test_a_sample_of_the_gallery_is_no_sample_of_queries(world: World, tmp_path: Path) -> None:
    """The gallery's own file given with --calibrate: every query finds itself, and all would look certain."""
    items = world.rows(world.items)
    found = build_collection(str(world.encoder), items, tmp_path / "c", held=Held(items[:60]))
    assert any("60 of 60 calibration queries are items of the gallery" in warning for warning in found["warnings"])
    assert any("left out one by one" in warning for warning in found["warnings"])
    held = world.rows(world.held)
    mixed = build_collection(str(world.encoder), items, tmp_path / "d", held=Held([*held, *items[:50]]))
    assert any("50 of 170 calibration queries are items of the gallery" in warning for warning in mixed["warnings"])
    one = build_collection(str(world.encoder), items, tmp_path / "one", held=Held([*held, items[0]]))
    assert any("1 of 121 calibration queries is an item of the gallery and finds" in said for said in one["warnings"])
    alone = build_collection(str(world.encoder), items, tmp_path / "f", held=Held(held))
    assert mixed["calibration"]["queries"]["known"] == alone["calibration"]["queries"]["known"]
    other = replace(items[0], label=next(row.label for row in items if row.label != items[0].label))
    hard = build_collection(str(world.encoder), items, tmp_path / "e", held=Held([*held, other]))
    assert hard["calibration"]["queries"]["known"] == alone["calibration"]["queries"]["known"] + 1, (
        "a wrong item's words"
    )
