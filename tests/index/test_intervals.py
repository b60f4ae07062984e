"""How often the report's intervals hold the truth, on queries whose probabilities and outcomes are known."""

from __future__ import annotations

import numpy as np
import pytest

from index.metrics import LEAST_KIND, Floats, ece, intervals, report

Drawn = tuple[Floats, Floats, np.ndarray, np.ndarray, Floats]


def draw(known: int, unknown: int, seed: int) -> Drawn:
    """Probability, no match, right, known and weight of so many queries, of which unknown ones weigh a fifth."""
    random = np.random.default_rng(seed)
    of_known, of_unknown = random.normal(2.5, 1.6, known), random.normal(-1.5, 1.4, unknown)
    p = 1 / (1 + np.exp(-np.concatenate([of_known, of_unknown])))
    right = np.concatenate(
        [random.random(known) < 1 / (1 + np.exp(-0.8 * of_known - 0.5)), np.zeros(unknown, np.bool_)]
    )
    there = np.arange(known + unknown) < known
    weight = np.where(there, 0.8 / known, 0.2 / unknown) * (known + unknown)
    return p, 1 - p * random.uniform(0.9, 1, known + unknown), right, there, weight


@pytest.mark.parametrize(("slope", "least"), [(1.0, 0.9), (1.2, 0.85), (0.6, 0.85)])
@pytest.mark.parametrize("n", [60, 300])
def test_the_lower_end_of_an_ece_is_above_the_truth_no_more_often_than_it_says(
    n: int, slope: float, least: float
) -> None:
    """With slope 1 the probabilities are true, and nothing above 0 would be."""

    def asked(count: int, seed: int) -> tuple[Floats, np.ndarray]:
        random = np.random.default_rng(seed)
        logit = random.normal(1.5, 1.8, count)
        return 1 / (1 + np.exp(-logit)), random.random(count) < 1 / (1 + np.exp(-slope * logit))

    p, right = asked(400_000, 99)
    truth = 0.0 if slope == 1 else ece(p, right)
    held = []
    for seed in range(60):
        p, right = asked(n, seed)
        low, high = intervals(p, 1 - p, right, right, seed=seed)["ece"]
        held.append(low <= truth)
        assert low <= ece(p, right) <= high
    assert np.mean(held) >= least


def test_intervals_of_how_well_kinds_are_told_apart_hold() -> None:
    """Of 80 rounds at .95 four standard errors are .10; the reflected ones of before held .84, .85 and .71."""
    truth = report(*draw(300_000, 300_000, 999))
    names = ("auroc_known_unknown", "auroc_right_wrong", "fpr_at_95_tpr", "nll")
    held: dict[str, list[bool]] = {name: [] for name in names}
    for seed in range(80):
        found = intervals(*draw(100, 25, seed), seed=seed)
        for name in names:
            low, high = found[name]
            held[name].append(low <= (truth[name] or 0) <= high)
    assert {name: np.mean(inside) >= 0.85 for name, inside in held.items()} == dict.fromkeys(names, True)


def test_too_few_of_a_kind_have_none() -> None:
    for unknown in (LEAST_KIND - 1, LEAST_KIND):
        found = intervals(*draw(200, unknown, 0))
        assert ("auroc_known_unknown" in found) == ("fpr_at_95_tpr" in found) == (unknown == LEAST_KIND)
        assert {"ece", "nll", "brier", "auroc_right_wrong"} <= set(found)  # of the known some are wrong, too
    p, no_match, right, known, weight = draw(200, LEAST_KIND, 0)
    group = np.concatenate([np.arange(200), np.full(LEAST_KIND, 200)])  # one query, asked so often
    assert "auroc_known_unknown" not in intervals(p, no_match, right, known, weight, group)


def test_what_is_told_apart_without_an_error_is_not_certain() -> None:
    p = np.where(np.arange(80) < 40, 0.9, 0.1)
    found = intervals(p, 1 - p, p > 0.5, p > 0.5)
    assert found["auroc_known_unknown"][1] == 1
    assert 0.9 < found["auroc_known_unknown"][0] < 1
