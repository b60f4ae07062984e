"""Why an answer says what it says, recomputed by hand from nothing but the items' vectors and the fitted numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from index.build import build_collection
from index.calibration.sources import Held
from index.collection import Collection, NewItem
from index.verbs import console
from index.verbs.cli import search
from simplex import softmax, sparsemax
from tests.index.conftest import World

QUERY = "my card about a bank"


@pytest.fixture
def live(copied: Path) -> Iterator[Collection]:
    """With an item that stands for itself, and two of a label that is there, written after the snapshot."""
    opened = Collection.open(copied, writable=True)
    fresh = [NewItem("alone", None, "my bank"), *(NewItem(f"new-{at}", "card", "my bank card") for at in range(2))]
    opened.upsert([NewItem(item.id, item.label, item.text, metadata={"new": True}) for item in fresh])
    opened.recalibrate(feedback=False)  # there is a fourth identity now
    yield opened
    opened.close()


def vectors_by_id(opened: Collection) -> dict[str, tuple[str | None, np.ndarray]]:
    now = opened._store.everything()
    items = opened._store.get(now.born.tolist())
    return {items[r].id: (items[r].label, v.astype(np.float64)) for r, v in zip(now.born, now.vectors, strict=True)}


def test_every_number_is_what_it_says(live: Collection) -> None:
    (answer,) = live.search([QUERY], explain=True)
    why, calibration = answer.explanation, live.calibration
    assert why is not None
    assert calibration is not None
    query = live.encoder.encode([QUERY])[0].astype(np.float64)
    everything = vectors_by_id(live)
    cosine = {name: float(query @ vector) for name, (_, vector) in everything.items()}
    nearest = sorted(cosine, key=lambda name: -cosine[name])[:100]
    first = cosine[nearest[0]]
    best_label = everything[nearest[0]][0]
    others = [cosine[name] for name in nearest if everything[name][0] != best_label or name == "alone"]
    assert why.background == pytest.approx(np.mean(others), abs=1e-6)
    assert sum((why.no_match_terms or {}).values()) == pytest.approx(why.no_match_logit)
    assert {entry.id for entry in why.labels if entry.label is None} == {"alone"}
    for entry in why.labels:
        own = [name for name in nearest if (everything[name][0] or name) == (entry.label or entry.id)]
        assert sorted(item.id for item in entry.items) == sorted(own)
        scores = np.array([cosine[item.id] for item in entry.items])
        np.testing.assert_allclose([item.score for item in entry.items], scores, atol=1e-6)
        assert (np.diff(scores) <= 1e-9).all()
        assert entry.evidence["best"] == pytest.approx(scores.max(), abs=1e-6)
        for b, shares in (
            (8, [item.share_8 for item in entry.items]),
            (32, [item.share_32 for item in entry.items]),
        ):
            pooled = first + np.log(np.exp(b * (scores - first)).sum()) / b
            assert entry.evidence[f"pooled_{b}"] == pytest.approx(pooled, abs=1e-6)
            np.testing.assert_allclose(shares, softmax(b * scores), atol=1e-5)
        whole = np.sum([vector for label, vector in everything.values() if label and label == entry.label], axis=0)
        if entry.label is not None:
            assert entry.evidence["centroid"] == pytest.approx(query @ whole / np.linalg.norm(whole), abs=1e-5)
        assert entry.terms is not None
        assert sum(entry.terms.values()) == pytest.approx(entry.logit)
        assert entry.answerable
        assert entry.hidden_items == 0


@pytest.mark.parametrize(("name", "function"), [("softmax", softmax), ("sparsemax", sparsemax)])
def test_the_map_of_the_logits_is_the_distribution(live: Collection, name: str, function: object) -> None:
    (answer,) = live.search([QUERY], map=name, explain=True)
    why = answer.explanation
    assert why is not None
    assert callable(function)
    logits = np.array([why.no_match_logit, *(entry.logit for entry in why.labels)], np.float64)
    p = function(logits / why.temperature)
    assert p[0] == pytest.approx(answer.no_match)
    np.testing.assert_allclose(p[1:], [entry.probability for entry in why.labels], atol=1e-12)
    assert [entry.probability for entry in why.labels] == sorted((e.probability for e in why.labels), reverse=True)


def test_nothing_else_of_the_answer_changes(live: Collection) -> None:
    for options in ({}, {"map": "entmax15", "coverage": 0.9}, {"filter": {"$label": "food"}}):
        plain, told = (live.search([QUERY], explain=why, **options)[0] for why in (False, True))  # type: ignore[arg-type]
        assert plain.explanation is None
        assert replace(told, explanation=None) == plain


def test_a_filter_hides_the_items_and_says_how_many(live: Collection) -> None:
    (whole,), (only,) = (live.search([QUERY], filter=condition, explain=True) for condition in (None, {"new": True}))
    assert whole.explanation is not None
    assert only.explanation is not None
    assert {entry.label or entry.id for entry in only.explanation.labels} == {"card", "alone", None}
    assert len(only.explanation.labels) == len(whole.explanation.labels)
    of_logit = {entry.logit: entry for entry in whole.explanation.labels}
    for entry in only.explanation.labels:
        before = of_logit[entry.logit]
        assert entry.evidence == before.evidence
        expected = {"card": {"new-0", "new-1"}, "alone": {"alone"}}.get(before.label or before.id or "", set())
        assert {item.id for item in entry.items} == expected
        assert entry.hidden_items == len(before.items) - len(entry.items)
        assert entry.answerable == bool(expected)
        assert (entry.label, entry.id) == ((before.label, before.id) if expected else (None, None))
        assert entry.probability == (before.probability if expected else 0)


def test_whose_consent_has_ended_is_not_named_and_the_answer_can_be_checked(
    live: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = {"consent": {"expires": "2020-01-01"}}
    live.upsert([NewItem("secret-id", None, QUERY, metadata=ended), NewItem("old", "anna", QUERY, metadata=ended)])
    live.recalibrate(feedback=False)  # there are more identities now
    (answer,) = live.search([QUERY], explain=True)
    why = answer.explanation
    assert why is not None
    assert not any(name in repr(answer) for name in ("secret-id", "anna", "'old'"))
    barred = [entry for entry in why.labels if not entry.answerable]
    assert [(entry.label, entry.id, entry.items, entry.hidden_items) for entry in barred] == [(None, None, [], 1)] * 2
    logits = np.array([why.no_match_logit, *(entry.logit for entry in why.labels)], np.float64)
    p = softmax(logits / why.temperature)
    at = 1 + np.flatnonzero([not entry.answerable for entry in why.labels])
    assert answer.no_match == pytest.approx(p[0] + p[at].sum())
    np.testing.assert_allclose(np.delete(p, [0, *at]), [e.probability for e in why.labels if e.answerable], atol=1e-12)
    console._show_explanation(Console(), why)
    assert "anna" not in capsys.readouterr().out


def test_a_label_that_only_the_filter_brings_in_has_its_items(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.search.finding.TOP_K", 12)
    (far,) = live.search([QUERY], k=5, filter={"not": {"$label": "card"}}, explain=True)
    assert far.explanation is not None
    brought = [entry for entry in far.explanation.labels if entry.label in ("travel", "food")]
    assert brought
    for entry in brought:
        assert entry.items
        assert entry.evidence["best"] == pytest.approx(entry.items[0].score)


def test_a_calibrator_without_terms_says_so(world: World, tmp_path: Path) -> None:
    held = Held(world.rows(world.held), world.rows(world.held_unknown))
    build_collection(
        str(world.encoder), world.rows(world.items), tmp_path / "c", held=held, calibrator="platt", unknown_share=0.4
    )
    opened = Collection.open(tmp_path / "c")
    (answer,) = opened.search([QUERY], explain=True)
    opened.close()
    assert answer.explanation is not None
    best, *rest = answer.explanation.labels
    assert best.terms is None
    assert best.logit is not None
    assert {entry.logit for entry in rest} == {None}
    assert {entry.probability for entry in rest} == {0.0}


def test_the_verb_tells_why(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search([str(built), QUERY, "--explain"]) == 0
    said = capsys.readouterr().out
    assert "background" in said
    assert "pooled" in said
    assert console._EXPLAINED >= 3
