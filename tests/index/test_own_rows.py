"""Which of the gallery's rows ask when no queries are given: not those trained on, all copies of a text together, and
never so many of a label that what is left of it looks unlike what queries will meet."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import index.calibration.own_rows as own
from index.calibration.examples import NEAR_COPY, Queries, examples
from index.calibration.own_rows import own_rows
from index.errors import CalibrationError
from index.items.gallery import Gallery
from index.items.store import NO_CONTENT

NONE = Queries(np.empty((0, 2), np.float32), np.empty(0, np.int64), np.empty(0, np.int64), "")


def asking(labels: list[str | None], keys: list[int], trained: list[int], seed: int = 0) -> Queries:
    vectors = np.tile(np.array([1, 0], np.float32), (len(labels), 1))
    gallery = Gallery.of(np.arange(len(labels)), labels, vectors)
    return own_rows(NONE, np.array(keys, np.uint64), vectors, gallery, np.array(sorted(trained), np.uint64), seed)


ROWS = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(1, 12)), min_size=1, max_size=60)


@given(ROWS, st.sets(st.integers(1, 12), min_size=1), st.integers(0, 3))
def test_of_a_label_a_third_asks_at_most_and_a_text_with_all_its_copies(
    rows: list[tuple[str | None, int]], trained: set[int], seed: int
) -> None:
    labels, keys = [label for label, _ in rows], [key for _, key in rows]
    fresh = [at for at, (label, key) in enumerate(rows) if label is not None and key not in trained]
    try:
        found = asking(labels, keys, list(trained), seed)
    except CalibrationError:
        found = NONE
    picked = found.rows.tolist()
    if found.leave_one_out:
        assert picked == fresh
        return
    assert len(picked) >= 20 or len(fresh) < 20
    have = Counter(labels)
    asked = Counter(labels[at] for at in picked)
    assert all(label is not None and have[label] > 1 and n <= max(1, have[label] // 3) for label, n in asked.items())
    assert not {keys[at] for at in picked} & trained
    assert len(picked) == len(set(picked))
    for key in {keys[at] for at in picked}:
        copies = [at for at, row in enumerate(rows) if row[1] == key and row[0] is not None]
        assert set(copies) <= set(picked)
    # none that could ask does not: a text stays back only where one of its labels has no room for it
    for key in set(keys) - trained - {keys[at] for at in picked}:
        wanted = Counter(label for label, its in rows if its == key and label is not None)
        room = {label: max(1, have[label] // 3) if have[label] > 1 else 0 for label in wanted}
        assert not wanted or any(asked[label] + n > room[label] for label, n in wanted.items())


def test_labels_that_were_not_trained_show_most_of_their_items() -> None:
    labels = [label for label in "abcdefghij" for _ in range(20)]
    found = asking([*labels], list(range(1, 201)), trained=[7_000])
    assert Counter(found.codes.tolist()) == dict.fromkeys(range(10), 6)
    assert (found.source, found.leave_one_out) == ("rows held out of training", False)


@pytest.mark.parametrize(
    ("labels", "items", "trained", "asked", "left_out"),
    [
        (20, 9, 0, 60, False),
        (10, 9, 0, 90, True),  # a third is 30, fewer than the default calibrator needs
        (8, 9, 5, 24, False),  # nor would the 32 that were not trained be enough for it
        (4, 6, 0, 24, True),  # a third is 8, too few for any
        (4, 6, 3, 8, False),
    ],
)
def test_where_a_third_is_too_few_all_that_were_not_trained_ask(
    labels: int, items: int, trained: int, asked: int, left_out: bool
) -> None:
    names = [str(label) for label in range(labels) for _ in range(items)]
    seen = [at + 1 for at in range(len(names)) if at % items < trained]
    found = asking([*names], list(range(1, len(names) + 1)), seen or [7_000])
    assert (len(found.rows), found.leave_one_out) == (asked, left_out)
    assert found.source.startswith("the gallery's own items" if left_out else "rows held out of training")


def test_what_was_held_out_of_training_asks_as_before() -> None:
    """Of twenty items a label three were held out: all of them ask, whatever the seed."""
    labels = [label for label in "abcde" for _ in range(20)]
    held = [at for at in range(100) if at % 20 < 3]
    for seed in range(3):
        found = asking([*labels], list(range(1, 101)), [at + 1 for at in range(100) if at not in held], seed)
        assert found.rows.tolist() == held


def test_so_many_ask_as_can_be_afforded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "MAX_QUERIES", 400)
    found = asking([str(at // 30) for at in range(3000)], list(range(1, 3001)), trained=[7_000])
    assert (len(found.rows), found.leave_one_out) == (400, False)


HUNDRED = [str(label) for label in range(20) for _ in range(5)]


def drawn_together(labels: int, items: int, apart: float, seed: int = 0) -> np.ndarray:
    """Unit vectors (labels * items, 32), so many of a label after another, that lie `apart` around their label's."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(labels, 32)).repeat(items, axis=0)
    found = centres + apart * random.normal(size=centres.shape)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_what_training_drew_together_is_found_as_easily_as_queries_are() -> None:
    """An encoder of pictures sets most pictures of a person nearer than copies of a text: they are no copies."""
    x, queries = drawn_together(20, 5, 0.2), drawn_together(20, 5, 0.2, seed=1)
    gallery, given = Gallery.of(np.arange(100), HUNDRED, x), replace(NONE, vectors=x[:0])
    found = own_rows(given, np.arange(1, 101, dtype=np.uint64), x, gallery, np.array([7_000], np.uint64), 0)
    assert found.leave_one_out
    known = examples(found, x, gallery.codes, 20, 0.2).evidence
    best = known.features[known.starts[:100], 0]
    in_use = (queries @ x.T).max(axis=1)
    assert abs(np.median(best) - np.median(in_use)) < 0.01  # where all from .92 on were hidden, .05


def test_a_copy_is_what_few_pairs_of_a_label_come_near_to() -> None:
    keys, trained = np.arange(1, 101, dtype=np.uint64), np.array([7_000], np.uint64)

    def near_copy(x: np.ndarray, trained: np.ndarray) -> float:
        gallery = Gallery.of(np.arange(100), HUNDRED, x)
        return own_rows(replace(NONE, vectors=x[:0]), keys, x, gallery, trained, 0).near_copy

    close, wide = drawn_together(20, 5, 0.2), drawn_together(20, 5, 0.8)
    assert near_copy(close, trained) > 0.96
    assert near_copy(close, trained[:0]) == NEAR_COPY  # to an encoder that was not trained
    assert near_copy(wide, trained) == NEAR_COPY
    wide[1::5] = wide[::5]  # of ten pairs of a label one is the same text twice
    assert near_copy(wide, trained) == NEAR_COPY


def test_why_none_can_ask_is_said() -> None:
    with pytest.raises(CalibrationError, match="their labels have no other item, or copies of one text"):
        asking(["a", "b", "c", "c"], [1, 2, 3, 3], [9])
    with pytest.raises(CalibrationError, match=r"^Every row of the gallery was used to train the encoder, so"):
        asking(["a", "a"], [1, 2], [1, 2])


def test_an_item_of_which_only_the_vector_is_known_does_not_ask() -> None:
    found = asking(["a", "a", "a", "b", "b", "b"], [1, NO_CONTENT, 2, NO_CONTENT, NO_CONTENT, 3], [9])
    assert set(found.rows.tolist()) <= {0, 2, 5}
    with pytest.raises(CalibrationError, match="of some only the vector is known"):
        asking(["a", "a"], [NO_CONTENT, NO_CONTENT], [9])
