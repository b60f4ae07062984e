"""What passes a filter is what the store says, through writes and compactions, and is looked for once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.collection import Collection, NewItem
from index.engines.engine import Selection
from index.errors import DataError
from index.items.filters import Filter
from index.search.passing import ENTRY, Passing
from tests.index.helpers import unit

FILTERS: tuple[dict[str, Any], ...] = (
    {"n": 1},
    {"n": True},
    {"n": 1.5},
    {"n": {"gte": 2}},
    {"$label": "food"},
    {"not": {"n": {"exists": True}}},
    {"n": 99},
)


@pytest.fixture
def live(copied: Path) -> Iterator[Collection]:
    found = Collection.open(copied, writable=True)
    yield found
    found.close()


def check(live: Collection) -> None:
    for asked in FILTERS:
        condition = Filter.parse(asked)
        expected = live._store.rows_where(condition, live.sequence)
        for _ in range(2):
            found = live._finder.passing.rows(condition, live.state)
            assert found is not None
            assert expected is not None
            assert found.tolist() == expected.tolist(), asked


def test_follows_every_write(live: Collection) -> None:
    random = np.random.default_rng(1)
    values: tuple[Any, ...] = (0, 1, True, 1.5, 2, "1")
    check(live)
    for step in range(25):
        names = [f"n{at}" for at in random.integers(0, 30, 4)]
        if step % 4 == 3:
            live.delete(names)
        else:
            vectors = unit(4, live.encoder.dimension, step)
            items = {
                name: NewItem(name, "food" if step % 2 else None, None, vector, metadata={"n": values[at]})
                for name, vector, at in zip(names, vectors, random.integers(0, len(values), 4).tolist(), strict=True)
            }
            live.upsert(items.values())
        if step % 3:  # some states nobody asks
            check(live)
        if step == 12:
            live.snapshot()
            check(live)


def test_a_filter_that_came_before_is_not_looked_for_again(live: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    direct = live._store.rows_where

    def counted(condition: Filter, at: int | None = None, after: int = 0) -> Any:
        asked.append(after)
        return direct(condition, at, after)

    monkeypatch.setattr(live._store, "rows_where", counted)
    query = unit(1, live.encoder.dimension)
    last = int(live.gallery.rows[-1])
    answers = [live.search_vectors(query, filter={"$label": "food"}) for _ in range(3)]
    assert asked == [0]
    assert answers[0] == answers[1] == answers[2]
    live.upsert([NewItem("new", "food", None, query[0])])
    (answer,) = live.search_vectors(query, filter={"$label": "food"})
    assert asked == [0, last]
    assert answer.hits[0].id == "new"


def test_an_older_state_gets_its_own_rows_and_keeps_nothing(live: Collection) -> None:
    before, condition = live.state, Filter.parse({"n": {"exists": True}})
    live.upsert([NewItem("new", "food", None, unit(1, live.encoder.dimension)[0], metadata={"n": 1})])
    newer = live._finder.passing.rows(condition, live.state)
    older = live._finder.passing.rows(condition, before)
    assert newer is not None
    assert older is not None
    assert len(newer) == len(older) + 1
    assert live._finder.passing.rows(condition, live.state) is newer


def test_what_is_kept_is_bounded(live: Collection) -> None:
    kept = Passing(live._store, most_bytes=8 * len(live.state) + 3 * ENTRY)
    everything, nothing = Filter.parse({"not": {"n": 99}}), Filter.parse({"n": 99})
    first = kept.rows(everything, live.state)
    assert kept.rows(everything, live.state) is first
    assert kept.rows(nothing, live.state) is not None
    assert kept.rows(everything, live.state) is first
    assert kept.rows(Filter.parse({"not": {"n": 98}}), live.state) is not None  # as many again: the oldest go
    again = kept.rows(everything, live.state)
    assert again is not None
    assert first is not None
    assert again is not first
    assert again.tolist() == first.tolist()


def test_filters_that_nothing_passes_are_bounded_too(live: Collection) -> None:
    kept = Passing(live._store, most_bytes=20 * ENTRY)
    for at in range(100):
        assert kept.rows(Filter.parse({"n": 1000 + at, "of": "x" * at}), live.state) is not None
    assert 5 < len(kept._kept) < 20
    assert kept._bytes == sum(ENTRY + len(key) + one.rows.nbytes for key, one in kept._kept.items())


def test_kept_rows_cannot_be_changed(live: Collection) -> None:
    found = live._finder.passing.rows(Filter.parse({"not": {"n": 99}}), live.state)
    assert found is not None
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


def test_a_wrong_filter_is_refused_as_before(live: Collection) -> None:
    with pytest.raises(DataError, match="no comparison"):
        live.search_vectors(unit(1, live.encoder.dimension), filter={"n": {"near": 1}})


@given(
    rows=st.sets(st.integers(1, 40), min_size=1),
    whole=st.booleans(),
    allowed=st.none() | st.lists(st.integers(0, 45), unique=True),
    excluded=st.none() | st.lists(st.integers(0, 45), unique=True),
)
def test_a_selection_marks_the_rows_it_names(
    rows: set[int], whole: bool, allowed: list[int] | None, excluded: list[int] | None
) -> None:
    """Whether rows are missing between the first and the last, or none."""
    there = np.arange(min(rows), max(rows) + 1) if whole else np.array(sorted(rows))
    named_rows = [None if named is None else np.array(named, np.int64) for named in (allowed, excluded)]
    expected = [
        (allowed is None or row in allowed) and (excluded is None or row not in excluded) for row in there.tolist()
    ]
    assert Selection(*named_rows).mask(there).tolist() == expected
