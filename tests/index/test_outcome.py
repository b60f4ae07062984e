"""Maps, temperatures and prediction sets: entmax as the oracle, coverage by simulation, certificates by brute force."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import entmax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index.calibration.conformal import Kind, nonconformity, threshold
from index.calibration.evidence import SHARPNESS, Evidence, gather
from index.calibration.outcome import distribution, fit_temperature, interpolated, map_name, table
from index.collection import Collection
from index.engines.faiss_flat import FaissFlat
from index.errors import CalibrationError
from tests.index.conftest import World

gaps = st.lists(st.integers(-400, 400).map(lambda n: n / 16), min_size=1, max_size=9)


@settings(max_examples=200)
@given(logits=gaps, temperature=st.integers(1, 200).map(lambda n: n / 8 + 1 / 32))
def test_nonconformity_below_the_temperature_is_the_support_of_sparsemax(
    logits: list[float], temperature: float
) -> None:
    g = np.array(logits)
    support = entmax.sparsemax(torch.tensor(g / temperature), dim=0).numpy() > 0
    np.testing.assert_array_equal(nonconformity(g) < temperature, support)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_cover_exchangeable_queries(coverage: float) -> None:
    random = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        scores = random.exponential(size=101)
        covered.append(scores[-1] <= threshold([Kind.of(scores[:-1], np.ones(100))], coverage))
    exact = np.ceil(101 * coverage) / 101
    assert np.mean(covered) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 300))


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.95])
def test_where_the_likeliest_is_right_more_often_than_asked_sets_are_it_alone_and_hold_more(coverage: float) -> None:
    random = np.random.default_rng(3)
    logits = random.normal(size=(8000, 6)) * 8
    p = distribution(logits, "softmax", 1.0)
    truth = (random.random(8000)[:, None] > np.cumsum(p, axis=1)).sum(1).clip(max=5)
    right = float((p.argmax(1) == truth)[4000:].mean())
    assert 0.85 < right < 0.9
    scores = np.stack([nonconformity(row) for row in logits])
    of_truth = scores[np.arange(8000), truth]
    line = threshold([Kind.of(of_truth[:4000], np.ones(4000))], coverage)
    held, sizes = float((of_truth[4000:] <= line).mean()), (scores[4000:] <= line).sum(1)
    if coverage < right:
        assert held == right
        assert set(sizes) == {1}
    else:
        assert held == pytest.approx(coverage, abs=0.02)
        assert sizes.min() == 1


def test_the_threshold_is_the_finite_sample_quantile() -> None:
    scores = np.random.default_rng(1).permutation(19) / 2
    assert threshold([Kind.of(scores, np.ones(19))], 0.95) == 9.0  # the 19th of 19 + 1
    assert threshold([Kind.of(scores, np.ones(19))], 0.5) == 4.5
    with pytest.raises(CalibrationError, match=r"19 calibration queries support at most 0\.9500"):
        threshold([Kind.of(scores, np.ones(19))], 0.96)
    with pytest.raises(CalibrationError, match=r"at most 0\.9000"):
        threshold([Kind.of(np.where(scores == 9, np.inf, scores), np.ones(19))], 0.95)
    with pytest.raises(CalibrationError, match="at most 0"):
        threshold([Kind.of(np.full(19, np.inf), np.ones(19))], 0.1)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("softmax", "softmax"),
        ("sparsemax", "entmax:2"),
        ("entmax15", "entmax:1.5"),
        ("taylor", "taylor:6"),
        ({"entmax": 1}, "softmax"),
        ({"entmax": 1.3}, "entmax:1.3"),
        ({"taylor": 4}, "taylor:4"),
    ],
)
def test_names_of_maps(spec: str | dict[str, float], name: str) -> None:
    assert map_name(spec) == name


NAMES = ["softmax", "entmax:1.25", "entmax:1.5", "entmax:2", "taylor:6"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
def test_rows_sum_to_one_and_padding_gets_nothing(name: str, temperature: float) -> None:
    rows = 5 * np.random.default_rng(0).standard_normal((40, 7))
    rows[np.arange(7)[None] > np.random.default_rng(1).integers(0, 7, (40, 1))] = -np.inf
    p = distribution(rows, name, temperature)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-9)
    assert (p[np.isneginf(rows)] == 0).all()
    for row, own in zip(p, rows, strict=True):
        real = np.isfinite(own)
        np.testing.assert_allclose(row[real], distribution(own[real][None], name, temperature)[0], atol=1e-9)
    if name.startswith("entmax"):
        oracle = entmax.entmax_bisect(torch.tensor(rows / temperature), float(name[7:]), dim=1, n_iter=80)
        np.testing.assert_allclose(p, oracle.numpy(), atol=1e-7)


def test_the_right_temperature_is_found() -> None:
    random = np.random.default_rng(0)
    rows = 2 * random.standard_normal((6000, 5))
    p = distribution(rows, "softmax", 2.5)
    truth = (p.cumsum(axis=1) > random.random((6000, 1))).argmax(axis=1)
    assert fit_temperature(rows, truth, np.ones(6000), "softmax") == pytest.approx(2.5, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_no_other_temperature_loses_less(name: str) -> None:
    random = np.random.default_rng(0)
    rows = 3 * random.standard_normal((400, 5))
    truth = (rows + random.gumbel(size=rows.shape)).argmax(axis=1)
    found = fit_temperature(rows, truth, np.ones(400), name)

    def loss(temperature: float) -> float:
        if name.startswith("entmax"):
            alpha, z = float(name[7:]), torch.tensor(rows / temperature)
            return float(entmax.EntmaxBisectLoss(alpha, n_iter=80)(z, torch.tensor(truth)).mean())
        return float(-np.log(distribution(rows, name, temperature)[np.arange(400), truth]).mean())

    # the loss of y/T is compared at one scale, so it is the fit at T that is checked, not the loss's value
    assert loss(found) <= min(loss(found * factor) for factor in (0.8, 0.93, 1.07, 1.25)) + 1e-6


def test_temperatures_between_fitted_alphas() -> None:
    fitted = {"softmax": 1.0, "entmax:1.5": 2.0, "entmax:2": 8.0, "taylor:6": 3.0}
    assert interpolated(fitted, "entmax:1.75") == pytest.approx(4.0)
    assert interpolated(fitted, "entmax:1.25") == pytest.approx(2**0.5)
    assert interpolated(fitted, "taylor:6") == 3.0
    assert interpolated(fitted, "taylor:4") is None


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_certified_answers_equal_those_over_the_whole_gallery(built: Path, world: World, name: str) -> None:
    opened = Collection.open(built)
    assert opened.calibration is not None
    queries = opened.encoder.encode([row.text for row in world.rows(world.test)[::3]])
    canonical = map_name(name)
    temperature = interpolated(opened.calibration.temperatures, canonical)
    assert temperature is not None
    assert opened.size > 100
    assert isinstance(opened.engine, FaissFlat)
    answers = opened.search_vectors(queries, map=name)
    scores, rows = opened.engine.search(queries, opened.size)
    codes = opened.gallery.codes_of(rows)
    profile, checked = opened.gallery.profile, 0
    for i, answer in enumerate(answers):
        top = gather(scores[i : i + 1, :100], codes[i : i + 1, :100], queries[i : i + 1], profile)
        unseen = sorted(set(codes[i].tolist()) - set(top.codes.tolist()))
        if not answer.certified:
            continue
        checked += 1
        g, g0 = opened.calibration.calibrator.logits(top)
        first = float(scores[i, 0])
        features = []
        for code in unseen:
            own = scores[i][codes[i] == code].astype(np.float64)
            pooled = [first + np.log(np.exp(b * (own - first)).sum()) / b for b in SHARPNESS]
            of_label = profile.features(queries[i : i + 1], np.array([0]), np.array([code]), own[:1])[0]
            features.append([own.max(), *pooled, *of_label])
        whole = table(top, g, g0)[0]
        if features:
            extra = Evidence(np.array(features), np.array(unseen), np.array([0, len(unseen)]), top.background)
            whole = np.concatenate([whole, opened.calibration.calibrator.logits(extra)[0]])
        p = distribution(whole[None], canonical, temperature)[0]
        assert answer.no_match == pytest.approx(p[0], abs=1e-9)
        assert (p[1 + len(top.codes) :] == 0).all()
    opened.close()
    assert checked > 0


def test_softmax_is_never_certified_beyond_the_top(collection: Collection) -> None:
    assert not collection.search(["card"])[0].certified


def test_prediction_sets_cover_and_agree_with_their_threshold(collection: Collection, world: World) -> None:
    rows = world.rows(world.test) + world.rows(world.test_unknown)
    answers = collection.search([row.text for row in rows], coverage=0.9)
    inside = []
    for row, answer in zip(rows, answers, strict=True):
        assert answer.prediction_set is not None
        names = {entry.label for entry in answer.prediction_set} | ({None} if answer.set_has_no_match else set())
        truth = row.label if row.label in collection.gallery.names else None
        inside.append(truth in names)
        best = answer.decision.label if answer.decision else None
        assert best in names
    assert np.mean(inside) > 0.8
    assert dataclasses.asdict(answers[0])["coverage"] == 0.9
