"""Consent that ends: found before, not found after, in the process that wrote it and in one that only reads."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from index.collection import Collection, NewItem
from index.data.rows import Row, read_rows
from index.errors import DataError
from index.evaluate import evaluate
from index.intake import metadata_of
from index.items.consent import Expiry, check_consent
from index.items.store import Item, ItemStore
from index.verbs.cli_items import add
from tests.service.gallery import build

PASSED = datetime(2020, 1, 31)
PAST, FUTURE = "2020-01-31", "2999-12-31T00:00:00+02:00"


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    return build(tmp_path, calibrated=True)


def new(name: str, text: str, expires: str | None, label: str = "visitor") -> NewItem:
    consent = {"reference": "form 17", "purpose": "door"} | ({} if expires is None else {"expires": expires})
    return NewItem(name, label, text, metadata={"consent": consent})


def found(collection: Collection, text: str, **how: Any) -> list[str]:
    (answer,) = collection.search([text], k=20, **how)
    return [hit.id for hit in answer.hits]


def test_what_has_ended_matches_nothing(collection: Path) -> None:
    text = "turn on lamp cellar"
    with (
        closing(Collection.open(collection, writable=True)) as writing,
        closing(Collection.open(collection)) as reading,
    ):
        writing.upsert([new("a", text, PAST), new("b", text, FUTURE), new("c", text, None)])
        reading.refresh()
        for one in (writing, reading):
            ids = found(one, text)
            assert "a" not in ids
            assert {"b", "c"} <= set(ids)
            assert "a" not in found(one, text, filter={"$label": "visitor"})
        (answer,) = writing.search([text], k=20)
        writing.upsert([new("b", text, PAST), new("c", text, PAST)])
        assert not {"a", "b", "c"} & set(found(writing, text))
        (after,) = writing.search([text], k=20)
        assert "visitor" not in {entry.label for entry in after.labels or []}
        assert after.decision is None or after.decision.label != "visitor"
        assert len(after.hits) <= len(answer.hits)
        writing.upsert([new("a", text, FUTURE)])
        assert "a" in found(writing, text), "consent that is given again counts"
        assert writing.delete_where({"consent.expires": {"lt": "2021"}}).deleted == 2


def test_time_passes(tmp_path: Path) -> None:
    store = ItemStore(tmp_path / "items.sqlite", 2)
    vector = np.array([1, 0], np.float32)
    for name, expires in (("a", "2027-06-30"), ("b", "2027-06-30T12:00:00+00:00"), ("c", "nonsense"), ("d", 7)):
        store.upsert([Item(name, None, None, vector, {"consent": {"expires": expires}})])
    store.upsert([Item("e", None, None, vector, {"consent": {"expires": None}}), Item("f", None, None, vector, {})])
    expiry = Expiry(store)
    midnight = datetime(2027, 6, 30, tzinfo=UTC).timestamp()
    assert expiry.ended(5, midnight - 1).tolist() == [3, 4], "what is no time has ended"
    assert expiry.ended(5, midnight).tolist() == [1, 3, 4]
    assert expiry.ended(5, midnight + 12 * 3600).tolist() == [1, 2, 3, 4]
    sequence, _ = store.upsert([Item("g", None, None, vector, {"consent": {"expires": PAST}})])
    assert expiry.ended(5, 0).tolist() == [3, 4], "nothing new is looked for"
    assert expiry.ended(sequence, midnight - 1).tolist() == [3, 4, 7]
    sequence, _ = store.upsert([Item("h", None, None, vector, {"consent.expires": "2027-06-30T12:00:00"})])
    assert expiry.ended(sequence, midnight).tolist() == [1, 3, 4, 7], "tables have no zones: it is UTC"
    assert expiry.ended(sequence, midnight + 12 * 3600).tolist() == [1, 2, 3, 4, 7, 8]
    store.close()


def test_dates_as_pandas_writes_them_end(collection: Path, tmp_path: Path) -> None:
    table = pa.table({"text": ["turn on lamp"] * 2, "label": ["light"] * 2, "consent.expires": [PASSED, None]})
    parquet.write_table(table, tmp_path / "t.parquet")
    first, second = read_rows([tmp_path / "t.parquet"], text="text", label="label")
    for row in (first, second):
        check_consent(metadata_of(row, None))
    with closing(Collection.open(collection, writable=True)) as writing:
        writing.upsert([NewItem("p", None, "turn on lamp", metadata=metadata_of(first, None))])
        assert "p" not in found(writing, "turn on lamp")


@pytest.mark.parametrize(
    "consent",
    [
        {"consent": {"expires": "soon"}},
        {"consent": {"expires": "2027-06-30T12:00"}},
        {"consent": {"expires": 5}},
        {"consent": {"until": "2027-06-30"}},
        {"consent": {"purpose": None}},
        {"consent": f'{{"expires": "{PAST}"}}'},
        {"consent": [{"expires": PAST}]},
        {"consent": "yes"},
        {"consent": False},
        {"consent.expires": "soon"},
        {"consent.expires": 5},
        {"consent.until": PAST},
        {"consent": {"expires": FUTURE}, "consent.expires": FUTURE},
    ],
    ids=[
        *("no date", "no zone", "number", "unknown member", "null", "JSON text", "list", "text", "boolean"),
        *("flat no date", "flat number", "flat unknown member", "twice"),
    ],
)
def test_what_is_not_understood_is_refused(collection: Path, consent: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="consent"):
        check_consent(consent)
    refused = pytest.raises(DataError, match="Item 'x': consent")
    with closing(Collection.open(collection, writable=True)) as writing, refused:
        writing.upsert([NewItem("x", None, "turn on lamp", metadata=consent)])


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_cell_says_nothing(empty: str | None) -> None:
    check_consent({"consent": empty, "consent.expires": empty, "consent.purpose": "door"})


def test_consent_in_the_columns_of_a_table_ends(collection: Path, tmp_path: Path) -> None:
    text = "turn on lamp cellar"
    table = tmp_path / "people.csv"
    rows = (f"{name},{text},visitor,{expires},door" for name, expires in (("a", PAST), ("b", FUTURE), ("c", "")))
    table.write_text("nr,text,who,consent.expires,consent.purpose\n" + "\n".join(rows) + "\n")
    assert add([str(collection), str(table), "--label", "who", "--id", "nr"]) == 0
    with closing(Collection.open(collection, writable=True)) as opened:
        ids = found(opened, text)
        assert "a" not in ids
        assert {"b", "c"} <= set(ids)
        assert opened.delete_where({"consent.expires": {"gt": "", "lte": "2021"}}).deleted == 1
    table.write_text(f'text,who,consent\n{text},visitor,"{{""expires"": ""{PAST}""}}"\n')
    with pytest.raises(DataError, match=r"line 2: consent: got .* in a table the column consent\.expires"):
        add([str(collection), str(table), "--label", "who"])


def test_stores_from_before_it_was_understood_are_kept_to(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = [
        {"consent.expires": PAST},
        {"consent": f'{{"expires": "{PAST}"}}'},
        {"consent": [{"expires": FUTURE}, {"expires": PAST}]},
        {"consent": {"expires": FUTURE}, "consent.expires": PAST},
        {"consent.expires": "", "consent": {"expires": FUTURE}},
        {"consent": "{torn"},
        {"consent": "yes", "consent.expires": None},
        {"note": '"consent', "deep": {"consent": {"expires": PAST}}},
    ]
    vector = np.array([1, 0], np.float32)
    with closing(ItemStore(tmp_path / "items.sqlite", 2)) as store:
        store.upsert([Item(f"i{at}", None, None, vector, one) for at, one in enumerate(said)])
        assert Expiry(store).ended(1).tolist() == [1, 2, 3, 4]


def test_labels_whose_consent_has_ended_are_no_answers(collection: Path) -> None:
    known = [Row("turn on lamp", "visitor", "f", 1)]
    with closing(Collection.open(collection, writable=True)) as opened:
        opened.upsert([new("a", "turn on lamp", PAST), new("b", "open the door", None, "guest")])
        assert {"guest"} <= set(opened.answerable()) == set(opened.gallery.names) - {"visitor"}
        with pytest.raises(DataError, match="'visitor' is not in the gallery"):
            evaluate(opened, known, [], progress=lambda *_: None)
        assert evaluate(opened, [], known, progress=lambda *_: None)["queries"] == {"known": 0, "unknown": 1}
        while shown := {hit.id for hit in opened.search(["turn on lamp"], k=100)[0].hits}:
            opened.delete(sorted(shown))
        with pytest.raises(DataError, match="consent of every item has ended"):
            evaluate(opened, [], known, progress=lambda *_: None)
