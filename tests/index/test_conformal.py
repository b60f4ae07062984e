"""Coverage promised to known and unknown queries apart, and of examples that come several from one query."""

from __future__ import annotations

import json
import shutil
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from index.build import build_collection
from index.calibration.calibrate import Calibration, HeldOut
from index.calibration.conditional_logit import ConditionalLogit
from index.calibration.conformal import Kind, most, threshold
from index.calibration.sources import Held
from index.calibration.staleness import Seen
from index.calibration.worth import Worth
from index.collection import Collection
from index.data.rows import Row, text_key
from index.errors import CalibrationError, DataError
from index.evaluate import evaluate
from index.verbs import cli
from tests.index.conftest import World

Floats = NDArray[np.float64]


def scores(known: NDArray[np.bool_], random: np.random.Generator) -> Floats:
    """Unknown queries' truths conform much worse."""
    drawn: Floats = random.exponential(size=len(known)) * np.where(known, 1.0, 4.0)
    return drawn


def calibration(n: int, random: np.random.Generator) -> Calibration:
    known = np.arange(n) % 4 > 0
    truth = scores(known, random)
    held = HeldOut(np.full(n, 0.5), known, known, np.ones(n), truth, np.arange(n), np.arange(n), np.ones(n))
    some = ConditionalLogit((1, 1, 1, 1, 1), 0, 0, (0, 0, 0, 0, 0), 0)
    return Calibration(some, {"softmax": 1.0}, held, held.worth(), Seen(100, 10), {})


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_apart_means_apart_where_mixed_means_only_mixed(coverage: float) -> None:
    random = np.random.default_rng(0)
    kinds = np.array([False, True, True, True])
    inside = {"mixed": [], "known-unknown": []}  # type: dict[str, list[NDArray[np.bool_]]]
    for _ in range(1500):
        made, asked = calibration(80, random), scores(kinds, random)
        for kind, covered in inside.items():
            of_no_match, of_labels = made.set_thresholds(coverage, kind)  # type: ignore[arg-type]
            covered.append(asked <= np.where(kinds, of_labels, of_no_match))
    mixed, apart = (np.mean(covered, axis=0) for covered in inside.values())
    # of n queries the ceil((n + 1) coverage)-th is the line, so the coverage is exactly that share of n + 1
    for known, n in ((True, 60), (False, 20)):
        exact = np.ceil((n + 1) * coverage - 1e-9) / (n + 1)
        assert apart[kinds == known].mean() == pytest.approx(exact, abs=0.035)
    assert mixed.mean() == pytest.approx(np.ceil(81 * coverage - 1e-9) / 81, abs=0.02)
    assert mixed[0] < coverage - 0.1, "unknowns pay for the mix"
    assert mixed[1:].mean() > coverage + 0.02


def test_a_side_that_is_too_small_is_refused_by_name() -> None:
    made = calibration(40, np.random.default_rng(0))
    made.set_thresholds(0.95)
    with pytest.raises(CalibrationError, match=r"the 10 unknown calibration queries support at most 0\.9090"):
        made.set_thresholds(0.95, "known-unknown")
    known = made.held_out.known
    only = HeldOut(*(getattr(made.held_out, name)[known] for name in HeldOut.__dataclass_fields__))
    made = replace(made, held_out=only, worth=only.worth())
    with pytest.raises(CalibrationError, match="the 0 unknown calibration queries support at most 0"):
        made.set_thresholds(0.5, "known-unknown")


def test_examples_of_one_query_are_corrected_for_as_one() -> None:
    random = np.random.default_rng(1)
    once, group = random.permutation(19) / 2, np.arange(19)
    thrice, groups, ones = np.repeat(once, 3), np.repeat(group, 3), np.ones(57)
    for coverage in (0.5, 0.9, 0.95):
        assert threshold([Kind.of(thrice, ones, groups)], coverage) == threshold([Kind.of(once, np.ones(19))], coverage)
    assert threshold([Kind.of(thrice, ones)], 0.96) == 9.0, "57 queries would support it"
    with pytest.raises(CalibrationError, match=r"the 19 calibration queries support at most 0\.9500"):
        threshold([Kind.of(thrice, ones, groups)], 0.96)
    assert most([Kind.of(thrice, ones, groups)]) == pytest.approx(0.95)
    assert most([Kind.of(np.where(thrice == 9, np.inf, thrice), ones, groups)]) == pytest.approx(0.9)


def test_a_coverage_just_out_of_reach_is_not_promised_by_the_samples_that_look_good() -> None:
    """Of 89 in 100 the truth can be in a set; half of the samples show 90 or more."""
    random, granted = np.random.default_rng(3), {True: 0, False: 0}
    for _ in range(400):
        drawn = np.where(random.random(200) < 0.89, random.exponential(size=200), np.inf)
        found = [Kind.of(drawn, np.ones(200))]
        for capped in granted:
            with suppress(CalibrationError):
                threshold(found, 0.9, capped=capped)
                granted[capped] += 1
            best = most(found, capped=capped)
            assert threshold(found, best, capped=capped) < np.inf, "what it can promise it does"
    assert granted[False] > 100
    assert granted[True] <= 20


@pytest.mark.parametrize("calibrator", ["platt", "isotonic", "conditional-logit"])
def test_calibrators_of_the_first_label_alone_promise_what_they_surely_keep(
    world: World, tmp_path: Path, calibrator: str
) -> None:
    held = Held(world.rows(world.held), world.rows(world.held_unknown))
    build_collection(str(world.encoder), world.rows(world.items), tmp_path / "c", held=held, calibrator=calibrator)
    with closing(Collection.open(tmp_path / "c")) as collection:
        assert collection.calibration
        made = collection.calibration
    sample = made.held_out
    sample.nonconformity[::10] = np.inf  # of these the truth is not named
    plain, capped = (most(sample.kinds(made.worth), capped=how) for how in (False, True))
    assert capped < plain
    best = plain if calibrator == "conditional-logit" else capped
    made.set_thresholds(best)
    help = "or calibrate with more" if calibrator == "conditional-logit" else "or index with --calibrator conditional"
    with pytest.raises(CalibrationError, match=f"support at most {np.floor(best * 1e4) / 1e4:.4f}.*{help}"):
        made.set_thresholds(best + 1e-3)


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_twins_of_a_query_still_cover(coverage: float) -> None:
    """New queries are drawn like one member of a group whose members are alike."""
    random = np.random.default_rng(2)
    covered = []
    for _ in range(1500):
        centre = random.exponential(size=31)
        drawn = centre[:, None] * random.uniform(0.9, 1.1, (31, 3))
        cut = threshold([Kind.of(drawn[:-1].ravel(), np.ones(90), np.repeat(np.arange(30), 3))], coverage)
        covered.append(drawn[-1, 0] <= cut)
    assert coverage - 0.03 <= np.mean(covered) <= coverage + 0.06


@pytest.fixture(scope="module")
def apart(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection whose unknown queries are strangers of their own each: none says whose it is."""
    out = tmp_path_factory.mktemp("apart") / "topics"
    strangers = [replace(row, label=None) for row in world.rows(world.held_unknown)]
    build_collection(
        str(world.encoder),
        world.rows(world.items),
        out,
        held=Held(world.rows(world.held), strangers),
        unknown_share=0.4,
    )
    return out


def test_sets_for_unknown_queries_apart_count_strangers_not_their_queries(built: Path, apart: Path) -> None:
    """A promise about strangers rests on how many there were: 57 queries of two labels are two."""
    with closing(Collection.open(built)) as two, closing(Collection.open(apart)) as many:
        assert two.calibration
        assert many.calibration
        assert two.calibration.set_thresholds(0.95) == many.calibration.set_thresholds(0.95)
        many.calibration.set_thresholds(0.95, "known-unknown")
        with pytest.raises(CalibrationError, match=r"the 57 unknown are worth 2.*give unknown queries of more labels"):
            two.calibration.set_thresholds(0.7, "known-unknown")


def test_one_label_that_was_hidden_is_no_word_for_everything_else() -> None:
    known, group = np.repeat([True, False], 100), np.tile(np.arange(100), 2)
    one = Worth.of(np.zeros(200), np.ones(200), group, np.zeros(200, np.int64), known)
    assert (one.known, one.unknown, one.strangers) == (100, 1, 1)
    asked = Worth.of(np.zeros(200), np.ones(200), np.arange(200), np.where(known, 0, 7), known)
    assert (asked.known, asked.unknown, asked.strangers) == (100, 100, 100)


@pytest.mark.parametrize("alike", [0.0, 0.6])
def test_sets_hold_for_the_next_stranger_however_many_queries_the_last_ones_had(alike: float) -> None:
    random, covered = np.random.default_rng(4), []
    of, known = np.repeat(np.arange(30), 20), np.arange(700) >= 600
    for _ in range(600):
        stranger = random.normal(size=31)
        drawn = np.sqrt(alike) * stranger[np.append(of, 30)] + np.sqrt(1 - alike) * random.normal(size=601)
        scores = np.append(drawn[:-1], np.zeros(100))
        identity = np.append(of + 10, np.arange(100) % 10)
        held = HeldOut(known * 1.0, known, known, np.ones(700), scores, np.arange(700), identity, np.ones(700))
        _, unknown = held.kinds(held.worth(), apart=True)
        covered.append(drawn[-1] <= threshold([unknown], 0.9))
    assert 0.88 <= np.mean(covered) <= 0.98


def test_a_mix_promises_no_more_than_the_few_that_stand_for_many() -> None:
    """Fifty unknown queries are a fifth of what will come; as 4,050 of one kind they would promise 99.9 %, and miss it
    four times as often."""
    random, covered = np.random.default_rng(5), []
    for _ in range(300):
        known, unknown = np.zeros(4000), random.exponential(size=50)
        mix = [Kind.of(known, np.full(4000, 0.8 / 4000)), Kind.of(unknown, np.full(50, 0.2 / 50))]
        covered.append(0.8 + 0.2 * -np.expm1(-threshold(mix, 0.99)))
    assert np.mean(covered) >= 0.99 - 0.0005
    assert most(mix) == pytest.approx(0.8 * 4000 / 4001 + 0.2 * 50 / 51)
    with pytest.raises(CalibrationError, match=r"support at most 0\.9958"):
        threshold(mix, 0.998)


def test_sets_of_a_collection_cover_knowns_and_unknowns_apart(apart: Path, world: World) -> None:
    collection = Collection.open(apart)
    for file, name in ((world.test, "known"), (world.test_unknown, "unknown")):
        rows = world.rows(file)
        answers = collection.search([row.text for row in rows], coverage=0.9, coverage_for="known-unknown")
        inside = []
        for row, answer in zip(rows, answers, strict=True):
            labels = {entry.label for entry in answer.prediction_set or []}
            inside.append(row.label in labels if name == "known" else bool(answer.set_has_no_match))
        assert np.mean(inside) > 0.8, name
    with pytest.raises(DataError, match="coverage_for must be one of mixed, known-unknown, got 'all'"):
        collection.search(["card"], coverage=0.9, coverage_for="all")  # type: ignore[arg-type]
    collection.close()


def test_the_verbs_know_both_promises(apart: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(apart), "bank card", "--json", "--coverage", "0.9"]
    assert cli.search([*words, "--coverage-for", "known-unknown"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert answer["coverage"] == 0.9
    assert [entry["label"] for entry in answer["prediction_set"]] == ["card"]
    words = [str(apart), str(world.test), "--unknown", str(world.test_unknown), "--label", "label"]
    assert cli.evaluate([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    for variant in ("sets", "sets_known_unknown"):
        (first, *_) = report[variant]
        assert first["coverage"] == 0.9
        # 90 known and 60 unknown queries
        assert first["measured"] == pytest.approx((90 * first["known"] + 60 * first["unknown"]) / 150)
    assert cli.evaluate(words) == 0
    assert "90% sets for known and unknown apart: held the truth" in " ".join(capsys.readouterr().out.split())


def test_an_evaluation_says_when_sets_hold_less_than_they_promise(apart: Path, world: World) -> None:
    """Of queries like those of the calibration it says nothing; of others, which kind is another."""
    known, unknown = world.rows(world.test), world.rows(world.test_unknown)
    collection = Collection.open(apart)

    def told(known: list[Row], unknown: list[Row]) -> str:
        report = evaluate(collection, known, unknown, progress=lambda *_: None)
        return " ".join(warning for warning in report["warnings"] if "Sets that promise" in warning)

    assert told(known, unknown) == told(known, []) == told([], unknown) == ""
    random = np.random.default_rng(0)
    for size in (1, 2, 5, 10, 20) * 8:
        some = [[rows[at] for at in random.permutation(len(rows))[:size]] for rows in (known, unknown)]
        assert told(*some) == ""
    disguised = [replace(row, text=f"{row.text} {other.text}") for row, other in zip(known, unknown * 2, strict=False)]
    assert "of these known queries: they are not like" in told(disguised, unknown)
    near = [replace(row, label="else") for row in known]
    assert "of these unknown queries: they are not like" in told(known, near)
    collection.close()


def test_a_coverage_that_no_number_of_queries_would_reach_says_so() -> None:
    found = [Kind.of(np.where(np.arange(1000) % 5 == 0, np.inf, 0.5), np.ones(1000))]
    with pytest.raises(
        CalibrationError,
        match=r"at most 0\.7992\. Of 20\.0% the right label is none that is named\. More queries",
    ):
        threshold(found, 0.9)
    with pytest.raises(CalibrationError, match=r"at most 0\.7992\. Ask for less, or calibrate with more queries"):
        threshold(found, 0.7995)


@pytest.mark.parametrize(
    ("calibrator", "queries", "said"),
    [
        (
            "conditional-logit",
            100,
            r"not among the 100 nearest items, and more queries would not help\. Ask for less\.$",
        ),
        ("temperature", 100, r"not among the 100 nearest items, and"),
        ("platt", 100, r"platt names the first hit's alone\. Ask for less, or index with --calibrator conditional-log"),
        (
            "conditional-logit",
            30,
            r"platt names the first hit's alone\. Ask for less, or give at least 50",
        ),
    ],
)
def test_what_helps_a_coverage_that_cannot_be_promised_is_said(
    world: World, tmp_path: Path, calibrator: str, queries: int, said: str
) -> None:
    encoder = shutil.copytree(world.encoder, tmp_path / "encoder")  # one that was trained: its items are no prior
    np.save(encoder / "trained_rows.npy", np.array([text_key(row.text) for row in world.rows(world.items)], np.uint64))
    held = Held(world.rows(world.held)[:: 100 // queries])
    build_collection(str(encoder), world.rows(world.items), tmp_path / "c", held=held, calibrator=calibrator)
    with closing(Collection.open(tmp_path / "c")) as collection:
        assert collection.calibration
        scores = collection.calibration.held_out.nonconformity
        scores[: len(scores) // 2] = np.inf  # of half the truth is not named
        with pytest.raises(CalibrationError, match=said):
            collection.calibration.set_thresholds(0.9)


def test_hits_that_the_calibrator_does_not_speak_of_have_no_probability(world: World, tmp_path: Path) -> None:
    held = Held(world.rows(world.held), world.rows(world.held_unknown))
    out = tmp_path / "platt"
    build_collection(str(world.encoder), world.rows(world.items), out, held=held, calibrator="platt")
    with closing(Collection.open(out)) as collection:
        answers = collection.search([row.text for row in world.rows(world.test)], k=100)
    others = 0
    for answer in answers:
        assert answer.no_match is not None
        first = answer.hits[0]
        assert first.probability == pytest.approx(1 - answer.no_match)
        for hit in answer.hits:
            assert hit.probability == (first.probability if hit.label == first.label else None)
            others += hit.label != first.label
    assert others > 0


@pytest.mark.parametrize(
    ("known", "unknown", "said"),
    [
        (90, 0, "no further off than by chance. Add unknown ones with --unknown FILE"),
        (10, 60, "no further off than by chance. Add known ones, or index"),
    ],
)
def test_another_share_of_unknown_queries_is_said_with_what_would_mend_it(
    world: World, built: Path, known: int, unknown: int, said: str
) -> None:
    with closing(Collection.open(built)) as collection:
        asked = world.rows(world.test)[:known], world.rows(world.test_unknown)[:unknown]
        report = evaluate(collection, *asked, progress=lambda what, done, of: None)
        other = evaluate(collection, *asked, map="taylor", progress=lambda what, done, of: None)
    assert any(said in warning for warning in report["warnings"])
    assert "On average they said" not in " ".join(other["warnings"]), "which the map may be the reason of"


def test_which_way_another_mix_takes_the_probabilities_is_measured_and_surest_answers_that_are_wrong_are_told(
    world: World, built: Path
) -> None:
    known, strange = world.rows(world.test)[:90], world.rows(world.test_unknown)
    mislabelled = [replace(row, label=known[at - 7].label) for at, row in enumerate(known)]
    with closing(Collection.open(built)) as collection:
        nearest = [answer.hits[0].label for answer in collection.search([row.text for row in strange], k=1)]
        found = [replace(row, label=label) for row, label in zip(strange, nearest, strict=True)]
        right, wrong, unsure = (
            " ".join(evaluate(collection, rows, [], progress=lambda what, done, of: None)["warnings"])
            for rows in (known, mislabelled, found)
        )
    assert "surest fifth" not in right
    assert "too high here" in wrong
    assert "Of the surest fifth of these answers" in wrong
    assert "too low here" in unsure
    assert "surest fifth" not in unsure
