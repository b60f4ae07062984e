"""Filters against a plain Python reading of their documentation, over items that hypothesis makes."""

from __future__ import annotations

import itertools
import operator
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.errors import DataError
from index.items.filters import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, Filter, read_filter
from index.items.store import Item, ItemStore

ABSENT = object()
RANGES = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


def look_up(item: Item, name: str) -> Any:
    if name in ("$id", "$label"):
        return item.id if name == "$id" else item.label
    value: Any = item.metadata
    if name in value:
        return value[name]
    if "" in name.split("."):
        return ABSENT
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return ABSENT
        value = value[part]
    return value


def kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return repr(value)
    return "number" if isinstance(value, int | float) else "text" if isinstance(value, str) else "other"


def equal(one: Any, other: Any) -> bool:
    return one is not ABSENT and kind(one) == kind(other) != "other" and bool(one == other)


def passes(item: Item, given_filter: dict[str, Any]) -> bool:
    def member(name: str, value: Any) -> bool:
        if name == "and":
            return all(passes(item, part) for part in value)
        if name == "or":
            return any(passes(item, part) for part in value)
        if name == "not":
            return not passes(item, value)
        found = look_up(item, name)
        if not isinstance(value, dict):
            return equal(found, value)
        return all(compare(found, what, wanted) for what, wanted in value.items())

    def compare(found: Any, what: str, wanted: Any) -> bool:
        if what == "exists":
            return wanted == (found is not ABSENT and (found is not None or True))
        if what == "in":
            return any(equal(found, one) for one in wanted)
        return kind(found) == kind(wanted) and bool(RANGES[what](found, wanted))

    return all(member(name, value) for name, value in given_filter.items())


NAMES = st.sampled_from(
    ["a", "b", "größe", "a b", "x'y", "and.b", "a.b", "a.b.c", "b[0]", "$.a", "%", "--", "", "a."]
).filter(lambda name: not name.startswith("$"))
KEYS = st.sampled_from(["a", "b", "c", "größe", "a b", "x'y", "and", "b[0]", "%", "--", "", "a."])
TEXTS = st.sampled_from(["", "s", "m", "true", "1", "é", "😀", "'; DROP TABLE items; --", 'a"b', "\\", "\n", "null"])
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.1 + 0.2, 0.3, 1.0, -0.0, 2.5, 1e-300, 1e300, 2**53 + 1, 2**63 - 1, -(2**63) + 1]),
    st.floats(allow_nan=False, allow_infinity=False),
)
SCALARS = st.one_of(TEXTS, NUMBERS, st.booleans(), st.none())
METADATA = st.dictionaries(
    KEYS,
    st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(KEYS, SCALARS | st.just({"c": 1}), max_size=2)),
    max_size=4,
)
COMPARISONS = st.dictionaries(st.sampled_from([*RANGES]), TEXTS | NUMBERS, min_size=1, max_size=2) | st.one_of(
    st.fixed_dictionaries({"in": st.lists(SCALARS, max_size=4)}), st.fixed_dictionaries({"exists": st.booleans()})
)
LEAVES = st.dictionaries(NAMES | st.sampled_from(["$id", "$label"]), SCALARS | COMPARISONS, max_size=2)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"and": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"or": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=6,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ItemStore]:
    opened = ItemStore(tmp_path / "items.sqlite", 2)
    yield opened
    opened.close()


COUNT = itertools.count()


def fill(store: ItemStore, metadata: list[dict[str, Any]]) -> list[Item]:
    labels = [None, "s", "m", "😀"]
    vector = np.array([1, 0], np.float32)
    items = [Item(f"i{next(COUNT)}", labels[at % 4], None, vector, one) for at, one in enumerate(metadata)]
    store.upsert(items)
    return items


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(METADATA, min_size=1, max_size=12), st.lists(FILTERS, min_size=1, max_size=8))
def test_filters_agree_with_python(
    store: ItemStore, metadata: list[dict[str, Any]], asked: list[dict[str, Any]]
) -> None:
    items = fill(store, metadata)
    ids = {item.id for item in items}
    for one in asked:
        assert set(rows_of(store, one)) & ids == {item.id for item in items if passes(item, one)}, one


def rows_of(store: ItemStore, asked: Any) -> list[str]:
    rows = store.rows_where(Filter.parse(asked))
    assert rows is not None
    assert (np.diff(rows) > 0).all()
    return [item.id for item in store.get(rows.tolist()).values()]


def test_filters_see_live_items_only(store: ItemStore) -> None:
    items = fill(store, [{"a": 1}, {"a": 1}, {"a": 2}])
    store.upsert([Item(items[0].id, None, None, items[0].vector, {"a": 2})])
    store.delete([items[1].id])
    assert rows_of(store, {"a": 1}) == []
    assert sorted(rows_of(store, {"a": 2})) == sorted([items[0].id, items[2].id])
    assert len(rows_of(store, {})) == 2
    assert rows_of(store, {"$id": items[2].id}) == [items[2].id]
    before = store.rows_where(Filter.parse({"a": 1}), at=1)
    assert before is not None
    assert len(before) == 2
    assert store.rows_where(Filter.parse({}), at=99) is None


@pytest.mark.parametrize("name", ["No.", ".5", "a..b", ".", ""])
def test_names_with_nothing_beside_a_dot_are_looked_for_as_they_stand(store: ItemStore, name: str) -> None:
    item, *_ = fill(store, [{name: 5}, {name: 6}, {"No": 5, "5": 5, "a": {"b": 5, "": {"b": 5}}}])
    assert rows_of(store, {name: 5}) == [item.id]
    assert len(rows_of(store, {name: {"exists": True}})) == 2


def test_a_text_with_nul_of_an_earlier_version_is_not_what_stands_before_it(store: ItemStore, tmp_path: Path) -> None:
    texts = ["acme", r"acme\u0000", "acme-other"]
    items = fill(store, [{"a": text, "b": {"c": text}} for text in texts])
    with sqlite3.connect(tmp_path / "items.sqlite") as connection:  # as it was stored before NUL was refused
        connection.execute("UPDATE items SET metadata = replace(metadata, '-other', '\\u0000-other')")
    connection.close()
    for name in ("a", "b.c"):
        for text, item in zip(texts[:2], items, strict=False):
            assert rows_of(store, {name: text}) == rows_of(store, {name: {"in": [text]}}) == [item.id]
        assert rows_of(store, {"not": {name: {"in": texts[:2]}}}) == [items[2].id]
        assert rows_of(store, {name: {"lte": "acme"}}) == [items[0].id]
        assert len(rows_of(store, {name: {"exists": True}})) == 3


def test_what_a_user_writes_is_never_sql() -> None:
    for evil in ("a'); DROP TABLE items; --", "a') OR 1=1 --", "x\x7f", ":f0", "?"):
        made = Filter.parse({evil: evil, "and": [{evil: {"in": [evil], "gt": evil, "exists": True}}]})
        assert evil not in made.sql or evil in (":f0", "?")
        assert "?" not in made.sql


def deep(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {"a": 1}
    for _ in range(levels):
        made = {"not": made}
    return made


REFUSED: dict[str, tuple[Any, str]] = {
    "a list": ([], "filter: expected an object"),
    "a text": ("a = 1", "filter: expected an object"),
    "and without a list": ({"and": {"a": 1}}, r"filter\.and: expected a list"),
    "an element that is no object": ({"or": [{"a": 1}, 3]}, r"filter\.or\[1\]: expected an object"),
    "not of a list": ({"not": []}, r"filter\.not: expected an object"),
    "unknown comparison": ({"a": {"like": "x"}}, r"filter\.a\.like: there is no comparison"),
    "nothing to compare": ({"a": {}}, r"filter\.a: an empty object"),
    "equals a list": ({"a": [1]}, "expected a text or a number"),
    "range of a boolean": ({"a": {"gt": True}}, r"filter\.a\.gt: expected a text or a number"),
    "range of null": ({"a": {"lt": None}}, "expected a text or a number"),
    "in without a list": ({"a": {"in": "sm"}}, "expected a list"),
    "in of objects": ({"a": {"in": [{}]}}, r"filter\.a\.in\[0\]"),
    "exists maybe": ({"a": {"exists": 1}}, "expected true or false"),
    "unknown own field": ({"$vector": 1}, r"\$vector"),
    "quote in a name": ({'a"b': 1}, "quotes"),
    "backslash in a name": ({"a\\b": 1}, "backslashes"),
    "NUL in a name": ({"a\0": 1}, "without NUL"),
    "NUL in a text": ({"a": "x\0"}, "without NUL"),
    "half a character": ({"a": "\ud800"}, "surrogate"),
    "long text": ({"a": "x" * 5000}, "4096"),
    "NaN": ({"a": float("nan")}, "not finite"),
    "infinity": ({"a": {"gt": float("inf")}}, "not finite"),
    "an integer beyond doubles": ({"a": 10**400}, "too large"),
    "too deep": (deep(MAX_DEPTH + 1), "deep"),
    "far too deep": (deep(900), "deep"),
    "too many conditions": ({"or": [{"a": 1}] * (MAX_CONDITIONS + 1)}, "conditions"),
    "too many values": ({"a": {"in": list(range(MAX_VALUES + 1))}}, "values"),
}


@pytest.mark.parametrize(("asked", "said"), REFUSED.values(), ids=REFUSED)
def test_bad_filters_are_refused(asked: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Filter.parse(asked)


def test_the_largest_filters_run(store: ItemStore) -> None:
    item = fill(store, [{"a": 77}])[0]
    assert rows_of(store, {"or": [{"a": at} for at in range(MAX_CONDITIONS - 1)]}) == [item.id]
    assert rows_of(store, {"a": {"in": list(range(MAX_VALUES))}}) == [item.id]
    assert rows_of(store, deep(MAX_DEPTH)) == []


def test_filters_are_read_from_text() -> None:
    assert read_filter('{"a": {"in": [1, "x"]}}') == {"a": {"in": [1, "x"]}}
    for text in ("{", "[]", "[" * 100_000, '{"a": NaN}'):
        with pytest.raises(DataError):
            read_filter(text)
    for text in ('{"a": {"gt": 1}, "a": {"lt": 5}}', '{"not": {"a": {"gt": 1, "gt": 2}}}'):
        with pytest.raises(DataError, match="stands twice"):
            read_filter(text)


@pytest.mark.parametrize(
    ("comparison", "passing"),
    [("gt", [3]), ("gte", [2, 3]), ("lt", [1]), ("lte", [1, 2])],
)
def test_the_ends_of_a_range(store: ItemStore, comparison: str, passing: list[int]) -> None:
    items = fill(store, [{"a": value} for value in (1, 2, 3)])
    for end in (2, 2.0):
        assert rows_of(store, {"a": {comparison: end}}) == [items[at - 1].id for at in passing]
