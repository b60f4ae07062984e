"""What cannot honestly be calibrated: a fallback with a stated reason, or a refusal; never a silent number.

Every case for every calibrator, through `calibrate`; and those a user can bring about through the whole build.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from index.build import build_collection
from index.calibration.calibrate import calibrate
from index.calibration.calibrators import CALIBRATORS
from index.calibration.conditional_logit import NO_MATCH
from index.calibration.evidence import Evidence
from index.calibration.examples import Examples, Queries, examples
from index.calibration.pairs import cross_fitted
from index.calibration.sources import Held
from index.calibration.staleness import Seen
from index.calibration.thresholds import from_fpir, from_precision
from index.collection import Collection, NewItem
from index.data.rows import Row
from index.errors import CalibrationError, DataError
from index.evaluate import evaluate
from index.verbs import cli, console
from tests.index.conftest import World, write_csv
from tests.index.helpers import unit
from tests.index.test_calibrators import evidence_of

N = 200
Best, Target = NDArray[np.float64], NDArray[np.int64]


def made(best: Best, right: NDArray[np.bool_], change: Callable[[Evidence], None] = lambda e: None) -> Examples:
    """Two labels a query; the first is right, or nothing is."""
    evidence = evidence_of(best)
    change(evidence)
    target = np.where(right, 2 * np.arange(len(best)), NO_MATCH)
    codes = np.where(right, 0, -1)
    each = np.arange(len(best))
    return Examples(evidence, target, codes, np.ones(len(best)), each, each, 0.3, "made", "made")


def spread(n: int = N) -> Best:
    return np.random.default_rng(0).permutation(np.linspace(0.2, 0.95, n))


def noisy(best: Best) -> NDArray[np.bool_]:
    return np.random.default_rng(1).random(len(best)) < 1 / (1 + np.exp(-12 * (best - 0.6)))


def constant(evidence: Evidence) -> None:
    evidence.features[::2], evidence.features[1::2] = 0.6, 0.5
    evidence.background[:] = 0.3


def one(value: float) -> Callable[[Evidence], None]:
    def change(evidence: Evidence) -> None:
        evidence.features[6, 0] = value

    return change


REFUSED: dict[str, tuple[Examples, str]] = {
    "too few": (made(spread(12), noisy(spread(12))), "12|at least 20|queries have their label"),
    "all right": (made(spread(), np.ones(N, np.bool_)), "always right|all have their label"),
    "all wrong": (
        replace(made(spread(), np.zeros(N, np.bool_)), codes=np.full(N, 7)),
        "never right|none have their label",
    ),
    "constant scores": (made(spread(), noisy(spread()), constant), "the same scores"),
    "NaN": (made(spread(), noisy(spread()), one(np.nan)), "not finite"),
    "infinity": (made(spread(), noisy(spread()), one(-np.inf)), "not finite"),
    "beyond 1": (made(spread(), noisy(spread()), one(1.2)), "size 1.2, beyond what a cosine"),
    "beyond -1": (made(spread(), noisy(spread()), one(-7)), "size 7, beyond what a cosine"),
}


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case: str, name: str) -> None:
    bad, said = REFUSED[case]
    with pytest.raises(CalibrationError, match=said):
        calibrate(bad, Seen(100, 2), warnings=[], calibrator=name)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_separable_queries_give_finite_numbers_and_a_warning(name: str) -> None:
    best = spread()
    found = calibrate(made(best, best > 0.6), Seen(100, 2), warnings=[], calibrator=name)
    stored = json.dumps(found.calibrator.to_json(), allow_nan=False)  # infinity would raise
    numbers = np.hstack([np.ravel(x) for x in json.loads(stored).values() if not isinstance(x, str)])
    assert np.abs(numbers).max(initial=0) < 1e4
    for logits in found.calibrator.logits(evidence_of(np.linspace(-1, 1, 41))):
        assert not np.isnan(logits).any()
        assert not np.isposinf(logits).any()
    inside = (found.held_out.probability > 0) & (found.held_out.probability < 1)
    assert inside.all()
    assert any("told apart without one error" in warning for warning in found.warnings)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_overlapping_queries_give_no_such_warning(name: str) -> None:
    best = spread()
    assert calibrate(made(best, noisy(best)), Seen(100, 2), warnings=[], calibrator=name).warnings == []


@pytest.mark.parametrize("known", [20, 49])
@pytest.mark.parametrize("name", CALIBRATORS)
def test_few_queries_fall_back_and_say_so(known: int, name: str) -> None:
    best = spread(2 * known)
    right = np.arange(2 * known) < known
    right &= noisy(best) | (best > 0)
    flipped = made(best, right)
    found = calibrate(flipped, Seen(100, 2), warnings=[], calibrator=name)
    assert found.report["calibrator"] == "platt"
    assert f"only {known} queries" in found.warnings[0]


def test_one_label_alone_cannot_be_told_from_anything() -> None:
    vectors = unit(60, 8)
    codes = np.zeros(40, np.int64)
    queries = Queries(vectors[40:], np.zeros(20, np.int64), np.full(20, -1), "made")
    with pytest.raises(CalibrationError, match="All items of the gallery have one label"):
        examples(queries, vectors[:40], codes, 1, 0.3)


@pytest.mark.parametrize("real", [0, 6])
def test_two_labels_need_real_unknown_queries_and_are_told_how_many(real: int) -> None:
    """Of two labels nothing is left once one and those around it are hidden."""
    vectors, codes = unit(100, 8), np.arange(100) % 2
    asked = np.concatenate([codes[40:80], np.full(real, -1)])
    queries = Queries(vectors[40 : 80 + real], asked, np.full(40 + real, -1), "made")
    # 40 known queries are to be 70 %, so 18 unknown ones are the other 30 %
    said = r"at least 18 with --unknown FILE" + (r" \(6 are too few\)" if real else r"\.")
    with pytest.raises(CalibrationError, match=said):
        examples(queries, vectors[:40], codes[:40], 2, 0.3)
    enough = Queries(vectors[40:98], np.where(np.arange(58) < 40, codes[40:98], -1), np.full(58, -1), "made")
    assert examples(enough, vectors[:40], codes[:40], 2, 0.3).unknowns == "18 real unknown queries"


def build(world: World, folder: Path, rows: list[Row], held: Held) -> Collection:
    build_collection(str(world.encoder), rows, folder / "c", held=held, unknown_share=0.3)
    return Collection.open(folder / "c")


CASES = ("19 known", "one label", "one text", "no query and one label")


@pytest.mark.parametrize("case", CASES)
def test_through_the_build_the_answer_carries_scores_and_the_reason(world: World, tmp_path: Path, case: str) -> None:
    rows, held = world.rows(world.items), Held(world.rows(world.held), world.rows(world.held_unknown))
    if case == "19 known":
        held = Held(held.known[:19], held.unknown)
    elif case.endswith("one label"):
        rows = [row for row in rows if row.label == "card"]
        known = [row for row in held.known if row.label == "card"]
        held = Held(known, held.unknown) if case == "one label" else Held()
    else:
        held = Held([Row("my card", "card", "q.csv", at) for at in range(60)])
    opened = build(world, tmp_path, rows, held)
    (answer,) = opened.search(["my card"], coverage=0.9)
    reason = opened.uncalibrated()
    opened.close()
    assert reason
    assert len(reason) > 40
    assert (answer.calibrated, answer.reason) == (False, reason)
    assert answer.hits[0].score > 0.5
    assert {hit.probability for hit in answer.hits} == {None}
    assert answer.labels is answer.no_match is answer.decision is answer.prediction_set is None


def test_only_known_queries_are_helped_by_imitated_unknowns_and_the_report_says_so(
    world: World, tmp_path: Path
) -> None:
    opened = build(world, tmp_path, world.rows(world.items), Held(world.rows(world.held)))
    assert opened.calibration is not None
    queries = opened.calibration.report["queries"]
    assert queries["unknown"] == 2 * queries["known"]
    assert "class-removed" in opened.calibration.report["queries"]["unknowns"]
    (answer,) = opened.search(["a song and a storm"])
    opened.close()
    assert answer.no_match is not None
    assert answer.no_match > 0.5


@pytest.mark.parametrize("part", ["known", "unknown"])
def test_measures_of_one_kind_alone_are_absent_not_zero(world: World, built: Path, part: str) -> None:
    opened = Collection.open(built)
    known, unknown = (world.rows(world.test), []) if part == "known" else ([], world.rows(world.test_unknown))
    report = evaluate(opened, known, unknown, progress=lambda *_: None)
    opened.close()
    json.dumps(report, allow_nan=False)
    assert report["auroc_known_unknown"] is report["fpr_at_95_tpr"] is None
    assert report["warnings"]
    if part == "unknown":
        assert report["auroc_right_wrong"] is None
        assert report.get("recall_at_1") is None


def test_thresholds_and_pairs_refuse_what_is_of_one_kind(built: Path) -> None:
    opened = Collection.open(built)
    assert opened.calibration is not None
    sample = opened.calibration.held_out
    opened.close()
    with pytest.raises(CalibrationError):
        from_precision(sample, 0.99999)
    with pytest.raises(CalibrationError):
        from_fpir(sample, 1e-6)
    cosine = np.linspace(0, 1, 200)
    for same in (np.ones(200, np.bool_), np.zeros(200, np.bool_)):
        with pytest.raises(CalibrationError, match="at least 50 of each"):
            cross_fitted(cosine, same, np.arange(200))


@pytest.mark.parametrize("fault", [np.nan, np.inf, 3.0, 0.0])
def test_a_query_vector_that_is_no_unit_vector_is_refused(built: Path, fault: float) -> None:
    opened = Collection.open(built)
    vector = opened.encoder.encode(["my card"])
    vector[0] = vector[0] * fault if fault in (0.0, 3.0) else fault
    with pytest.raises(DataError, match="not finite or not of norm 1"):
        opened.search_vectors(vector)
    opened.close()


def test_texts_given_as_known_and_as_unknown_are_neither(world: World, tmp_path: Path) -> None:
    known = world.rows(world.held)
    both = [replace(row, label="elsewhere") for row in known[:30]]
    held = Held(known, [*world.rows(world.held_unknown), *both])
    built = build_collection(str(world.encoder), world.rows(world.items), tmp_path / "c", held=held)
    said = " ".join(built["warnings"])
    texts = {row.text for row in both}
    twice = sum(row.text in texts for row in known)
    assert f"{twice} of {len(known)} calibration queries stand among the unknown ones too: not used." in said
    assert f"30 of {len(held.unknown)} unknown queries stand among the others too: not used." in said


def test_an_uncalibrated_collection_says_all_it_has_to_say(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [row for row in world.rows(world.items) if row.label == "card"]
    file = write_csv(tmp_path / "one.csv", [(row.text, "card") for row in items])
    build_collection(str(world.encoder), items, tmp_path / "one")
    assert cli.evaluate([str(tmp_path / "one"), str(file), "--label", "label"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "All items of the gallery have one label" in said
    assert "queries are items of the gallery" in said
    assert "--unknown FILE" not in said, "which would not help"


def test_a_reason_from_before_items_came_is_said_as_one_and_names_the_way_out(world: World, tmp_path: Path) -> None:
    items = world.rows(world.items)
    build(world, tmp_path, [row for row in items if row.label == "card"], Held()).close()
    opened = Collection.open(tmp_path / "c", writable=True)
    before, compaction = str(opened.uncalibrated()), opened.maintenance
    compaction.close()  # as where nobody serves with --writable
    assert before.startswith("All items of the gallery have one label")
    opened.upsert([NewItem(f"{at}", row.label, row.text) for at, row in enumerate(items)])
    reason = str(opened.uncalibrated())
    assert reason.startswith(f"When it was last indexed or compacted: {before} Since then {len(items)} rows of items")
    assert "surematch compact" in reason
    opened.snapshot()
    assert opened.uncalibrated() is None
    opened.close()


def test_a_collection_of_one_label_is_compacted_when_another_comes(world: World, tmp_path: Path) -> None:
    asked = world.rows(world.held)
    held = Held([row for row in asked if row.label == "card"], [row for row in asked if row.label != "card"])
    build(world, tmp_path, [row for row in world.rows(world.items) if row.label == "card"], held).close()
    opened = Collection.open(tmp_path / "c", writable=True)
    opened.upsert([NewItem("a", "card", "a chip again")])
    assert opened.maintenance._thread is None, "which changes nothing"
    opened.upsert([NewItem("b", "food", "soup and bread"), NewItem("c", "travel", "a train ticket")])
    thread = opened.maintenance._thread
    assert thread is not None
    thread.join()
    assert opened.uncalibrated() is None
    opened.close()


def test_the_reason_of_the_build_is_not_that_of_lost_snapshots(world: World, tmp_path: Path) -> None:
    items = world.rows(world.items)
    build(world, tmp_path, [row for row in items if row.label == "card"], Held()).close()
    opened = Collection.open(tmp_path / "c", writable=True)
    opened.upsert([NewItem(f"{at}", row.label, row.text) for at, row in enumerate(items)])
    opened.close()
    shutil.rmtree(tmp_path / "c" / "snapshots")
    reader = Collection.open(tmp_path / "c")
    reason = str(reader.uncalibrated())
    reader.close()
    assert "No intact snapshot" in reason
    assert "surematch compact" in reason
    assert "one label" not in reason


def test_a_refusal_says_nothing_of_a_calibration_that_there_is_not(world: World, tmp_path: Path) -> None:
    encoder = shutil.copytree(world.encoder, tmp_path / "encoder")
    np.save(encoder / "trained_rows.npy", np.zeros(1, np.uint64))
    alone = [replace(row, label=f"{row.label} {at}") for at, row in enumerate(world.rows(world.items))]
    reason = build_collection(str(encoder), alone, tmp_path / "alone")["reason"]
    assert "items cannot ask for their like" in reason
    assert "imitated" not in reason
    assert "--unknown" not in reason
    assert "one by one" not in reason
    known = build_collection(
        str(encoder), world.rows(world.items), tmp_path / "known", held=Held(world.rows(world.held))
    )
    assert any("imitated" in warning for warning in known["warnings"])
    with closing(Collection.open(tmp_path / "known", writable=True)) as opened:
        with pytest.raises(CalibrationError, match="There is feedback on 0 different queries") as refused:
            opened.recalibrate()
        assert "--unknown" not in str(refused.value)
        assert any("imitated" in warning for warning in opened.search(["my card"])[0].warnings)


def test_what_is_printed_keeps_what_was_asked() -> None:
    assert [console.percent(share) for share in (0.9, 0.925, 0.997, 0.999999, 1e-6)] == [
        "90%", "92.5%", "99.7%", "99.9999%", "0.0001%",
    ]  # fmt: skip
    assert console.at_least(0.728345) == "0.7284"
    assert console.at_least(0.5) == "0.5000"
    assert console.at_least(0.999999) == "0.999999"
    assert console.at_least(1.0) == "1.0000"
