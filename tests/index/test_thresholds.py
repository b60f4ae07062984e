"""Thresholds against brute force over every line that could be drawn, and their intervals by simulation."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from index.build import build_collection
from index.calibration.calibrate import HeldOut
from index.calibration.sources import Held
from index.calibration.thresholds import IMITATED, Threshold, from_costs, from_fpir, from_precision
from index.collection import Collection
from index.errors import CalibrationError, SettingsError
from index.verbs import cli
from tests.index.conftest import World

Floats = NDArray[np.float64]


def sample(n: int, seed: int = 0, digits: int = 9, twins: int = 1, weighted: bool = False) -> HeldOut:
    """Queries whose probabilities are true: half are unknown and less probable. Each comes `twins` times."""
    random = np.random.default_rng(seed)
    known = np.arange(n) % 2 == 0
    p = np.round(np.where(known, random.beta(5, 1, n), random.beta(1, 3, n)), digits)
    right = known & (random.random(n) < p)
    weight = random.uniform(0.5, 2, n) if weighted else np.ones(n)
    columns = (p, right, known, weight, np.zeros(n), np.arange(n), np.arange(n), weight)
    return HeldOut(*(np.repeat(column, twins) for column in columns))


def calibrated(n: int, seed: int) -> HeldOut:
    """Events that happen with their probability, known or not."""
    random = np.random.default_rng(seed)
    p = random.random(n)
    right = random.random(n) < p
    known, each = right | (random.random(n) < 0.5), np.arange(n)
    return HeldOut(p, right, known, np.ones(n), np.zeros(n), each, each, np.ones(n))


def lines(made: HeldOut) -> list[float]:
    return [*np.unique(made.probability).tolist(), 2.0]


def mean_cost(made: HeldOut, at: float, false_match: float, miss: float) -> float:
    called = made.probability >= at
    return float(false_match * (called & ~made.right).mean() + miss * (~called & made.right).mean())


@pytest.mark.parametrize("costs", [(1.0, 1.0), (10.0, 1.0), (1.0, 5.0)])
def test_costs_draw_the_line_of_least_expected_cost(costs: tuple[float, float]) -> None:
    made = calibrated(3000, seed=1)
    found = from_costs(made, *costs)
    grid = np.linspace(0, 1, 201)
    expected = [mean_cost(made, at, *costs) for at in grid]
    assert found.probability == pytest.approx(grid[int(np.argmin(expected))], abs=0.08)
    assert found.measured == pytest.approx(mean_cost(made, found.probability, *costs))
    assert found.measured <= min(expected) * 1.02, "no other line is cheaper by more than luck"
    assert found.low < found.measured < found.high


def measures(made: HeldOut, at: float) -> dict[str, float | None]:
    called, right, known = made.probability >= at, made.right, made.known

    def mass(of: NDArray[np.bool_]) -> float:
        return float(made.weight[of].sum())

    return {
        "accepted": mass(called) / mass(called | ~called),
        "precision": mass(called & right) / mass(called) if called.any() else None,
        "miss_rate": 1 - mass(called & right & known) / mass(known),
        "fpir": mass(called & ~known) / mass(~known),
    }


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("digits", [1, 9], ids=["ties", "no ties"])
@pytest.mark.parametrize("share", [0.8, 0.9, 0.95])
def test_precision_is_kept_by_the_lowest_line_that_can(share: float, digits: int, weighted: bool) -> None:
    made = sample(1000, digits=digits, weighted=weighted)
    found = from_precision(made, share)
    good = [at for at in lines(made) if (measures(made, at)["precision"] or 0) >= share - 1e-12]
    assert found.probability == min(good)
    assert found.measured >= share - 1e-12
    assert vars_of(found) == pytest.approx(measures(made, found.probability))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("digits", [1, 9], ids=["ties", "no ties"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_an_fpir_is_kept_by_the_lowest_line_that_can(share: float, digits: int, weighted: bool) -> None:
    made = sample(400, digits=digits, weighted=weighted)
    found = from_fpir(made, share)
    of_unknown = np.unique(made.probability[~made.known]).tolist()
    good = [at for at in [*of_unknown, 2.0] if (measures(made, at)["fpir"] or 0) <= share + 1e-12]
    assert found.probability == min(good) or (min(good) == 2.0 and found.probability > max(of_unknown))
    assert found.measured <= share + 1e-12
    assert vars_of(found) == pytest.approx(measures(made, found.probability))


def vars_of(found: Threshold) -> dict[str, float | None]:
    return {name: getattr(found, name) for name in ("accepted", "precision", "miss_rate", "fpir")}


def coverage(made: Any, find: Any, truth: Any, rounds: int = 300) -> float:
    inside = []
    for seed in range(rounds):
        found = find(made(seed))
        inside.append(found.low <= truth(found.probability) <= found.high)
    return float(np.mean(inside))


POPULATION = sample(400_000, seed=999)


def true_fpir(at: float) -> float:
    return float((POPULATION.probability[~POPULATION.known] >= at).mean())


def true_cost(at: float) -> float:
    p, right = POPULATION.probability, POPULATION.right
    return float(np.where(p >= at, 10.0 * ~right, 1.0 * right).mean())


@pytest.mark.parametrize("twins", [1, 3], ids=["every query once", "three examples a query"])
def test_intervals_hold_the_truth_95_times_of_100(twins: int) -> None:
    """Copies of a query must not narrow them. 4 standard errors of 300 rounds at .95 are .05."""

    def made(seed: int) -> HeldOut:
        return sample(300, seed=seed, twins=twins)

    of_fpir = coverage(made, lambda found: from_fpir(found, 0.1), true_fpir)
    assert 0.92 <= of_fpir <= 1
    of_costs = coverage(made, lambda found: from_costs(found, 10, 1), true_cost, rounds=200)
    assert 0.92 <= of_costs <= 1


def test_the_interval_of_a_cost_is_hardly_wider_than_its_mean_varies() -> None:
    found = [from_costs(sample(300, seed=seed), 10, 1) for seed in range(100)]
    width = np.mean([one.high - one.low for one in found])
    assert 1 < width / (2 * 1.96 * np.std([one.measured for one in found])) < 1.6


@pytest.mark.parametrize(("n", "share"), [(100, 0.01), (300, 0.005), (1000, 0.002)])
def test_a_cost_that_was_not_seen_is_not_taken_for_none(n: int, share: float) -> None:
    """Where one wrong match in a hundred costs most, a sample of a hundred has none as often as not."""
    held = []
    for seed in range(200):
        right, each = np.random.default_rng(seed).random(n) >= share, np.arange(n)
        found = from_costs(
            HeldOut(np.full(n, 0.99), right, each < n, np.ones(n), np.zeros(n), each, each, np.ones(n)), 50, 1
        )
        held.append(found.low <= 50 * share <= found.high)
        assert found.high > 0
    assert np.mean(held) >= 0.92


def test_twins_change_the_line_no_more_than_the_interval() -> None:
    once, thrice = sample(300), sample(300, twins=3)
    for find in (lambda made: from_precision(made, 0.9), lambda made: from_fpir(made, 0.1)):
        a, b = find(once), find(thrice)
        assert (b.probability, b.measured) == pytest.approx((a.probability, a.measured))
        assert (b.low, b.high) == pytest.approx((a.low, a.high))
    assert from_costs(thrice, 10, 1) == from_costs(once, 10, 1)


def perfect(n: int, twins: int = 1) -> HeldOut:
    """n known queries, all right and sure, and n unknown ones, all far: not a single error."""
    known = np.repeat([True, False], n)
    each = np.arange(2 * n)
    columns = (np.where(known, 0.9, 0.1), known, known, np.ones(2 * n), np.zeros(2 * n), each, each, np.ones(2 * n))
    return HeldOut(*(np.repeat(column, twins) for column in columns))


def few_for_many(seed: int, known: int = 2000, unknown: int = 50) -> HeldOut:
    """Known queries, of which few are wrong, and few unknown ones that weigh a fifth of all."""
    random, n = np.random.default_rng(seed), known + unknown
    is_known = np.arange(n) < known
    p = np.where(is_known, random.beta(8, 1, n), random.beta(1, 2, n))
    right = is_known & (random.random(n) < 0.99)
    weight = np.where(is_known, 0.8 / known, 0.2 / unknown) * n
    return HeldOut(p, right, is_known, weight, np.zeros(n), np.arange(n), np.arange(n), weight)


def test_a_precision_is_as_uncertain_as_the_few_that_stand_for_many() -> None:
    """Counted together they would be worth 1,000, and the interval so narrow that it misses the truth."""
    many, inside = few_for_many(999, 200_000, 50_000), []
    for seed in range(200):
        found = from_precision(few_for_many(seed), 0.95)
        true = measures(many, found.probability)["precision"]
        assert true is not None
        inside.append(found.low <= true <= found.high)
    assert np.mean(inside) >= 0.92


def test_a_query_and_what_imitates_an_unknown_one_from_it_are_one_in_a_precision() -> None:
    """Where a query is wrong, so is its twin, whose label was hidden. The interval held it 93 times of 100."""
    inside = []
    for seed in range(300):
        wrong = np.random.default_rng(seed).random(400) < 0.1
        known = np.repeat([True, False], 400)
        right = np.concatenate([~wrong, np.zeros(400, np.bool_)])
        p = np.where(known | np.tile(wrong, 2), 0.9, 0.1)  # of the others the twin is not called
        weight, group = np.where(known, 0.8, 0.2) * 2, np.tile(np.arange(400), 2)
        sample = HeldOut(p, right, known, weight, np.zeros(800), group, -1 - group, weight)
        found = from_precision(sample, 0.8)
        inside.append(found.low <= 0.8 * 0.9 / (0.8 + 0.2 * 0.1) <= found.high)
    assert np.mean(inside) >= 0.94


def test_what_fifty_unknown_queries_cannot_show_is_no_promise_of_precision() -> None:
    """None of the fifty called a match still lets one in twenty be; they are a fifth of what comes."""
    sample = few_for_many(0)
    sample = replace(sample, right=sample.known, probability=np.where(sample.known, 0.9, 0.1))
    with pytest.raises(
        CalibrationError, match=r"299 called matches that weigh as much as the heaviest.* are 200\. Ask fo"
    ):
        from_precision(sample, 0.99)
    with pytest.raises(CalibrationError) as refused:
        from_precision(sample, 0.999)
    said = re.search(r"precision of ([\d.]+) or less", str(refused.value))
    assert said is not None
    assert from_precision(sample, float(said[1])).low <= 0.983 < 0.985 <= float(said[1]) < 0.986


def test_what_is_said_can_be_asked_for_is_the_most_of_any_line() -> None:
    """Not of the line that the refused precision would draw, above which there may be hardly anything."""
    made = sample(1000)
    with pytest.raises(CalibrationError, match=r"Ask for a precision of .* or less") as refused:
        from_precision(made, 0.9995)
    said = re.search(r"precision of ([\d.]+) or less", str(refused.value))
    assert said is not None
    from_precision(made, float(said[1]))
    for more in np.arange(float(said[1]) + 0.001, 0.9995, 0.001):
        with pytest.raises(CalibrationError):
            from_precision(made, float(more))


@pytest.mark.parametrize("twins", [1, 4])
def test_a_promise_is_refused_one_query_short_of_what_it_takes(twins: int) -> None:
    """0.99^298 = 0.0500..., 0.99^299 = 0.0495...: 299 queries without an error bound the rate by 1 % at 95 %."""
    assert from_precision(perfect(299, twins), 0.99).measured == 1
    assert from_fpir(perfect(299, twins), 0.01).measured == 0
    with pytest.raises(CalibrationError, match=r"at least 299 called matches.* there are 298"):
        from_precision(perfect(298, twins), 0.99)
    with pytest.raises(CalibrationError, match=r"at least 299 unknown queries.* there are 298"):
        from_fpir(perfect(298, twins), 0.01)


@pytest.mark.parametrize("have", [23, 100, 298])
def test_what_a_sample_can_promise_instead_is_said_and_holds(have: int) -> None:
    for promise in (from_precision, from_fpir):
        error = 0.001
        with pytest.raises(CalibrationError, match=r"Ask for .* or (more|less), or calibrate") as refused:
            promise(perfect(have), 1 - error if promise is from_precision else error)
        said = re.search(r"Ask for an? (?:precision|FPIR) of ([\d.]+) or", str(refused.value))
        assert said is not None
        assert promise(perfect(have), float(said[1])).measured in (0, 1)


def test_that_unknown_queries_were_imitated_is_said_with_every_line(
    world: World, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_collection(str(world.encoder), world.rows(world.items), tmp_path / "c", held=Held(world.rows(world.held)))
    for line in (["--false-match-cost", "3", "--miss-cost", "1"], ["--precision", "0.8"], ["--fpir", "0.8"]):
        for collection, imitated in ((tmp_path / "c", True), (built, False)):
            assert cli.threshold([str(collection), *line, "--json"]) == 0
            assert (json.loads(capsys.readouterr().out)["assumes"] == IMITATED) == imitated


@pytest.mark.parametrize("trained", [True, False])
def test_that_unknown_queries_were_imitated_is_printed_once(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: bool
) -> None:
    encoder = shutil.copytree(world.encoder, tmp_path / "encoder")
    if trained:  # then the calibration has a warning of its own
        np.save(encoder / "trained_rows.npy", np.zeros(1, np.uint64))
    build_collection(str(encoder), world.rows(world.items), tmp_path / "c", held=Held(world.rows(world.held)))
    assert cli.threshold([str(tmp_path / "c"), "--precision", "0.8"]) == 0
    assert capsys.readouterr().out.count("imitated") == 1


def strangers(people: int, photographs: int, alike: float, seed: int = 0) -> HeldOut:
    """Known queries, and photographs of strangers; `alike`: the share of the variance of scores between strangers."""
    random = np.random.default_rng(seed)
    of = np.repeat(np.arange(people), photographs)
    score = np.sqrt(alike) * random.standard_normal(people)[of]
    score += np.sqrt(1 - alike) * random.standard_normal(len(of))
    p = np.concatenate([np.full(200, 0.9), norm.cdf(score)])
    known = np.arange(len(p)) < 200
    identity = np.concatenate([np.arange(200) % 20, 20 + of])
    weight, each = np.ones(len(p)), np.arange(len(p))
    return HeldOut(p, known, known, weight, np.zeros(len(p)), each, identity, weight)


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.95])
def test_many_photographs_of_few_strangers_promise_what_few_strangers_can(alike: float) -> None:
    """The interval holds the rate that new strangers show; counting photographs it would be too narrow."""
    inside, narrow = [], []
    for seed in range(200):
        found = from_fpir(strangers(60, 10, alike, seed), 0.2)
        true = 1 - found.probability  # P(norm.cdf(score) >= line), scores are standard normal
        inside.append(found.low <= true <= found.high)
        plain = strangers(60, 10, alike, seed)
        plain = replace(plain, identity=plain.group)
        counted = from_fpir(plain, 0.2)
        narrow.append(counted.low <= true <= counted.high)
    assert np.mean(inside) >= 0.92
    if alike:
        assert np.mean(narrow) < np.mean(inside)


def test_one_label_for_everything_else_is_no_stranger_and_that_is_said() -> None:
    sample = strangers(300, 1, 0.0)
    assert from_fpir(sample, 0.05).assumes is None
    one_label = replace(sample, identity=np.where(sample.known, sample.identity, 999))
    found = from_fpir(one_label, 0.05)
    assert found.assumes is not None
    assert "each counts as a stranger of its own" in found.assumes
    assert replace(found, assumes=None) == from_fpir(sample, 0.05)


def test_strangers_without_a_label_beside_one_label_for_everything_else_add_to_the_promise() -> None:
    """ "out of scope" by the file, and what users said was nothing of the gallery: more queries never promise less."""
    sample = strangers(300, 1, 0.0)
    unknown = np.flatnonzero(~sample.known)
    identity = np.where(sample.known, sample.identity, -1 - np.arange(len(sample.known)))
    without = identity.copy()
    identity[unknown[:150]] = 999
    found = from_fpir(replace(sample, identity=identity), 0.05)
    assert found.assumes is not None
    assert replace(found, assumes=None) == from_fpir(sample, 0.05)
    without[unknown[:2]] = 999  # two photographs of one stranger among many
    assert from_fpir(replace(sample, identity=without), 0.05).assumes is None
    named = sample.identity.copy()  # others have labels, too: the one is no word for everything else
    named[unknown[:150]] = 999
    with pytest.raises(CalibrationError, match="cannot support an FPIR of"):
        from_fpir(replace(sample, identity=named), 0.05)


def test_twelve_strangers_cannot_promise_five_percent() -> None:
    assert from_fpir(strangers(100, 10, 0.9), 0.05).measured <= 0.05
    with pytest.raises(CalibrationError, match=r"at least 59 unknown queries .*\(240 in all\).* there are 1\d\."):
        from_fpir(strangers(12, 20, 0.9), 0.05)


@pytest.mark.parametrize("alike", [0.1, 0.3])
def test_two_strangers_are_two_however_many_photographs(alike: float) -> None:
    """How alike a stranger's photographs are cannot be told from those of two: a promise is the exception, 5 in 100."""
    granted = 0
    for seed in range(60):
        with contextlib.suppress(CalibrationError):
            granted += from_fpir(strangers(2, 500, alike, seed), 0.05).measured <= 0.05
    assert granted <= 8


def test_a_promise_out_of_reach_is_refused() -> None:
    made = sample(400)
    wrong = replace(made, right=made.right & False)
    with pytest.raises(CalibrationError, match="No threshold reaches a precision of"):
        from_precision(wrong, 0.9)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_shares_outside_the_open_interval_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="precision must lie"):
        from_precision(sample(100), share)
    with pytest.raises(ValueError, match="fpir must lie"):
        from_fpir(sample(100), share)


@pytest.mark.parametrize("costs", [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_costs_that_are_none_are_refused(costs: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="costs must be positive"):
        from_costs(sample(100), *costs)


def test_the_verb(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.threshold([str(built), "--false-match-cost", "3", "--miss-cost", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["probability"], found["promised"]) == (0.75, "mean cost of a query")
    assert cli.threshold([str(built), "--fpir", "0.8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fpir"] <= 0.8
    with contextlib.closing(Collection.open(built)) as opened:
        (answer,), id = opened.search(["my card"]), opened.state.calibration_id
    assert found["calibration_id"] == id
    assert found["warnings"] == answer.warnings != [], "what holds for a probability holds for a line drawn through it"
    assert cli.threshold([str(built), "--precision", "0.9"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Call the first hit a match when its probability is at least" in said
    assert f"It is a line of calibration {id}: draw it again after a compaction or a recalibration." in said
    assert cli.threshold([str(built), "--false-match-cost", "1e9", "--miss-cost", "1e-9"]) == 0
    assert "No query is called a match; 100.00% of known queries are missed" in " ".join(
        capsys.readouterr().out.split()
    )
    with pytest.raises(CalibrationError, match="cannot support an FPIR"):
        cli.threshold([str(built), "--fpir", "0.1"])  # its strangers are of two labels


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "Give one of"),
        (["--precision", "0.9", "--fpir", "0.1"], "Give one of"),
        (["--precision", "0.9", "--false-match-cost", "1", "--miss-cost", "1"], "Give one of"),
        (["--fpir", "0.1", "--miss-cost", "1"], "Give one of"),
        (["--miss-cost", "1"], "belong together"),
        (["--false-match-cost", "1"], "belong together"),
        (["--precision", "1"], "precision"),
        (["--fpir", "0"], "fpir"),
        (["--false-match-cost", "-1", "--miss-cost", "1"], "false-match-cost"),
    ],
)
def test_wrong_flags_are_said(built: Path, flags: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        cli.threshold([str(built), *flags])


def test_no_threshold_without_a_calibration(world: World, tmp_path: Path) -> None:
    out = tmp_path / "uncalibrated"
    few = tmp_path / "few.csv"
    few.write_text("text,label\nbank card,card\n")
    words = [str(world.encoder), str(world.items), "--label", "label", "--out", str(out), "--calibrate", str(few)]
    assert cli.index([*words, "--json"]) == 0
    opened = Collection.open(out)
    opened.close()
    assert opened.calibration is None
    with pytest.raises(CalibrationError, match="no threshold without a calibration"):
        cli.threshold([str(out), "--precision", "0.9"])
