"""A filter changes what may be shown and answered, never what the gallery says about the query."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.build import build_collection
from index.calibration.sources import Held
from index.collection import Collection
from index.errors import DataError
from index.items.new_items import NewItem
from index.verbs.cli import search
from tests.index.conftest import World

QUERY = "my card about a bank"


@pytest.fixture
def live(copied: Path) -> Iterator[Collection]:
    """The topics, and two items written after the snapshot: a delta."""
    opened = Collection.open(copied, writable=True)
    opened.upsert([NewItem(f"new-{at}", "card", text="my bank card", metadata={"new": True}) for at in range(2)])
    yield opened
    opened.close()


def test_a_filter_that_all_items_pass_changes_nothing(live: Collection) -> None:
    texts = [QUERY, "the storm and a cloud", "hotel seat again"]
    for options in ({}, {"map": "sparsemax"}, {"coverage": 0.9}):
        assert live.search(texts, filter={}, **options) == live.search(texts, **options)  # type: ignore[arg-type]


def test_labels_keep_their_probabilities_and_the_rest_is_no_match(live: Collection) -> None:
    whole = live.search([QUERY], k=100, coverage=0.9)[0]
    assert whole.labels is not None
    of_label = {entry.label: entry.probability for entry in whole.labels}
    for label in ("card", "travel", "food"):
        only = live.search([QUERY], k=20, coverage=0.9, filter={"$label": label})[0]
        assert only.labels is not None
        assert only.no_match is not None
        assert only.prediction_set is not None
        assert [entry.label for entry in only.labels] == [label]
        assert only.labels[0].probability == pytest.approx(of_label[label], abs=1e-12)
        assert only.no_match == pytest.approx(1 - of_label[label], abs=1e-12)
        assert {hit.label for hit in only.hits} == {label}
        of_whole = [hit.id for hit in whole.hits if hit.label == label][:20]
        assert [hit.id for hit in only.hits][: len(of_whole)] == of_whole
        assert only.decision is not None
        assert only.decision.label == (label if of_label[label] > 0.5 else None)
        inside = {entry.label for entry in whole.prediction_set or []}
        assert {entry.label for entry in only.prediction_set} == inside & {label}
        assert only.set_has_no_match == (whole.set_has_no_match or bool(inside - {label}))


def test_what_passes_beyond_the_top_is_found_and_its_label_answered(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.search.finding.TOP_K", 12)
    whole = live.search([QUERY], k=12)[0]
    assert {hit.label for hit in whole.hits} == {"card"}
    far = live.search([QUERY], k=5, filter={"not": {"$label": "card"}})[0]
    assert len(far.hits) == 5
    assert far.labels is not None
    assert whole.labels is not None
    assert {hit.label for hit in far.hits} <= {entry.label for entry in far.labels} | {"travel", "food"}
    assert all(hit.probability is not None and hit.probability < 0.2 for hit in far.hits)
    assert "card" not in {entry.label for entry in far.labels}
    assert far.no_match == pytest.approx(1 - sum(entry.probability for entry in far.labels), abs=1e-12)


@pytest.mark.parametrize("name", ["softmax", "taylor"])
def test_labels_that_a_filter_lets_join_move_no_others_against_each_other(
    live: Collection, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("index.search.finding.TOP_K", 12)
    odds = []
    for condition in (None, {"or": [{"new": True}, {"$label": "food"}]}):
        (answer,) = live.search([QUERY], map=name, filter=condition)
        assert answer.labels is not None
        assert answer.no_match is not None
        odds.append(answer.labels[0].probability / answer.no_match)
        assert (answer.labels[0].label, len(answer.labels) > 1) == ("card", condition is not None)
    assert odds[1] == pytest.approx(odds[0])


@pytest.mark.parametrize("top", [100, 12])
def test_hits_are_the_nearest_of_those_that_pass(live: Collection, monkeypatch: pytest.MonkeyPatch, top: int) -> None:
    monkeypatch.setattr("index.search.finding.TOP_K", top)
    state = live.state
    every = state.search(live.encoder.encode([QUERY]), len(state))
    items = live._store.get(every[1][0].tolist())
    chosen = [items[int(row)] for row in every[1][0]][::7]
    asked = {"or": [{"$id": {"in": [item.id for item in chosen]}}, {"new": True}]}
    expected = [item.id for row in every[1][0] if (item := items[int(row)]) in chosen or item.metadata.get("new")]
    found = live.search([QUERY], k=top, filter=asked)[0]
    scores = [hit.score for hit in found.hits]
    assert scores == sorted(scores, reverse=True)
    assert len(found.hits) == min(top, len(expected))
    true = {items[int(row)].id: float(score) for row, score in zip(every[1][0], every[0][0], strict=True)}
    np.testing.assert_allclose(scores, sorted((true[name] for name in expected), reverse=True)[:top], atol=1e-6)
    assert {hit.id for hit in found.hits} <= set(expected)


def test_nothing_passes(live: Collection) -> None:
    answer = live.search([QUERY], coverage=0.9, filter={"colour": "blue"})[0]
    assert (answer.hits, answer.labels, answer.prediction_set) == ([], [], [])
    assert answer.no_match == pytest.approx(1)
    assert answer.decision is not None
    assert (answer.decision.label, answer.decision.id) == (None, None)


def test_deleted_items_do_not_pass(live: Collection) -> None:
    assert len(live.search([QUERY], filter={"new": True})[0].hits) == 2
    live.delete(["new-0"])
    assert [hit.id for hit in live.search([QUERY], filter={"new": True})[0].hits] == ["new-1"]
    gone = live.search([QUERY], k=1)[0].hits[0].id
    live.delete([gone])
    assert live.search([QUERY], filter={"$id": gone})[0].hits == []


def test_delete_where(live: Collection) -> None:
    before = live.size
    with pytest.raises(DataError, match="every item"):
        live.delete_where({})
    receipt = live.delete_where({"new": True})
    assert receipt.deleted == 2
    assert live.size == before - 2
    assert live.delete_where({"new": True}).deleted == 0


def test_an_item_without_label_that_passes_is_named(live: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "index.calibration.calibrate.Calibration.stale", lambda *_: None
    )  # a fourth label is a third more
    live.upsert([NewItem("alone", None, text="my bank card", metadata={"alone": True})])
    answer = live.search([QUERY], filter={"alone": True})[0]
    assert [hit.id for hit in answer.hits] == ["alone"]
    assert answer.labels is not None
    assert [entry.id for entry in answer.labels] == ["alone"]


def test_scores_without_probabilities_are_filtered_too(world: World, tmp_path: Path) -> None:
    build_collection(str(world.encoder), world.rows(world.items)[:30], tmp_path / "few", held=Held())
    opened = Collection.open(tmp_path / "few")
    try:
        name = opened.search([QUERY])[0].hits[3].id
        answer = opened.search([QUERY], filter={"$id": name})[0]
    finally:
        opened.close()
    assert [hit.id for hit in answer.hits] == [name]


def test_bad_filters_are_refused(live: Collection) -> None:
    bad: Any = {"price": {"like": "x"}}
    with pytest.raises(DataError, match=r"filter\.price\.like"):
        live.search([QUERY], filter=bad)
    with pytest.raises(DataError, match="expected an object"):
        live.search([QUERY], filter=[])  # type: ignore[arg-type]


def test_the_filter_is_a_flag(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search([str(built), QUERY, "--filter", '{"$label": {"in": ["food"]}}', "--json"])
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert {hit["label"] for hit in answer["hits"]} == {"food"}
    with pytest.raises(DataError, match="cannot be read as JSON"):
        search([str(built), QUERY, "--filter", "brand = acme"])


def test_the_decision_is_in_the_set_also_where_it_is_made_of_what_the_filter_bars(
    live: Collection, world: World
) -> None:
    texts = [row.text for row in world.rows(world.test)] + ["my card and a storm", "soup in a bank or a hotel"]
    nothing = 0
    for coverage in (0.3, 0.5, 0.9):
        for answer in live.search(texts, coverage=coverage, filter={"$label": {"in": ["card", "travel"]}}):
            assert answer.decision is not None
            assert answer.prediction_set is not None
            if answer.decision.label is None:
                nothing += 1
                assert answer.set_has_no_match
            else:
                assert answer.decision.label in {entry.label for entry in answer.prediction_set}
    assert nothing > 0
