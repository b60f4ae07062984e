from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.data.rows import Row, text_key
from index.errors import DataError
from training.data.rows import check_classes, data_fingerprint, split_rows, trained_row_keys


def rows_of(pairs: list[tuple[str, str]]) -> list[Row]:
    return [Row(text, label, "rows.csv", line) for line, (text, label) in enumerate(pairs, 2)]


def balanced(classes: int, each: int) -> list[Row]:
    return rows_of([(f"text {i} of {c}", f"class {c}") for c in range(classes) for i in range(each)])


def test_a_single_class_is_refused_by_file_line_and_remedy() -> None:
    with pytest.raises(DataError, match=r"rows\.csv: every row has the label 'only', from line 2 on\..*--label"):
        check_classes(rows_of([("a", "only"), ("b", "only")]))


def test_nothing_left_is_said() -> None:
    with pytest.raises(DataError, match="Nothing is left to train on"):
        check_classes([])


def test_labels_come_back_sorted() -> None:
    assert check_classes(rows_of([("a", "z"), ("b", "a"), ("c", "z"), ("d", "a")])) == ["a", "z"]


def test_the_split_takes_the_share_of_every_class() -> None:
    rows = balanced(classes=5, each=20)
    split = split_rows(rows, 0.15, seed=0)
    assert Counter(rows[at].label for at in split.held_out) == {f"class {c}": 3 for c in range(5)}
    assert sorted([*split.train, *split.held_out]) == list(range(100))


def test_the_seed_decides_the_split() -> None:
    rows = balanced(classes=3, each=20)
    first, again, other = (split_rows(rows, 0.2, seed).held_out.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_small_classes_keep_two_rows_to_train() -> None:
    rows = rows_of([("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("e", "y")])
    split = split_rows(rows, 0.5, seed=0)
    assert Counter(rows[at].label for at in split.train) == {"x": 2, "y": 2}


@pytest.mark.parametrize(("each", "share"), [(3, 0.15), (3, 0.05), (9, 0.05)])
def test_classes_too_small_to_give_a_row_each_give_their_share_together(each: int, share: float) -> None:
    rows = balanced(classes=100, each=each)
    given = Counter(rows[at].label for at in split_rows(rows, share, seed=0).held_out)
    assert given.total() == round(share * len(rows))
    assert set(given.values()) == {1}
    assert set(given) != {rows[at].label for at in split_rows(rows, share, seed=1).held_out}


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz")), min_size=1, max_size=60),
    st.floats(0, 0.5),
    st.integers(0, 5),
)
def test_equal_texts_stay_on_one_side(pairs: list[tuple[str, str]], share: float, seed: int) -> None:
    rows = rows_of([(text.upper() if i % 2 else f" {text} ", label) for i, (text, label) in enumerate(pairs)])
    split = split_rows(rows, share, seed)
    trained = {text_key(rows[at].text) for at in split.train}
    assert not trained & {text_key(rows[at].text) for at in split.held_out}
    kept = Counter(rows[at].label for at in split.train)
    for label, size in Counter(row.label for row in rows).items():
        assert kept[label] >= min(2, size)
        assert size - kept[label] <= max(round(share * size), share > 0)


def test_trained_keys_are_sorted_distinct_and_blind_to_case_and_space() -> None:
    keys = trained_row_keys(rows_of([("B  b", "x"), ("a", "x"), ("b B", "y")]))
    assert keys.dtype == np.uint64
    assert keys.tolist() == sorted({text_key("a"), text_key("b b")})


def test_the_fingerprint_sees_texts_labels_and_their_border() -> None:
    fingerprints = [
        data_fingerprint(rows_of(pairs))
        for pairs in ([("ab", "c")], [("a", "bc")], [("ab", "d")], [("ab", "c"), ("ab", "c")])
    ]
    assert len(set(fingerprints)) == 4
    assert data_fingerprint([Row("ab", "c", "elsewhere.csv", 9)]) == fingerprints[0]
