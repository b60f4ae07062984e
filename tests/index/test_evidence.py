"""Evidence and examples against plain Python that follows the definitions word by word."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.calibration.calibrate import HeldOut, calibrate
from index.calibration.evidence import SHARPNESS, TOP_K, exact_top, gather
from index.calibration.examples import ENOUGH, NEAR_COPY, Queries, concatenate, examples, join, select
from index.calibration.staleness import Seen
from index.errors import CalibrationError
from tests.index.helpers import unit


@st.composite
def hits(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Descending cosines with many ties, some rows short of hits, and label codes."""
    n, k = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    cosines = st.one_of(st.sampled_from([0.5, 0.25, -1.0, 1.0]), st.floats(-1, 1, width=32))
    scores = np.array([sorted(draw(st.lists(cosines, min_size=k, max_size=k)), reverse=True) for _ in range(n)])
    for row in scores:
        row[draw(st.integers(1, k)) :] = -np.inf
    labels = draw(st.integers(1, 5))
    codes = [draw(st.lists(st.integers(0, labels - 1), min_size=k, max_size=k)) for _ in range(n)]
    return scores.astype(np.float32), np.array(codes, np.int64)


def naive(scores: list[float], codes: list[int]) -> tuple[dict[int, list[float]], float]:
    """Features of each label and the background of one query's present hits."""
    found: dict[int, list[float]] = {}
    for code in dict.fromkeys(codes):
        own = [score for score, other in zip(scores, codes, strict=True) if other == code]
        pools = [scores[0] + math.log(sum(math.exp(b * (s - scores[0])) for s in own)) / b for b in SHARPNESS]
        found[code] = [max(own), *pools, max(own), 0.0]  # without a profile, a label is its best item
    others = [score for score, code in zip(scores, codes, strict=True) if code != codes[0]]
    return found, sum(others) / len(others) if others else min(scores)


@given(hits())
def test_gather_follows_its_definition(given_hits: Any) -> None:
    scores, codes = given_hits
    evidence = gather(scores, codes)
    assert len(evidence) == len(scores)
    for i in range(len(scores)):
        present = np.isfinite(scores[i])
        expected, background = naive(scores[i][present].astype(float).tolist(), codes[i][present].tolist())
        part = slice(evidence.starts[i], evidence.starts[i + 1])
        found = dict(zip(evidence.codes[part].tolist(), evidence.features[part].tolist(), strict=True))
        assert found.keys() == expected.keys()
        for code, features in expected.items():
            assert found[code] == pytest.approx(features, abs=1e-9)
        assert evidence.background[i] == pytest.approx(background, abs=1e-6)
        assert evidence.codes[part][0] == codes[i, 0], "the top hit's label comes first, ties or not"
        assert (np.diff(evidence.features[part, 0]) <= 0).all()
        wanted = np.full(len(scores), codes[i, 0])
        assert evidence.candidate(wanted)[i] == evidence.starts[i]
    assert (evidence.candidate(np.full(len(scores), -1)) == -1).all()


@settings(max_examples=50)
@given(st.lists(hits(), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_select_undoes_concatenate(batches: list[Any], random: Any) -> None:
    parts = [gather(*batch) for batch in batches]
    whole = concatenate(parts)
    chosen = [random.randrange(len(whole)) for _ in range(5)]
    some = select(whole, np.array(chosen))
    singles = [(part, i) for part in parts for i in range(len(part))]
    for at, i in enumerate(chosen):
        part, j = singles[i]
        own, there = slice(*part.starts[j : j + 2]), slice(*some.starts[at : at + 2])
        np.testing.assert_array_equal(some.features[there], part.features[own])
        np.testing.assert_array_equal(some.codes[there], part.codes[own])
        assert some.background[at] == part.background[j]


def test_a_query_without_hits_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one hit"):
        gather(np.array([[-np.inf, -np.inf]], np.float32), np.zeros((1, 2), np.int64))
    assert len(gather(np.empty((0, 3), np.float32), np.empty((0, 3), np.int64))) == 0


@pytest.mark.parametrize("block", [1, 2000, 1 << 27], ids=["one query a block", "some", "all at once"])
@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_exact_top_sorts_like_numpy(monkeypatch: pytest.MonkeyPatch, block: int, hide: bool, k: int) -> None:
    monkeypatch.setattr("index.calibration.evidence._BLOCK_BYTES", block)
    queries, gallery = unit(30, 8), unit(120, 8, seed=1)
    mask = np.random.default_rng(0).random((30, 120)) < 0.5
    scores, positions = exact_top(queries, gallery, k, (lambda part: mask[part]) if hide else None)
    cosines = np.where(mask & hide, -np.inf, queries.astype(np.float64) @ gallery.T.astype(np.float64))
    expected = -np.sort(-cosines, axis=1)[:, :k]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(cosines, positions, 1), expected, atol=1e-6)


def world(known: int = 60, real: int = 0, reserved: bool = False) -> tuple[Queries, Any, Any, int]:
    gallery, codes = unit(200, 8, seed=2), np.arange(200) % 5
    rows = np.arange(known + real) if reserved else np.full(known + real, -1)
    vectors = gallery[: known + real] if reserved else unit(known + real, 8, seed=3)
    own = np.concatenate([np.arange(known) % 5, np.full(real, -1)])
    return Queries(vectors, own, np.where(own < 0, -1, rows), "here"), gallery, codes, 5


def test_class_removed_twins_do_not_see_their_own_label() -> None:
    queries, gallery, codes, labels = world()
    made = examples(queries, gallery, codes, labels, 0.3)
    evidence = made.evidence
    assert len(evidence) == 180
    for i in range(60):
        own = queries.codes[i]
        seen, near, far = (set(evidence.codes[slice(*evidence.starts[at : at + 2])]) for at in (i, 60 + i, 120 + i))
        assert own in seen
        assert near == seen - {own}
        assert far < near, "the labels around its own are hidden too"
        assert evidence.codes[made.target[i]] == own
    assert (made.target[60:] == -1).all()
    assert (made.codes[60:] == -1).all()
    np.testing.assert_array_equal(made.group.reshape(3, 60), np.tile(made.group[:60], (3, 1)))
    assert made.unknowns.startswith("120 class-removed")


@pytest.mark.parametrize("real", [0, 8, 40])
def test_promises_rest_on_near_imitations_alone(real: int) -> None:
    made = examples(*world(real=real), 0.3)
    assert made.promised is not None
    seen = 60 + real
    np.testing.assert_array_equal(made.promised[:seen], made.weight[:seen])
    if real == 40:  # enough of them
        assert len(made.promised) == seen
        return
    np.testing.assert_allclose(made.promised[seen : seen + 60], 2 * made.weight[seen : seen + 60])
    assert not made.promised[seen + 60 :].any()
    held = calibrate(made, Seen(200, 5), warnings=[]).held_out
    np.testing.assert_array_equal(held.for_promises.weight, made.promised[: seen + 60])
    again = HeldOut.from_json(json.loads(json.dumps(held.to_json())))
    np.testing.assert_array_equal(again.for_promises.probability, held.probability[: seen + 60])
    older = {name: column for name, column in held.to_json().items() if name != "promised"}
    assert len(HeldOut.from_json(older).for_promises.weight) == seen + 120


@pytest.mark.parametrize(
    ("real", "share", "needed"),
    [
        (0, 0.1, 7),
        (6, 0.1, 7),
        (7, 0.1, 7),
        (1, 0.01, 5),
        (9, 0.2, 15),
        (15, 0.2, 15),
        (49, 0.5, 50),
        (50, 0.5, 50),
    ],
)
def test_weights_give_unknown_queries_their_share(real: int, share: float, needed: int) -> None:
    """`needed` real ones stand alone: as many as weigh what known ones do, 5 at least, 50 at most."""
    kinds = (60, real, 120 if real < needed else 0)
    made = examples(*world(real=real), share)
    ends = np.cumsum(kinds)
    mass = [made.weight[end - count : end].sum() / made.weight.sum() for count, end in zip(kinds, ends, strict=True)]
    assert len(made.evidence) == sum(kinds)
    assert mass[0] == pytest.approx(1 - share)
    assert sum(mass[1:]) == pytest.approx(share)
    assert mass[1] == pytest.approx(share * min(real / needed, 1))
    assert made.weight.sum() == pytest.approx(60 + real), "imitations are no queries"


def test_reserved_items_are_hidden_from_every_query() -> None:
    queries, gallery, codes, labels = world(reserved=True)
    made = examples(queries, gallery, codes, labels, 0.3)
    top = made.evidence.features[made.evidence.starts[:60], 0]
    own = made.evidence.features[made.target[:60], 3]
    shown = np.stack([gallery[60:][codes[60:] == label].sum(axis=0) for label in range(5)])
    shown /= np.linalg.norm(shown, axis=1, keepdims=True)
    expected = np.einsum("ij,ij->i", gallery[:60], shown[codes[:60]])
    np.testing.assert_allclose(own, expected, atol=1e-6, err_msg="a query must not be part of its label's centroid")
    visible = np.sort(gallery[:60] @ gallery[60:].T, axis=1)[:, -1]
    np.testing.assert_allclose(top, visible, atol=1e-6)
    assert top.max() < 0.999


def test_a_left_out_item_sees_neither_itself_nor_its_near_copies() -> None:
    gallery, codes = unit(200, 8, seed=2), np.arange(200) % 5
    copies = gallery[:60] + 0.1 * unit(60, 8, seed=4)  # a near copy of each query, of the same label
    gallery = np.concatenate([gallery, copies / np.linalg.norm(copies, axis=1, keepdims=True)])
    codes = np.concatenate([codes, codes[:60]])
    queries = Queries(gallery[:60], codes[:60], np.arange(60), "here", leave_one_out=True)
    made = examples(queries, gallery, codes, 5, 0.3)
    evidence = made.evidence
    cosines = (gallery[:60] @ gallery.T).astype(np.float64)
    hidden = (cosines >= NEAR_COPY) | (np.arange(60)[:, None] == np.arange(260)[None])
    visible = np.where(hidden, -np.inf, cosines)
    np.testing.assert_allclose(evidence.features[evidence.starts[:60], 0], visible.max(axis=1), atol=1e-6)
    for i in range(60):
        fellows = gallery[~hidden[i] & (codes == codes[i])].sum(axis=0, dtype=np.float64)
        expected = gallery[i] @ fellows / np.linalg.norm(fellows)
        assert evidence.features[made.target[i], 3] == pytest.approx(expected, abs=1e-6)


def test_an_item_left_out_of_a_label_of_copies_does_not_ask() -> None:
    """It has nothing to find; as an unknown query it would make them more than they are said to be."""
    gallery, codes = unit(200, 8, seed=2), np.arange(200) % 5
    gallery[codes == 4] = gallery[4]
    queries = Queries(gallery[:100], codes[:100], np.arange(100), "here", leave_one_out=True)
    made = examples(queries, gallery, codes, 5, 0.3)
    assert (made.codes[:80] == codes[:100][codes[:100] < 4]).all()
    assert len(made.codes) == 80 + 2 * 80, "nor is it imitated as unknown"
    assert made.weight[made.codes < 0].sum() / made.weight.sum() == pytest.approx(0.3)


def test_too_little_to_learn_from_is_refused() -> None:
    with pytest.raises(CalibrationError, match="19 different calibration queries"):
        examples(*world(known=19), 0.2)
    queries, gallery, _, _ = world()
    with pytest.raises(CalibrationError, match="All items of the gallery have one label"):
        examples(queries, gallery, np.zeros(200, np.int64), 1, 0.2)
    with pytest.raises(CalibrationError, match=r"All 60 calibration queries .* carry the same one"):
        examples(replace(queries, codes=np.zeros(60, np.int64)), gallery, np.arange(200) % 5, 5, 0.2)
    reserved, gallery, codes, _ = world(reserved=True)
    with pytest.raises(CalibrationError, match="Fewer than two labels are left"):
        examples(reserved, gallery, np.where(np.arange(200) < 60, codes, 0), 5, 0.2)
    assert TOP_K == 100, "part of the stored calibrator's meaning: a change needs a new format"


def test_few_queries_start_from_what_untrained_items_say() -> None:
    queries, gallery, codes, labels = world(real=8)
    alone = examples(queries, gallery, codes, labels, 0.3)
    made = examples(replace(queries, items_untrained=True), gallery, codes, labels, 0.3)
    assert alone.prior is None, "items may have been trained on"
    assert made.prior is not None
    assert made.prior.source == "the gallery's own items"
    assert made.prior.group.max() < len(gallery)
    assert made.unknowns.startswith("8 real unknown queries and 120 class-removed")
    many = examples(replace(world(known=ENOUGH)[0], items_untrained=True), gallery, codes, labels, 0.3)
    assert many.prior is None
    hopeless = examples(replace(queries, items_untrained=True), np.tile(gallery[:1], (200, 1)), codes, labels, 0.3)
    assert hopeless.prior is None, "items that are all alike say nothing once their copies are left out"


def test_a_prior_counts_for_as_many_queries_as_it_is_worth() -> None:
    queries, gallery, codes, labels = world(real=8)
    made = examples(replace(queries, items_untrained=True), gallery, codes, labels, 0.3)
    assert made.prior is not None
    part = np.arange(3, 50, 2)
    evidence, target, weight = join(made, part, 20.0)
    assert weight[: len(part)].tolist() == made.weight[part].tolist()
    assert weight[len(part) :].sum() == pytest.approx(20)
    true = np.concatenate([made.codes[part], made.prior.codes])
    found = np.where(target >= 0, evidence.codes[target], -1)
    seen = np.concatenate([made.target[part], made.prior.target]) >= 0
    np.testing.assert_array_equal(found, np.where(seen, true, -1))
    np.testing.assert_array_equal(evidence.background[len(part) :], made.prior.evidence.background)
