"""Drift: PSI by its formula, KS by scipy's, silent about the same queries, loud about others."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from index.calibration.calibrate import Calibration
from index.calibration.drift import LEAST, Drift, Reference
from index.calibration.evidence import Floats
from index.collection import Collection
from index.errors import CalibrationError
from index.metrics import effective
from tests.index.conftest import World


def hits(mean: float, count: int, seed: int) -> tuple[Floats, Floats]:
    """Best cosines and backgrounds of `count` queries."""
    random = np.random.default_rng(seed)
    best = mean + 0.1 * random.standard_normal(count)
    return best, best - 0.2 * random.random(count)


def reference(count: int = 2000) -> Reference:
    return Reference.of(*hits(0.6, count, seed=1), np.ones(count), count)


@pytest.mark.parametrize(("mean", "verdict"), [(0.6, "none"), (0.638, "some"), (0.7, "much"), (0.45, "much")])
def test_a_shift_is_noticed_and_the_same_is_not(mean: float, verdict: str) -> None:
    drift = Drift()
    drift.observe(*hits(mean, 3000, seed=2), "a")
    assert drift.report(reference(), "a")["verdict"] == verdict


def test_the_measures_are_what_their_names_say() -> None:
    drift, then = Drift(), hits(0.6, 2000, seed=1)[0]
    now, background = hits(0.65, 800, seed=3)
    drift.observe(now, background, "a")
    found = drift.report(reference(), "a")["best_cosine"]
    assert found["ks"] == pytest.approx(ks_2samp(now, then).statistic, abs=2e-3)
    edges = [-np.inf, *np.quantile(then, np.arange(1, 10) / 10), np.inf]
    a, b = (np.histogram(sample, edges)[0] / len(sample) for sample in (now, then))
    assert found["psi"] == pytest.approx(np.sum((a - b) * np.log(a / b)), rel=0.03)
    assert found["ks_limit"] == pytest.approx(1.628 * np.sqrt(1 / 800 + 1 / 2000))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_few_unknown_queries_that_weigh_much_raise_no_alarm(share: float) -> None:
    """Fifty that stand for nine tenths of what is asked are no sample of a thousand."""
    random = np.random.default_rng(0)

    def asked(known: int, unknown: int) -> Floats:
        return np.concatenate([random.normal(0.8, 0.08, known), random.normal(0.55, 0.08, unknown)])

    alarms = []
    for _ in range(60):
        sample, weight = asked(1000, 50), np.repeat([(1 - share) / 1000, share / 50], [1000, 50])
        drift, unknown = Drift(), random.binomial(2000, share)
        now = asked(2000 - unknown, unknown)
        drift.observe(now, now, "a")
        then = Reference.of(sample, sample, weight, int(effective(weight)))
        alarms.append(drift.report(then, "a")["verdict"] != "none")
    assert np.mean(alarms) <= 0.1


def test_a_calibration_counts_its_queries_by_what_they_weigh(copied: Path) -> None:
    with closing(Collection.open(copied)) as opened:
        made = opened.calibration
    assert made is not None
    assert made.reference is not None
    assert made.reference.queries == int(effective(made.held_out.weight, made.held_out.group))
    assert made.reference.queries < len(np.unique(made.held_out.group))


def test_weights_count_as_copies() -> None:
    values, weight = np.array([0.1, 0.5, 0.9]), np.array([1.0, 2.0, 5.0])
    weighted = Reference.of(values, values, weight, 3).best
    copied = Reference.of(np.repeat(values, [100, 200, 500]), np.zeros(800), np.ones(800), 3).best
    assert np.quantile(weighted, 0.9) == pytest.approx(np.quantile(copied, 0.9), abs=0.05)
    assert (weighted >= 0.7).mean() == pytest.approx(0.55, abs=0.1)


def test_only_the_last_queries_count_and_another_calibration_begins_anew() -> None:
    drift = Drift(window=500)
    for mean in (0.3, 0.6):
        for part in range(5):
            drift.observe(*hits(mean, 150, seed=part), "a")
    assert drift.report(reference(), "a")["queries"] == 500
    assert drift.report(reference(), "a")["verdict"] == "none"
    drift.observe(*hits(0.6, LEAST - 1, seed=1), "b")
    assert drift.report(reference(), "b") == {"queries": LEAST - 1, "verdict": "unknown"}
    drift.observe(*hits(0.6, 1, seed=1), "b")
    assert drift.report(reference(), "b")["verdict"] == "none"
    assert drift.report(None, "b")["verdict"] == "unknown"
    assert drift.report(reference(), "c")["queries"] == 0, "what was asked under another says nothing of this one"
    drift.forget()
    assert drift.report(reference(), "b")["queries"] == 0


def test_several_threads_lose_nothing() -> None:
    drift = Drift(window=10_000)
    part = hits(0.6, 7, seed=4)
    threads = [threading.Thread(target=lambda: [drift.observe(*part, "a") for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drift.report(reference(), "a")["queries"] == 2800


def test_a_collection_watches_what_it_is_asked(collection: Collection, world: World) -> None:
    rows = [*world.rows(world.test), *world.rows(world.test_unknown)]
    assert collection.describe()["drift"]["verdict"] == "unknown"
    collection.search([row.text for row in rows])
    assert collection.describe()["drift"]["verdict"] in ("none", "some")
    collection.search([row.text for row in world.rows(world.items)] * 2)  # nothing but what it already holds
    assert collection.describe()["drift"]["verdict"] == "much"


def test_the_sample_is_stored_and_checked(collection: Collection) -> None:
    assert collection.calibration is not None
    stored = collection.calibration.to_json()
    again = Calibration.from_json(json.loads(json.dumps(stored, allow_nan=False)))
    assert again.reference is not None
    assert again.reference.to_json() == stored["reference"]
    assert Calibration.from_json({key: value for key, value in stored.items() if key != "reference"}).reference is None
    for fault in ({"best": [0.5, 0.1]}, {"best": []}, {"background": [float("nan")]}, {"queries": "many"}):
        with pytest.raises(CalibrationError, match="cannot be read"):
            Calibration.from_json({**stored, "reference": {**stored["reference"], **fault}})
