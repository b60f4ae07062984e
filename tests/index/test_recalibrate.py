"""Feedback makes a new calibration, measured on queries that neither it nor the one before was fitted on."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.build import build_collection
from index.calibration.evidence import gather
from index.calibration.outcome import distribution, table
from index.collection import Collection, NewItem
from index.data.rows import text_key
from index.errors import CalibrationError, DataError
from index.upkeep import recalibrate
from tests.index.conftest import KNOWN, World
from tests.index.feedback import FEEDBACK, answers, give, telling
from tests.index.helpers import sentences


def test_feedback_makes_a_version_that_serves_and_survives(live: Collection) -> None:
    give(live)
    before, own = answers(live), live.state.calibration_id
    version = live.recalibrate()
    after = answers(live)
    assert after != before
    assert live.state.calibration_id == version.id != own
    assert [entry.id for entry in live.calibrations()] == [own, version.id]
    assert (version.cause, version.snapshot) == ("feedback", live.snapshot_id)
    assert live.calibration is not None
    assert live.calibration.report["queries"]["feedback"]["queries"] == telling(live).sum() > 4 * FEEDBACK
    assert live.describe()["calibration_id"] == version.id
    live.close()
    reader = Collection.open(live.path)
    assert (answers(reader), reader.state.calibration_id, reader.warnings) == (after, version.id, [])
    reader.close()


def test_the_change_is_measured_on_rows_neither_was_fitted_on(live: Collection) -> None:
    """Before: the served numbers on the feedback. After: fits that leave the fold out, done here by hand."""
    give(live)
    served = live.calibration
    assert served is not None
    version = live.recalibrate()
    change = version.change
    assert change is not None
    notes = live._store.feedback()
    new = telling(live)
    assert change["queries"] == new.sum() == 197  # three are calibration queries, items or copies
    right, before = (values[new] for values in asked(live, served))
    known = np.array([label is not None for label in notes.labels])[new]
    weight = np.where(known, 0.6 / known.sum(), 0.4 / (~known).sum())

    def nll(p: np.ndarray) -> float:
        return float(-np.average(np.log(np.where(right, p, 1 - p)), weights=weight))

    assert change["before"]["nll"] == pytest.approx(nll(before))
    assert live.calibration is not None
    held = live.calibration.held_out
    # each query's group is its place among the queries, of which feedback comes last; what hides nothing comes first
    first = held.group.max() + 1 - new.sum()
    after = {group: p for group, p in zip(held.group[::-1], held.probability[::-1], strict=True) if group >= first}
    assert change["after"]["nll"] == pytest.approx(nll(np.array([after[first + at] for at in range(new.sum())])))
    assert change["after"]["nll"] != pytest.approx(nll(asked(live, live.calibration)[1][new]), abs=1e-9)
    low, high = change["nll_change"]["interval"]
    assert low < change["nll_change"]["mean"] < high
    assert change["nll_change"]["mean"] == pytest.approx(change["after"]["nll"] - change["before"]["nll"])


def test_items_that_find_no_other_of_their_label_are_not_counted_as_feedback(world: World, tmp_path: Path) -> None:
    """Where items ask, those alone under their label ask only with it hidden; such examples are nobody's note."""
    items = world.rows(world.items)
    alone = [
        replace(row, text=f"{row.text} {at}", label=f"one {at}", line=1000 + at) for at, row in enumerate(items * 2)
    ]
    items = [*items[::8], *alone]  # too few beside one another to be held out
    encoder = shutil.copytree(world.encoder, tmp_path / "encoder")  # one that was trained: its items are no prior
    np.save(encoder / "trained_rows.npy", np.array([text_key(row.text) for row in world.rows(world.held)], np.uint64))
    build_collection(str(encoder), items, tmp_path / "c")
    opened = Collection.open(tmp_path / "c", writable=True)
    give(opened, known=20, unknown=3)
    notes = opened._store.feedback().distinct()
    change = opened.recalibrate().change
    opened.close()
    assert change is not None
    known = sum(label is not None for label in notes.labels)
    assert 0 < change["known"] <= known
    assert 0 < change["unknown"] <= len(notes.labels) - known


def asked(opened: Collection, calibration: Any) -> tuple[np.ndarray, np.ndarray]:
    """Whether the top label was right, and the probability that it is, of every note of feedback, by hand."""
    notes = opened._store.feedback()
    scores, rows = opened.state.search(notes.vectors, 100)
    codes = opened.gallery.codes_of(rows)
    evidence = gather(scores, codes, notes.vectors, opened.gallery.profile)
    p = distribution(table(evidence, *calibration.calibrator.logits(evidence)), "softmax", 1.0)[:, 1]
    return np.array([opened.gallery.names[c[0]] == label for c, label in zip(codes, notes.labels, strict=True)]), p


def test_feedback_that_contradicts_the_calibration_improves_it(live: Collection) -> None:
    """In use half of what looks known matches nothing: the old probabilities are too sure, the new ones are not."""
    vectors = live.encoder.encode([text for text, _ in sentences(100, KNOWN, 77)])
    for at, (vector, (_, label)) in enumerate(zip(vectors, sentences(100, KNOWN, 77), strict=True)):
        live.feedback(vector, label if at % 2 else None)
    change = live.recalibrate().change
    assert change is not None
    assert change["after"]["nll"] < change["before"]["nll"]
    assert change["nll_change"]["interval"][1] < 0
    assert change["after"]["ece"] < change["before"]["ece"]


@pytest.mark.parametrize(("known", "unknown"), [(0, 0), (5, 15), (20, 0), (0, 30), (6, 16)])
def test_too_little_feedback_is_refused_and_changes_nothing(live: Collection, known: int, unknown: int) -> None:
    give(live, known=known, unknown=unknown)
    before = answers(live)
    used = telling(live)
    of_label = used & np.array([label is not None for label in live._store.feedback().labels], np.bool_)
    counts = f"{of_label.sum()} with a .* and {(used & ~of_label).sum()} without"
    with pytest.raises(CalibrationError, match=f"{counts}.*at least 50"):
        live.recalibrate()
    assert answers(live) == before
    assert len(live.calibrations()) == 1


def test_a_query_counts_once_and_its_last_word_wins(live: Collection) -> None:
    vectors = give(live, known=12, unknown=12)
    for _ in range(9):
        live.feedback(vectors[0], None)
    fed = live._store.feedback().distinct()
    assert len(fed.labels) == 60
    assert sum(label is not None for label in fed.labels) == 35
    assert fed.numbers[-1] == 69
    live.recalibrate()
    assert live.calibration is not None
    assert live.calibration.report["queries"]["feedback"] == {"queries": telling(live).sum(), "upto": 69}


def test_notes_that_nothing_matches_count_no_more_once_the_label_that_was_missing_came(live: Collection) -> None:
    live.maintenance.close()  # so that this test compacts when it wants to
    give(live)
    assert live.recalibrate().queries["feedback"]["queries"] == telling(live).sum()
    live.upsert([NewItem(f"m{at}", "music", text) for at, (text, _) in enumerate(sentences(20, ["music"], 8))])
    live.snapshot()
    assert live.calibration is not None
    assert live.calibration.report["queries"]["feedback"]["queries"] < telling(live).sum() - FEEDBACK / 2
    assert f"of {2 * FEEDBACK} notes that nothing matches are nearest to a label that" in str(live.calibration.warnings)
    give(live)  # said again, with the label there
    assert live.recalibrate().queries["feedback"]["queries"] > telling(live).sum() - FEEDBACK / 2
    assert "nearest to a label that has come" not in str(live.calibration.warnings)


def test_items_that_are_replaced_make_no_new_label_of_theirs(live: Collection) -> None:
    live.maintenance.close()
    give(live)
    told = live.recalibrate().queries["feedback"]
    for version in range(3):  # each compaction erases the rows of the one before
        items = live._store.get(live.gallery.rows.tolist()).values()
        live.upsert([NewItem(item.id, item.label, item.text, metadata={"version": version}) for item in items])
        live.snapshot()
        assert live.calibration is not None
        assert live.calibration.report["queries"]["feedback"] == told
    live.delete([item.id for item in live._store.get(live.gallery.rows.tolist()).values()])
    live.snapshot()
    assert not live._store.first_rows(), "nothing is left of labels that have gone"


def test_a_second_time_only_newer_feedback_can_be_compared(live: Collection) -> None:
    give(live)
    live.recalibrate()
    change = live.recalibrate().change
    assert change is not None
    assert change["queries"] == 0
    assert "before" not in change
    assert "was fitted on all but 0 queries" in change["why_not"]
    give(live, known=20, unknown=10, seed=60)
    change = live.recalibrate().change
    assert change is not None
    assert change["queries"] == telling(live)[5 * FEEDBACK :].sum() > 70
    assert change["before"]["nll"] > 0


def test_a_compaction_fits_anew_and_keeps_using_the_feedback_unless_it_was_rolled_back(live: Collection) -> None:
    give(live)
    own = str(live.state.calibration_id)
    fed = live.recalibrate()
    live.upsert([NewItem("new", "card", "my bank card chip")])
    live.snapshot()
    assert live.calibration is not None
    assert live.calibration.report["queries"]["feedback"]["queries"] == telling(live).sum() > 4 * FEEDBACK
    listed = [entry.id for entry in live.calibrations()]
    assert listed[:2] == [own, fed.id]
    assert listed[-1] == live.state.calibration_id
    reader = Collection.open(live.path)
    assert (
        reader.state.calibration_id == live.state.calibration_id != fed.id
    )  # the choice was made under another snapshot
    reader.close()
    live.use_calibration(own)
    live.snapshot()
    assert "feedback" not in live.calibration.report["queries"]


def test_a_compaction_takes_no_feedback_that_was_rolled_back_or_came_later(live: Collection) -> None:
    give(live)
    first = live.recalibrate()
    give(live, known=20, unknown=20, seed=60)
    live.recalibrate()
    live.use_calibration(first.id)
    before = answers(live)
    live.snapshot()
    assert live.calibration is not None
    assert live.calibration.report["queries"]["feedback"] == first.queries["feedback"]
    assert answers(live) == before
    assert live.recalibrate().queries["feedback"]["queries"] == telling(live).sum()


def test_a_compaction_goes_on_using_feedback_though_another_calibration_serves_or_none(live: Collection) -> None:
    give(live)
    told = live.recalibrate().queries["feedback"]
    items = list(live._store.get(live.gallery.rows.tolist()).values())
    live.delete([item.id for item in items])
    live.snapshot()
    assert live.calibration is None
    live.upsert([NewItem(item.id, item.label, item.text) for item in items])
    live.snapshot()
    assert live.calibration is not None
    named = np.array([label is not None for label in live._store.feedback().distinct().labels])
    told = {"queries": (telling(live) & named).sum(), "upto": told["upto"]}
    assert live.calibration.report["queries"]["feedback"] == told, "the others are of a time before these labels"
    path = live.path
    live.close()
    shutil.rmtree(path / "snapshots")
    with closing(Collection.open(path, writable=True)) as again:
        again.snapshot()
        assert again.calibration is not None
        assert again.calibration.report["queries"]["feedback"] == told


def test_a_compaction_says_how_much_feedback_it_leaves_out_where_the_choice_was_lost(live: Collection) -> None:
    give(live)
    live.recalibrate()
    path = live.path
    live.close()
    (path / "calibrations" / "CURRENT").write_bytes(b"#")
    with closing(Collection.open(path, writable=True)) as again:
        for _ in range(2):
            again.snapshot()
            said = " ".join(again.describe()["warnings"])
            assert f"{5 * FEEDBACK} notes of users' feedback are not used: which calibration was chosen" in said
        again.recalibrate()
        again.snapshot()
        assert "notes of users' feedback" not in " ".join(again.describe()["warnings"])
        again.use_calibration(again.calibrations()[-1].id)
    (path / "calibrations" / "CURRENT").write_bytes(b"#")
    with closing(Collection.open(path, writable=True)) as again:  # the snapshot's own, on feedback, serves again
        again.snapshot()
        assert f"{5 * FEEDBACK} notes of users' feedback are not used" in " ".join(again.describe()["warnings"])


def test_without_feedback_the_stored_queries_are_fitted_against_the_items_as_they_are(live: Collection) -> None:
    live.upsert([NewItem(f"new{at}", "card", text) for at, (text, _) in enumerate(sentences(30, ["card"], 9))])
    version = live.recalibrate(feedback=False)
    assert (version.cause, version.change) == ("refit", None)
    assert live.calibration is not None
    assert live.calibration.made_for.items == 210
    assert live.state.pending == 30


def test_feedback_is_enough_for_a_collection_without_any_query(world: Any, tmp_path: Path) -> None:
    build_collection(str(world.encoder), world.rows(world.items), tmp_path / "bare")
    opened = Collection.open(tmp_path / "bare", writable=True)
    assert opened.calibration is not None
    assert any("left out" in warning for warning in opened.calibration.warnings)
    give(opened)
    change = opened.recalibrate().change
    assert change is not None
    assert change["before"]["nll"] is not None
    assert opened.calibration.report["queries"]["source"] == "users' feedback"
    assert not any("left out" in warning for warning in opened.calibration.warnings)
    opened.close()


@pytest.mark.parametrize("left_out", [True, False])
def test_feedback_beside_a_trained_encoders_own_items_is_said_with_them(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: bool
) -> None:
    """It was trained on other rows: the gallery's own ask beside the feedback, and neither is forgotten."""
    monkeypatch.setattr("index.calibration.own_rows.ASKING", 100 if left_out else 3)
    encoder = Path(shutil.copytree(world.encoder, tmp_path / "encoder"))
    np.save(encoder / "trained_rows.npy", np.array([1, 2], np.uint64))
    described = build_collection(str(encoder), world.rows(world.items), tmp_path / "c")
    said = [warning for warning in described["warnings"] if "left out one by one" in warning]
    assert [warning.startswith("Without queries the gallery's own items") for warning in said] == [True] * left_out
    assert not any("an encoder trained on them" in warning for warning in described["warnings"]), "it was not"
    opened = Collection.open(tmp_path / "c", writable=True)
    give(opened)
    opened.recalibrate()
    assert opened.calibration is not None
    assert opened.calibration.report["queries"]["source"].startswith("users' feedback and ")
    said = [warning for warning in opened.calibration.warnings if "left out one by one" in warning]
    assert [warning.startswith("Beside the ") for warning in said] == [True] * left_out
    opened.close()


def test_the_interval_of_a_change_is_that_of_paired_draws() -> None:
    random = np.random.default_rng(0)
    right = random.random(400) < 0.7
    before, after = np.full(400, 0.5), np.full(400, 0.7)
    found = recalibrate._nll_change(before, after, right, np.ones(400))
    assert found is not None
    exact = np.where(right, np.log(0.5) - np.log(0.7), np.log(0.5) - np.log(0.3))
    assert found["mean"] == pytest.approx(exact.mean())
    half = 1.96 * exact.std() / 20
    np.testing.assert_allclose(found["interval"], [exact.mean() - half, exact.mean() + half], atol=0.01)
    assert recalibrate._nll_change(before, np.where(right, 1.0, 0.0) * 0, right, np.ones(400)) is None


def test_feedback_with_a_label_that_no_item_has_is_refused(live: Collection) -> None:
    (vector,) = live.encoder.encode(["my card"])
    with pytest.raises(DataError, match=r"No item has the label 'cards'\. Name one that is there, or None"):
        live.feedback(vector, "cards")
