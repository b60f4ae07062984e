"""Calibrations have versions to list, to choose and to go back to; feedback makes a new one, measured honestly."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.backup import copy_collection
from index.build import build_collection
from index.calibration.evidence import gather
from index.calibration.outcome import distribution, table
from index.collection import Collection, NewItem
from index.data.rows import text_key
from index.errors import CalibrationError, CollectionError, DataError, DiskFull, NotFound, ReadOnly
from index.storage import snapshot, versions
from index.upkeep import recalibrate
from index.verbs import cli_calibrations, cli_items
from tests.index.conftest import KNOWN, OTHER, World, write_csv
from tests.index.helpers import sentences

FEEDBACK = 40


@pytest.fixture
def live(copied: Path) -> Iterator[Collection]:
    opened = Collection.open(copied, writable=True)
    yield opened
    opened.close()


def give(opened: Collection, *, known: int = FEEDBACK, unknown: int = FEEDBACK, seed: int = 50) -> np.ndarray:
    """Feedback on sentences nobody has seen, so many of each label; returns the queries."""
    asked = [*sentences(known, KNOWN, seed), *((text, None) for text, _ in sentences(unknown, OTHER, seed))]
    vectors = opened.encoder.encode([text for text, _ in asked])
    for vector, (_, label) in zip(vectors, asked, strict=True):
        opened.feedback(vector, label)
    return vectors


def telling(opened: Collection) -> np.ndarray:
    """(f,) which distinct notes are used: none that is a calibration query, another note or an item of its label."""
    kept, fed, now = (
        opened._store.calibration_queries(),
        opened._store.feedback().distinct(),
        opened._store.everything(),
    )
    labels = np.array([str(label) for label in (*kept.labels, *fed.labels)])
    kinds = np.where(np.isin(labels, KNOWN), labels, "none")
    vectors = np.concatenate([kept.vectors, fed.vectors])
    same = (vectors @ vectors.T >= 1 - 1e-4) & (kinds[:, None] == kinds)
    item = (vectors @ now.vectors.T >= 1 - 1e-4) & (kinds[:, None] == np.array(now.labels))
    used: np.ndarray = ~np.tril(same, -1).any(axis=1) & ~item.any(axis=1)
    return used[len(kept.labels) :]


def answers(opened: Collection) -> list[float | None]:
    return [answer.no_match for answer in opened.search(["my bank card", "a song today", "the hotel"])]


def test_a_reader_follows_the_way_back_to_what_it_served_before_a_compaction(live: Collection) -> None:
    give(live)
    reader = Collection.open(live.path)
    version = live.recalibrate()
    reader.refresh()
    live.delete(["items.csv:3"])
    live.snapshot()
    reader.refresh()
    assert reader.state.calibration_id == live.state.calibration_id != version.id
    live.use_calibration(version.id)
    reader.refresh()
    assert (reader.state.calibration_id, reader.warnings) == (version.id, [])
    reader.close()


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


def test_rolling_back_restores_every_answer_and_forward_again(live: Collection) -> None:
    give(live)
    before, own = answers(live), str(live.state.calibration_id)
    version = live.recalibrate()
    after = answers(live)
    live.use_calibration(own)
    assert answers(live) == before
    live.use_calibration(version.id)
    assert answers(live) == after


def test_a_reader_elsewhere_follows_the_choice(live: Collection) -> None:
    reader = Collection.open(live.path)
    give(live)
    own = str(live.state.calibration_id)
    live.recalibrate()
    reader.refresh()
    assert answers(reader) == answers(live)
    assert reader.refresh() is False
    live.use_calibration(own)
    assert reader.refresh() is True
    assert (answers(reader), reader.state.calibration_id) == (answers(live), own)
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


def damage(path: Path) -> Path:
    """Cuts a file of the current snapshot short; returns which."""
    name = (path / "snapshots" / "CURRENT").read_text().strip()
    file = max((path / "snapshots" / name).iterdir(), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    return file


def test_a_choice_holds_for_the_copy_that_stands_in_for_its_snapshot(live: Collection) -> None:
    own = str(live.state.calibration_id)
    live.delete(["items.csv:3"])
    live.snapshot()
    give(live)
    version = live.recalibrate()
    before = answers(live)
    file = damage(live.path)
    with closing(Collection.open(live.path)) as reader:
        (warning,) = reader.warnings
        assert warning.startswith(str(file))
        assert (reader.state.calibration_id, answers(reader)) == (version.id, before)
        reader.refresh()
        assert (reader.state.calibration_id, reader.warnings) == (version.id, [warning])
    live.use_calibration(own)
    live.snapshot()
    with closing(Collection.open(live.path)) as reader:
        assert reader.state.calibration_id == live.state.calibration_id != own


def test_where_an_older_snapshot_serves_the_choice_made_under_the_newer_one_is_told_of(live: Collection) -> None:
    live.upsert([NewItem("new", "card", "my bank card chip")])
    live.snapshot()
    give(live)
    version = live.recalibrate()
    path = live.path
    live.close()
    damage(path)
    with closing(Collection.open(path, writable=True)) as opened:
        assert opened.state.calibration_id != version.id
        assert f"does not serve, and calibration {version.id} was chosen with it" in opened.warnings[1]
        opened.refresh()
        assert len(opened.warnings) == 2
        opened.use_calibration(version.id)
        assert len(opened.warnings) == 1
        opened.snapshot()
        assert opened.warnings == []


def test_a_choice_of_an_earlier_build_is_followed(live: Collection) -> None:
    give(live)
    told = live.recalibrate().queries["feedback"]
    current = live.path / "calibrations" / "CURRENT"
    current.write_text(json.dumps({key: json.loads(current.read_text())[key] for key in ("snapshot", "calibration")}))
    live.snapshot()
    assert live.calibration is not None
    assert live.calibration.report["queries"]["feedback"] == told


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


def test_an_unknown_id_and_one_that_no_longer_fits_are_refused(live: Collection) -> None:
    with pytest.raises(NotFound, match="'nobody'"):
        live.use_calibration("nobody")
    own = str(live.state.calibration_id)
    live.upsert([NewItem(f"n{at}", "card", text) for at, (text, _) in enumerate(sentences(300, ["card"], 9))])
    live.snapshot()
    with pytest.raises(CalibrationError, match=r"180 items.*not put in use"):
        live.use_calibration(own)
    assert live.state.calibration_id != own


@pytest.mark.parametrize("place", [0.001, 0.5, 0.999])
def test_a_damaged_choice_gives_way_to_the_snapshots_own_and_says_so(live: Collection, place: float) -> None:
    give(live)
    before = answers(live)
    version = live.recalibrate()
    live.close()
    (file,) = (live.path / "calibrations").glob(f"{version.id}-*.json")
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)
    reader = Collection.open(live.path)
    assert any("damaged" in warning and "own calibration" in warning for warning in reader.warnings)
    assert answers(reader) == before
    assert version.id not in [entry.id for entry in reader.calibrations()]
    reader.close()


def test_what_is_fitted_again_is_kept_where_it_lies_damaged(live: Collection) -> None:
    """An id is the calibration's own, so what is fitted on the same queries again has that of the damaged one."""
    own, version = live.state.calibration_id, live.recalibrate(feedback=False)
    live.use_calibration(str(own))
    (file,) = (live.path / "calibrations").glob(f"{version.id}-*.json")
    file.write_bytes(file.read_bytes()[:-1])
    assert live.recalibrate(feedback=False).id == version.id
    reader = Collection.open(live.path)
    assert (reader.warnings, reader.state.calibration_id) == ([], version.id)
    assert len(list((live.path / "calibrations").glob(f"{version.id}-*.json"))) == 1
    reader.close()


def test_a_damaged_choice_that_was_repaired_is_served_without_opening_it_again(live: Collection) -> None:
    give(live)
    following = Collection.open(live.path)
    version = live.recalibrate()
    chosen = answers(live)
    (file,) = (live.path / "calibrations").glob(f"{version.id}-*.json")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    opened = Collection.open(live.path)
    for reader in (opened, following):
        assert [reader.refresh() for _ in range(3)] == [False] * 3
        (warning,) = reader.warnings
        assert "is damaged" in warning
        state = reader.state
        reader.refresh()
        assert reader.state is state
    file.write_bytes(content)
    for reader in (opened, following):
        assert reader.refresh()
        assert (reader.warnings, reader.state.calibration_id, answers(reader)) == ([], version.id, chosen)
        reader.close()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"snapshot": "x"}', b'{"snapshot": 3, "calibration": "y"}']
)
def test_a_choice_that_says_nothing_is_told_of_until_one_is_made(live: Collection, content: bytes) -> None:
    give(live)
    before = answers(live)
    version = live.recalibrate()
    (live.path / "calibrations" / "CURRENT").write_bytes(content)
    reader = Collection.open(live.path)
    assert answers(reader) == before
    (warning,) = reader.warnings
    assert f"{live.path}/calibrations/CURRENT: is damaged" in warning
    assert f"surematch calibrations {live.path} --use ID" in warning
    assert warning.endswith("The snapshot's own calibration serves in its place.")
    assert warning in reader.search(["my card"])[0].warnings
    assert warning in reader.describe()["warnings"]
    reader.refresh()
    assert reader.warnings == [warning]
    live.use_calibration(version.id)
    assert reader.refresh()
    assert (reader.warnings, reader.state.calibration_id) == ([], version.id)
    reader.close()


def test_a_choice_that_may_not_be_read_is_told_of_while_that_lasts(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, whom permissions do not stop."""
    give(live)
    before = answers(live)
    version = live.recalibrate()
    real, following = Path.read_bytes, Collection.open(live.path)

    def refuse(path: Path) -> bytes:
        if path == live.path / "calibrations" / "CURRENT":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        opened = Collection.open(live.path)
        for _ in range(2):
            following.refresh()
            opened.refresh()
        (warning,) = opened.warnings
        assert "CURRENT: cannot be read (Permission denied), so which calibration was chosen is not known" in warning
        (warning,) = following.warnings
        assert warning.endswith("The calibration that was in use goes on serving.")
        assert answers(opened) == before
        assert following.state.calibration_id == version.id
    for reader in (opened, following):
        reader.refresh()
        assert (reader.warnings, reader.state.calibration_id) == ([], version.id)
        reader.close()


def test_calibrations_that_cannot_be_listed_are_not_taken_for_none(
    live: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(live)
    live.recalibrate()
    real = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == "calibrations":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    reader = Collection.open(live.path)
    assert any("calibrations: cannot be read (Permission denied)" in warning for warning in reader.warnings)
    for use in (reader.calibrations, lambda: copy_collection(live.path, tmp_path / "copy", lambda *_: None)):
        with pytest.raises(CollectionError, match=r"calibrations: cannot be read \(Permission denied\)"):
            use()
    reader.close()


def test_the_choice_of_another_collection_is_told_of(live: Collection) -> None:
    live.recalibrate(feedback=False)
    live.close()
    current = live.path / "calibrations" / "CURRENT"
    told = json.loads(current.read_text()) | {"snapshot": "000000000009-12345678", "calibration": "0123456789ab"}
    current.write_text(json.dumps(told))
    reader = Collection.open(live.path)
    assert any("names a calibration that is not here" in said and "--use ID" in said for said in reader.warnings)
    reader.close()


def test_a_choice_that_was_lost_is_told_of_until_a_compaction(
    live: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    give(live)
    version = live.recalibrate()
    (live.path / "calibrations" / "CURRENT").unlink()
    assert cli_calibrations.calibrations([str(live.path)]) == 0
    said = capsys.readouterr().out
    assert f"CURRENT: is missing, though calibration {version.id} was fitted since the last compaction" in said
    live.snapshot()
    reader = Collection.open(live.path)
    assert reader.warnings == [], "what a compaction fits is served without a choice"
    reader.close()


def test_a_compaction_removes_a_damaged_choice(live: Collection) -> None:
    give(live)
    live.recalibrate()
    (live.path / "calibrations" / "CURRENT").write_bytes(b"#")
    live.snapshot()
    reader = Collection.open(live.path)
    assert reader.warnings == []
    reader.close()


def test_a_compaction_that_could_not_keep_its_calibration_is_refused(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, whom permissions do not stop."""
    give(live)
    version = live.recalibrate()
    live.delete(["items.csv:3"])
    before, folder = live.state, live.path / "calibrations"
    with monkeypatch.context() as patch:
        patch.setattr(versions.os, "access", lambda path, mode: path != folder)
        with pytest.raises(ReadOnly, match=r"calibrations: cannot be written to.*Nothing was compacted"):
            live.snapshot()
    assert live.state is before
    assert live.state.calibration_id == version.id
    live.snapshot()
    assert live.state.calibration_id in {entry.id for entry in live._calibrations.versions.listed()[0]} - {version.id}


def test_what_was_deleted_is_erased_though_the_calibration_cannot_be_kept(
    live: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(live)
    live.recalibrate()
    sequence = live.delete(["items.csv:3"]).sequence

    def refuse(*arguments: Any) -> None:
        raise ReadOnly("not now")

    monkeypatch.setattr(live._calibrations.versions, "prune", refuse)
    with pytest.raises(ReadOnly, match="not now"):
        live.snapshot()
    assert live.describe()["erased"]["sequence"] >= sequence


def test_a_backup_made_while_the_first_choice_is_made_is_of_before_it_or_after(
    live: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.snapshot()  # now there are calibrations, and no choice
    give(live)
    own, real, chosen = live.state.calibration_id, shutil.copy2, list[str]()

    def slow(source: Path, target: Path) -> Any:
        try:
            return real(source, target)
        except FileNotFoundError:
            chosen.append(live.recalibrate().id)
            raise

    monkeypatch.setattr(versions.shutil, "copy2", slow)
    copy_collection(live.path, tmp_path / "copy", lambda *_: None)
    assert len(chosen) == 1
    opened = Collection.open(tmp_path / "copy")
    assert (opened.warnings, opened.state.calibration_id) == ([], own)
    opened.close()


def test_a_reader_cannot_choose(collection: Collection) -> None:
    for write in (collection.recalibrate, lambda: collection.use_calibration("x")):
        with pytest.raises(ReadOnly):
            write()


@pytest.mark.parametrize("step", ["_write_durably", "_sync"])
@pytest.mark.parametrize("nth", range(8))
def test_a_full_disk_at_any_step_leaves_a_whole_calibration(
    live: Collection, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    give(live)
    before = answers(live)
    real, count = getattr(snapshot, step), iter(range(99))

    def full(*arguments: Any) -> None:
        if next(count) == nth:
            raise OSError(errno.ENOSPC, "no room")
        real(*arguments)

    monkeypatch.setattr(snapshot, step, full)
    try:
        live.recalibrate()
    except DiskFull:
        assert answers(live) == before
    monkeypatch.undo()
    reader = Collection.open(live.path)
    found = answers(reader)
    assert not reader.warnings
    reader.close()
    live.recalibrate()
    assert found in (before, answers(live))


def test_old_versions_go_but_never_the_one_in_use(live: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "KEPT", 2)
    own = str(live.state.calibration_id)
    give(live)
    for at in range(3):
        give(live, known=2, unknown=2, seed=80 + at)
        live.recalibrate()
        live.use_calibration(own)
    listed = [entry.id for entry in live.calibrations()]
    assert own in listed
    assert len(listed) == 3
    assert len(list((live.path / "calibrations").glob("*.json"))) == 3


def test_a_backup_carries_the_versions_and_the_choice(live: Collection, tmp_path: Path) -> None:
    give(live)
    version = live.recalibrate()
    copy_collection(live.path, tmp_path / "copy", lambda *_: None)
    opened = Collection.open(tmp_path / "copy")
    assert opened.state.calibration_id == version.id
    assert [entry.id for entry in opened.calibrations()] == [entry.id for entry in live.calibrations()]
    opened.close()


def test_a_killed_writer_leaves_a_whole_calibration(copied: Path, tmp_path: Path) -> None:
    """kill -9 at every durable step of a recalibration: old or new, never a mixture, never a warning."""
    opened = Collection.open(copied, writable=True)
    give(opened)
    before = answers(opened)
    opened.close()
    seen = set()
    for nth in range(0, 12, 2):
        path = Path(shutil.copytree(copied, tmp_path / f"killed-{nth}"))
        code = (
            "import os, signal, sys; from pathlib import Path; from index.storage import snapshot\n"
            "from index.collection import Collection\n"
            "real, left = snapshot._sync, [int(sys.argv[2])]\n"
            "def dying(folder):\n"
            "    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    left[0] -= 1; real(folder)\n"
            "opened = Collection.open(Path(sys.argv[1]), writable=True)\n"
            "snapshot._sync = dying; opened.recalibrate(); print('done')\n"
        )
        subprocess.run([sys.executable, "-c", code, str(path), str(nth)], check=False, capture_output=True)
        reader = Collection.open(path)
        assert not reader.warnings
        seen.add(answers(reader) == before)
        reader.close()
        again = Collection.open(path, writable=True)
        assert not list((path / "calibrations").glob(".*"))
        again.close()
    assert seen == {True, False}


def test_the_verbs(live: Collection, capsys: pytest.CaptureFixture[str]) -> None:
    give(live)
    own = str(live.state.calibration_id)
    live.close()
    assert cli_calibrations.recalibrate([str(live.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["replaced"] == own
    assert told["change"]["after"]["ece"] < 0.2
    assert cli_calibrations.calibrations([str(live.path)]) == 0
    said = capsys.readouterr().out
    assert own in said
    assert told["id"] in said
    assert cli_calibrations.calibrations([str(live.path), "--use", own]) == 0
    capsys.readouterr()
    assert cli_calibrations.calibrations([str(live.path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["in_use"] == own
    assert [entry["id"] for entry in listed["calibrations"]] == [own, told["id"]]
    assert cli_calibrations.recalibrate([str(live.path), "--no-feedback"]) == 0
    assert "fitted again" in capsys.readouterr().out


def test_the_verbs_compact_nothing_by_the_way(
    live: Collection, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.upkeep.compaction.COMPACT_LEAST", 10)
    compacted: list[Any] = []
    monkeypatch.setattr(Collection, "snapshot", lambda *arguments: compacted.append(arguments))
    give(live)
    own, snapshot_id, path = str(live.state.calibration_id), live.snapshot_id, str(live.path)
    live.close()
    more = write_csv(tmp_path / "more.csv", sentences(20, ["card"], 9))
    assert cli_items.add([path, str(more), "--label", "label"]) == 0
    assert "Compaction is due: surematch compact" in " ".join(capsys.readouterr().out.split())
    assert cli_calibrations.recalibrate([path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["replaced"], told["snapshot"]) == (own, snapshot_id)
    assert cli_items.delete([path, "--where", '{"$label": "card"}', "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compaction_due"]
    assert cli_items.delete([path, "items.csv:70"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Without probabilities: " in said
    assert "Compaction is due: surematch compact" in said
    with pytest.raises(CalibrationError, match="not put in use"):
        cli_calibrations.calibrations([path, "--use", own])
    with closing(Collection.open(Path(path))) as reader:
        assert (reader.snapshot_id, reader.state.calibration_id) == (snapshot_id, told["id"])
    assert not compacted


def test_the_list_marks_what_does_not_fit_any_more_and_says_why_there_is_no_probability(
    live: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    live.maintenance.close()
    own, fits = str(live.state.calibration_id), live.recalibrate(feedback=False).id
    path, mark = str(live.path), "does not fit the items as they are now"
    assert live.stale_calibrations() == {}
    assert cli_calibrations.calibrations([path]) == 0
    assert mark not in capsys.readouterr().out
    live.upsert([NewItem(f"m{at}", "music", text) for at, (text, _) in enumerate(sentences(20, ["music"], 8))])
    reason = str(live.uncalibrated())
    assert cli_calibrations.calibrations([path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["in_use"], told["reason"], told["stale"]) == (fits, reason, [own, fits])
    assert cli_calibrations.calibrations([path]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(mark) == 2
    assert f"Without probabilities: {reason}" in said
    live.snapshot()
    assert live.state.calibration_id not in live.stale_calibrations()
    assert set(live.stale_calibrations()) == {own, fits}


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


def test_the_verb_says_what_it_left_out(live: Collection, capsys: pytest.CaptureFixture[str]) -> None:
    give(live)
    gone = next(label for label in live._store.feedback().labels if label is not None)
    live.delete_where({"$label": gone})
    path = live.path
    live.close()
    assert cli_calibrations.recalibrate([str(path)]) == 0
    assert "carry a label that is not in the gallery" in " ".join(capsys.readouterr().out.split())
