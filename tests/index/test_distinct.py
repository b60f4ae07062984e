"""Calibration queries that show nothing are told and left out: copies, items, and those whose label has gone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index import metrics
from index.build import build_collection
from index.calibration.conditional_logit import MIN_QUERIES
from index.calibration.distinct import NEARLY, _Own, distinct, repeated
from index.calibration.examples import Queries
from index.calibration.sources import Held
from index.calibration.thresholds import from_fpir
from index.collection import Collection, NewItem
from index.data.rows import read_rows, text_key
from index.encoders.by_name import encoder_folder, load_encoder
from index.errors import CalibrationError
from index.evaluate import evaluate
from tests.index.conftest import World
from tests.index.helpers import Vectors, sentences, unit


@pytest.fixture
def live(copied: Path) -> Iterator[Collection]:
    opened = Collection.open(copied, writable=True)
    opened.maintenance.close()
    yield opened
    opened.close()


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_found_as_by_comparing_all_with_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    some = unit(60, 16, seed)[random.integers(60, size=300)] + 1e-4 * random.standard_normal((300, 16))
    vectors = (some / np.linalg.norm(some, axis=1, keepdims=True)).astype(np.float32)
    codes = random.integers(-1, 2, 300)
    same = (vectors.astype(np.float64) @ vectors.T.astype(np.float64) >= 1 - 1e-4) & (codes[:, None] == codes)
    np.testing.assert_array_equal(repeated(vectors, codes), np.tril(same, -1).any(axis=1))


def test_items_and_copies_go_with_their_names_and_numbers() -> None:
    gallery, codes = unit(40, 8, seed=1), np.arange(40) % 4
    others = unit(4, 8, seed=2)
    vectors = np.stack([gallery[0], gallery[1], others[0], others[0], others[1], others[1], others[2]])
    given = Queries(
        vectors,
        np.array([0, 3, 1, 1, -1, 2, -1]),
        np.full(7, -1),
        "given",
        names=("l0", "l3", "l1", "l1", "other", "l2", "else"),
        feedback=np.array([70, 71, 72]),
    )
    found, said = distinct(given, gallery, codes)
    # the first is an item; the second is one of another label; the fourth a copy; of the fifth the label differs
    assert found.names == ("l3", "l1", "other", "l2", "else")
    assert found.codes.tolist() == [3, 1, -1, 2, -1]
    assert found.feedback.tolist() == [70, 71, 72]
    assert [line[:6] for line in said] == ["1 of 7", "1 of 7"]
    own = replace(given, rows=np.arange(7), names=(), feedback=np.empty(0, np.int64))
    assert distinct(own, gallery, codes) == (own, []), "items that ask for their like are hidden from themselves"


@pytest.mark.parametrize(
    ("made_of_items", "spread", "told"),
    [(1.0, 1, True), (0.5, 1, True), (0, 1, False), (1, 0, True), (0, 0, False)],
)
def test_queries_made_of_items_are_told(made_of_items: float, spread: float, told: bool) -> None:
    """Also where the items themselves are as near to each other (`spread` 0)."""
    random, labels = np.random.default_rng(0), 8
    centres, codes = unit(labels, 32), np.arange(400) % labels

    def around(points: Vectors, by: float) -> Vectors:
        moved = points + by * unit(len(points), 32, int(random.integers(1 << 30)))
        return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)

    gallery = around(centres[codes], spread or 0.1)
    changed, fresh = around(gallery[:200], 0.2), around(centres[codes[:200]], spread or 0.1)
    vectors = np.where(random.random((200, 1)) < made_of_items, changed, fresh)
    given = Queries(vectors, codes[:200], np.full(200, -1), "given", names=tuple(map(str, codes[:200])))
    found, said = distinct(given, gallery, codes)
    assert len(found.codes) == (0 if told else 200), "one cannot tell which of them are real"
    assert [("made by changing items" in line) for line in said] == [True] * told


@pytest.mark.parametrize(("name", "label"), [("banking77", "category"), ("clinc150", "intent")])
@pytest.mark.parametrize("per_label", [5, 30])
def test_more_than_a_word_of_change_is_told_by_the_gap_to_the_second_item(
    shared_data: Path, name: str, label: str, per_label: int
) -> None:
    items, asked = (
        read_rows([shared_data / name / file], text="text", label=label) for file in ("train.csv", "test.csv")
    )
    names = sorted({str(row.label) for row in items})[:60]
    items = [row for one in names for row in [row for row in items if row.label == one][:per_label]]
    with encoder_folder("static") as folder:
        encoder = load_encoder(folder)

    def queries(texts: list[str], labels: list[str | None]) -> Queries:
        codes = np.array([names.index(str(one)) for one in labels])
        return Queries(encoder.encode(texts), codes, np.full(len(codes), -1), "given", names=tuple(labels))

    gallery = queries([row.text for row in items], [row.label for row in items])
    real = [row for row in asked if row.label in names]
    for count in (40, 1000):
        some = [real[at] for at in np.random.default_rng(count).permutation(len(real))[:count]]
        given = queries([row.text for row in some], [row.label for row in some])
        assert distinct(given, gallery.vectors, gallery.codes)[1] == []
    for before, after in (("can you tell me ", ""), ("hi, ", " thanks in advance"), ("quick question: ", "")):
        given = queries([f"{before}{row.text}{after}" for row in items], [row.label for row in items])
        left, said = distinct(given, gallery.vectors, gallery.codes)
        assert not len(left.codes)
        assert any("made by changing items" in line for line in said)


def test_unknown_queries_that_became_items_are_unknown_no_more() -> None:
    gallery, codes = unit(100, 32), np.arange(100) % 5
    vectors = np.concatenate([unit(40, 32, seed=3), gallery[:10], unit(20, 32, seed=4)])
    given = Queries(vectors, np.array([*(np.arange(40) % 5), *[-1] * 30]), np.full(70, -1), "given")
    left, said = distinct(given, gallery, codes)
    assert (left.codes < 0).sum() == 20
    assert ["10 of 30 unknown queries are items" in line for line in said] == [True]


def test_real_queries_are_not_taken_for_changed_items(shared_data: Path, tmp_path: Path) -> None:
    items, queries = (
        read_rows([shared_data / "banking77" / name], text="text", label="category")
        for name in ("train.csv", "test.csv")
    )
    marked = [replace(row, text=f"{row.text} please") for row in items[::10]]
    for at, (held, told) in enumerate([(queries[::3], False), (marked, True)]):
        said = build_collection("static", items, tmp_path / str(at), held=Held(held))["warnings"]
        assert any("made by changing items" in line for line in said) == told
        assert any("left out one by one" in line for line in said) == told, "then the items ask for their like"


@pytest.mark.parametrize(("name", "label"), [("banking77", "category"), ("clinc150", "intent")])
def test_the_shares_that_the_limits_rest_on(shared_data: Path, name: str, label: str) -> None:
    items, queries = (
        read_rows([shared_data / name / file], text="text", label=label) for file in ("train.csv", "test.csv")
    )
    names = sorted({row.label for row in items})
    with encoder_folder("static") as folder:
        encoder = load_encoder(folder)
    gallery, codes = encoder.encode([row.text for row in items]), np.array([names.index(row.label) for row in items])
    own = _Own(gallery, codes)
    of_queries = own.nearest(
        encoder.encode([row.text for row in queries]), np.array([names.index(row.label) for row in queries])
    )
    marked = own.nearest(encoder.encode([f"{row.text} ?" for row in items]), codes)
    of_items = own.among_themselves()
    assert abs((of_queries[:, 0] >= NEARLY).mean() - (of_items[:, 0] >= NEARLY).mean()) < 0.1
    assert (marked[:, 0] >= NEARLY).mean() > 5 / 6


def test_where_labels_have_one_item_each_queries_near_to_them_are_told() -> None:
    gallery, codes = unit(100, 32), np.arange(100)
    moved = gallery + 0.2 * unit(100, 32, seed=1)
    near = (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)
    for vectors, told in ((near, True), (unit(100, 32, seed=2), False)):
        found, said = distinct(Queries(vectors, codes, np.full(100, -1), "given"), gallery, codes)
        assert len(found.codes) == 100
        assert [("If they were made by changing items" in line) for line in said] == [True] * told


def test_items_are_no_unknown_queries(world: World, tmp_path: Path) -> None:
    items, unknown = world.rows(world.items), world.rows(world.held_unknown)
    mixed = [*unknown, *(replace(row, label="other", text=row.text.upper()) for row in items[:30])]
    found = [
        build_collection(str(world.encoder), items, tmp_path / str(at), held=Held(world.rows(world.held), rows))
        for at, rows in enumerate([unknown, mixed])
    ]
    assert found[0]["calibration"]["queries"] == found[1]["calibration"]["queries"]
    assert any(f"30 of {len(mixed)} unknown queries have the text of an item" in line for line in found[1]["warnings"])


def test_one_unknown_query_four_hundred_times_is_one(world: World, tmp_path: Path) -> None:
    odd = replace(world.rows(world.held_unknown)[0], label=None)
    build_collection(
        str(world.encoder), world.rows(world.items), tmp_path / "c", held=Held(world.rows(world.held), [odd] * 400)
    )
    opened = Collection.open(tmp_path / "c")
    assert opened.calibration is not None
    assert opened.calibration.report["queries"]["unknowns"].startswith("1 real unknown query and ")
    assert any("are copies of others" in warning for warning in opened.calibration.warnings)
    with pytest.raises(CalibrationError, match=r"cannot support an FPIR of 0\.01"):
        from_fpir(opened.calibration.held_out, 0.01)
    opened.close()


def test_queries_that_become_items_leave_the_next_calibration(live: Collection, world: World) -> None:
    before = live.calibration
    assert before is not None
    held = world.rows(world.held)[:60]
    live.upsert([NewItem(f"was asked {at}", row.label, row.text) for at, row in enumerate(held)])
    live.snapshot()
    assert live.calibration is not None
    queries = live.calibration.report["queries"]
    assert queries["known"] <= before.report["queries"]["known"] - 50
    assert any("are items of the gallery" in warning for warning in live.calibration.warnings)


def test_feedback_on_the_items_own_words_does_not_count(live: Collection, world: World) -> None:
    rows = [*world.rows(world.items), *world.rows(world.test)]
    for vector, row in zip(live.encoder.encode([row.text for row in rows]), rows, strict=True):
        live.feedback(vector, row.label)
    live.feedback(live.encoder.encode(["a storm and a melody today"])[0], None)
    version = live.recalibrate()
    assert MIN_QUERIES <= version.queries["feedback"]["queries"] <= len(world.rows(world.test)) + 1
    assert live.calibration is not None
    assert any("are items of the gallery" in warning for warning in live.calibration.warnings)


def test_feedback_on_little_else_is_too_little(live: Collection, world: World) -> None:
    rows = world.rows(world.items)
    for vector, row in zip(live.encoder.encode([row.text for row in rows]), rows, strict=True):
        live.feedback(vector, row.label)
    live.feedback(live.encoder.encode(["a storm and a melody today"])[0], None)
    with pytest.raises(
        CalibrationError, match=r"feedback on 1 different queries that can be used.* are items of the gallery"
    ):
        live.recalibrate()


def test_queries_of_a_renamed_label_are_not_unknown(live: Collection, world: World) -> None:
    assert live.calibration is not None
    before = live.calibration.report["queries"]
    hits = live.search(["card", "food", "train"], k=100)
    cards = {hit.id: hit for answer in hits for hit in answer.hits if hit.label == "card"}
    live.upsert([NewItem(name, "payment", hit.text) for name, hit in cards.items()])
    live.delete_where({"label": "card"})
    live.snapshot()
    assert live.calibration is not None
    after = live.calibration.report["queries"]
    assert after["unknown"] == before["unknown"]
    assert after["known"] < before["known"]
    assert any("has another name there now: not used" in warning for warning in live.calibration.warnings)


def test_what_was_left_out_is_said_where_too_little_is_left(world: World, tmp_path: Path) -> None:
    items, few = world.rows(world.items), world.rows(world.held)[:10]
    found = build_collection(str(world.encoder), items, tmp_path / "c", held=Held([*items, *few]))
    assert not found["calibrated"]
    assert "at least 20 are needed" in found["reason"]
    assert f"{len(items)} of {len(items) + len(few)} calibration queries are items" in found["reason"]


@pytest.mark.parametrize("order", [1, -1], ids=["the same words", "in another order"])
def test_where_nothing_is_left_the_items_ask(world: World, tmp_path: Path, order: int) -> None:
    rows = [replace(row, text=" ".join(row.text.split()[::order])) for row in world.rows(world.items)]
    found = build_collection(str(world.encoder), world.rows(world.items), tmp_path / "c", held=Held(rows))
    assert "left out" in found["calibration"]["queries"]["source"]
    assert any("calibration queries are items of the gallery" in warning for warning in found["warnings"])


def test_what_was_left_out_is_said_where_nothing_is_left(world: World, tmp_path: Path) -> None:
    encoder = Path(shutil.copytree(world.encoder, tmp_path / "encoder"))
    items, held = world.rows(world.items), world.rows(world.held)
    keys = sorted({text_key(row.text) for row in items + held})
    np.save(encoder / "trained_rows.npy", np.array(keys, np.uint64))
    found = build_collection(str(encoder), items, tmp_path / "c", held=Held(held))
    assert "Every row of the gallery was used to train" in found["reason"]
    assert f"of {len(held)} calibration queries were in the encoder's training data" in found["reason"]


def test_feedback_corrects_what_was_given(live: Collection) -> None:
    """The last word counts, and what the served calibration was fitted on does not measure it."""
    kept = live._store.calibration_queries()
    wrong = kept.vectors[kept.known][:30]
    for vector in wrong:
        live.feedback(vector, None)
    for text, label in sentences(40, ["card", "travel", "food"], 91):
        live.feedback(live.encoder.encode([text])[0], label)
    assert live.calibration is not None
    before = live.calibration.report["queries"]
    version = live.recalibrate()
    assert live.calibration is not None
    after = live.calibration.report["queries"]
    assert after["unknown"] == before["unknown"] + len(wrong)
    assert after["known"] == before["known"] - len(wrong) + after["feedback"]["queries"] - len(wrong)
    assert version.change is not None
    assert version.change["unknown"] == 0, "the corrected ones were in the fit of what served"


def test_feedback_that_becomes_items_leaves_a_calibration(copied: Path, world: World, tmp_path: Path) -> None:
    build_collection(str(world.encoder), world.rows(world.items), tmp_path / "c")
    opened = Collection.open(tmp_path / "c", writable=True)
    opened.maintenance.close()
    asked = world.rows(world.test)
    for vector, row in zip(opened.encoder.encode([row.text for row in asked]), asked, strict=True):
        opened.feedback(vector, row.label)
    for row in world.rows(world.test_unknown):
        opened.feedback(opened.encoder.encode([row.text])[0], None)
    opened.recalibrate()
    opened.upsert([NewItem(f"asked {at}", row.label, row.text) for at, row in enumerate(asked)])
    opened.snapshot()
    assert opened.calibration is not None
    queries = opened.calibration.report["queries"]
    assert "left out" in queries["source"]
    assert queries["feedback"]["queries"] > 20, "of the unknown ones none has become an item"
    opened.close()


def test_queries_of_few_labels_are_said(world: World, tmp_path: Path) -> None:
    rows = [row for row in world.rows(world.held) if row.label != "food"]
    found = build_collection(str(world.encoder), world.rows(world.items), tmp_path / "c", held=Held(rows))
    assert any("carry only 2 of the gallery's 3 labels" in warning for warning in found["warnings"])
    one = [row for row in rows if row.label == "card"]
    found = build_collection(str(world.encoder), world.rows(world.items), tmp_path / "d", held=Held(one))
    assert "carry the same one" in found["reason"]


def test_what_could_not_be_calibrated_is_tried_again_once_its_items_have_changed(copied: Path, world: World) -> None:
    opened = Collection.open(copied, writable=True)
    opened.maintenance.close()
    hits = {hit.id: hit for answer in opened.search(["card", "food", "train"], k=100) for hit in answer.hits}
    opened.delete([name for name, hit in hits.items() if hit.label != "card"])
    opened.snapshot()
    assert opened.calibration is None, "one label alone"
    assert not opened._due()
    opened.upsert([NewItem(name, hit.label, hit.text) for name, hit in hits.items()])
    assert opened._due()
    opened.snapshot()
    assert opened.uncalibrated() is None
    opened.close()


def test_intervals_hold_the_figure_and_stay_what_they_measure() -> None:
    random = np.random.default_rng(3)
    for n in (12, 40, 400):
        known = random.random(n) < 0.8
        right = known & (random.random(n) < 0.95)
        p = np.clip(np.where(right, 0.9, 0.3) + 0.2 * random.standard_normal(n), 0.01, 0.99)
        found = metrics.intervals(p, 1 - p, right, known)
        for name, value in metrics.report(p, 1 - p, right, known).items():
            if name in found:
                low, high = found[name]
                assert 0 <= low <= float(value or 0) <= high
                assert name == "nll" or high <= 1


def test_labels_that_could_not_ask_and_a_label_of_most_items_are_said(world: World, tmp_path: Path) -> None:
    rows = world.rows(world.items)
    alone = [replace(row, label=f"{row.label} {at}", line=1000 + at) for at, row in enumerate(rows[:10])]
    found = build_collection(str(world.encoder), [*rows, *alone], tmp_path / "a")
    assert any("10 of the gallery's 13 labels have one item" in warning for warning in found["warnings"])
    cards = [row for row in rows if row.label == "card"]
    others = [row for row in rows if row.label != "card"][::4]
    for at, (items, told) in enumerate([([*cards, *others], True), (rows, False)]):
        found = build_collection(str(world.encoder), items, tmp_path / str(at), held=Held(world.rows(world.held)))
        assert any("One label has" in warning for warning in found["warnings"]) == told


def test_an_evaluation_counts_copies_once(world: World, built: Path) -> None:
    opened = Collection.open(built)
    known, unknown = world.rows(world.test), world.rows(world.test_unknown)
    once, often = (evaluate(opened, known * times, unknown * times, progress=lambda *_: None) for times in (1, 20))
    opened.close()
    assert often["ece_floor"] == pytest.approx(once["ece_floor"], rel=0.3), "copies are no evidence"
    widths = [one["intervals"]["brier"][1] - one["intervals"]["brier"][0] for one in (once, often)]
    assert widths[1] == pytest.approx(widths[0], rel=0.3)
    assert any("are copies of others" in warning for warning in often["warnings"])
    assert not any("are copies of others" in warning for warning in once["warnings"])
