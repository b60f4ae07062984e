"""One label, one spelling: files of every kind, programs and queries agree, and older collections keep to theirs."""

from __future__ import annotations

import csv
import unicodedata
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from index.calibration.sources import check_labels
from index.collection import Collection, NewItem
from index.data.label import earlier_spellings, plain_label, whole_number
from index.data.rows import Row, read_rows
from index.encoders.pictures import read_pictures
from index.errors import DataError
from index.evaluate import evaluate
from index.intake import item_id, metadata_of, take_in
from index.items.store import Item
from index.verbs.cli_items import add
from tests.pictures import digit, packed

CAFE = "café"
DECOMPOSED = unicodedata.normalize("NFD", CAFE)
TEXT = "my card about a bank"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (22.0, "22"),
        (-0.0, "0"),
        (22.5, "22.5"),
        (22, "22"),
        ("22.0", "22.0"),
        (2.0**60, str(2.0**60)),
        (True, "True"),
        (Decimal("22.00"), "22"),
        (Decimal("22.50"), "22.50"),
    ],
)
def test_a_whole_number_is_written_as_one(given: object, kept: str) -> None:
    assert str(whole_number(given)) == kept


def test_files_of_every_kind_agree_on_labels_and_ids(tmp_path: Path) -> None:
    table, lines, columns = tmp_path / "a.csv", tmp_path / "b.jsonl", tmp_path / "c.parquet"
    table.write_text(f"nr,text,label\n7,22.0,22\n8,x, {DECOMPOSED} \n", encoding="utf-8")
    lines.write_text(f'{{"nr": 7.0, "text": "22.0", "label": 22.0}}\n{{"nr": 8, "text": "x", "label": "{CAFE}"}}\n')
    parquet.write_table(pa.table({"nr": [7.0, 9.5], "text": [22.0, 1.5], "label": [22.0, 22.5]}), columns)
    read = [read_rows([path], text="text", label="label") for path in (table, lines, columns)]
    assert [[row.label for row in rows] for rows in read] == [["22", CAFE], ["22", CAFE], ["22", "22.5"]]
    assert [[item_id(row, "nr") for row in rows] for rows in read] == [["7", "8"], ["7", "8"], ["7", "9.5"]]
    assert {rows[0].text for rows in read} == {"22.0"}, "a text is what it is"
    assert metadata_of(read[2][0], None) == {"nr": 7.0}, "so is metadata"
    with pytest.raises(DataError, match="is in the gallery, but the file was given as unknown"):
        check_labels(read[2], ["22"], known=False)


def test_folders_of_pictures_name_labels_as_tables_do(tmp_path: Path) -> None:
    (tmp_path / DECOMPOSED).mkdir()
    (tmp_path / DECOMPOSED / "1.png").write_bytes(packed(digit(3, 0)))
    (row,) = read_pictures([tmp_path], text="path", label="label")
    assert row.label == CAFE


def test_programs_write_one_label_too(copied: Path) -> None:
    with closing(Collection.open(copied, writable=True)) as opened:
        before = set(opened.gallery.names)
        for at, label in enumerate((CAFE, DECOMPOSED, f"  {CAFE}\n")):
            opened.upsert([NewItem(f"n{at}", label, TEXT)])
        assert set(opened.gallery.names) == before | {CAFE}
        assert {opened.item(f"n{at}").label for at in range(3)} == {CAFE}  # type: ignore[union-attr]
        assert {hit.label for hit in opened.search([TEXT], k=3, filter={"$label": CAFE})[0].hits} == {CAFE}
        opened.feedback(opened.encoder.encode([TEXT])[0], f" {DECOMPOSED}")
        assert opened._store.feedback().labels == [CAFE]
        for empty in ("", " \n"):
            with pytest.raises(DataError, match="the label is empty"):
                opened.upsert([NewItem("x", empty, TEXT)])
            with pytest.raises(DataError, match="The label of feedback is empty"):
                opened.feedback(opened.encoder.encode([TEXT])[0], empty)
    with pytest.raises(DataError, match=r"f: line 1: .*the label is empty"):
        take_in([Row("x", " ", "f", 1)], None, lambda *_: None)


def test_spellings_of_earlier_versions_are_found_by_todays() -> None:
    odd = [DECOMPOSED, " a", "a ", " b"]
    found = earlier_spellings({"plain", *odd, "b", "1", "1.0"}, odd)
    assert found == {CAFE: DECOMPOSED, "a": " a"}, "two that are there stay two"
    assert plain_label(" \u2003b\t") == "b"


@pytest.mark.parametrize(("there", "given"), [(DECOMPOSED, CAFE), (" alarm ", "alarm")])
def test_a_collection_from_before_goes_on_with_its_labels(copied: Path, tmp_path: Path, there: str, given: str) -> None:
    queries = [Row(TEXT, given, "f", 1)]
    with closing(Collection.open(copied, writable=True)) as opened:
        vector = opened.encoder.encode([TEXT])[0]
        old = [Item(f"{at}.0", there, TEXT, np.asarray(vector, np.float32), {"n": at}) for at in range(3)]
        opened._store.upsert(old)  # as an earlier version did
        opened.refresh()
        opened.snapshot()
    with closing(Collection.open(copied, writable=True)) as opened:
        labels, rows = opened.gallery.label_count, opened.gallery.rows.tolist()
        assert opened.search([TEXT], k=1)[0].hits[0].label == there
        opened.upsert([NewItem("0.0", there, TEXT, metadata={"n": 0}), NewItem("1.0", given, TEXT, metadata={"n": 1})])
        assert opened.gallery.rows.tolist() == rows, "the same items are written again"
        opened.upsert([NewItem("new", given, TEXT)])
        assert opened.gallery.label_count == labels
        opened.feedback(vector, given)
        assert opened._store.feedback().labels == [there]
        assert opened.gallery.encode_labels([given, there]).tolist() == [opened.gallery.names.index(there)] * 2
        answers = tmp_path / "answers.csv"
        assert evaluate(opened, queries, [], progress=lambda *_: None, table=answers)["recall@1"] == 1
        (line,) = csv.DictReader(answers.read_text(encoding="utf-8").splitlines())
        assert (line["known"], line["top_label"]) == ("true", there)
        with pytest.raises(DataError, match="is in the gallery, but the file was given as unknown"):
            evaluate(opened, [], queries, progress=lambda *_: None)
        opened.delete([hit.id for hit in opened.search([TEXT], k=100, filter={"$label": there})[0].hits])
        opened.upsert([NewItem("again", given, TEXT)])
        assert given in opened.gallery.names, "once it is gone, it comes back as labels are kept today"


def test_which_spelling_is_joined_is_known_by_the_labels_that_are_there(copied: Path) -> None:
    """Not by those that were: who opens the collection anew must say the same."""
    with closing(Collection.open(copied, writable=True)) as opened:
        vector = np.asarray(opened.encoder.encode([TEXT])[0], np.float32)
        opened._store.upsert([Item(f"i{at}", name, TEXT, vector) for at, name in enumerate((" bell", "bell ", "bell"))])
        opened.refresh()
        for gone, joined in (("i2", " bell"), ("i0", "bell "), ("i1", "bell")):
            opened.delete([gone])
            assert opened.gallery.spelled("bell") == joined
            with closing(Collection.open(copied)) as anew:
                assert anew.gallery.spelled("bell") == joined
        assert not opened.gallery.has_label("bell")


def test_numbers_of_versions_are_labels_of_their_own(copied: Path) -> None:
    with closing(Collection.open(copied, writable=True)) as opened:
        for name in ("1.0", "1", "2", "2.0"):
            opened.upsert([NewItem(f"v{name}", name, TEXT)])
        assert {"1.0", "1", "2", "2.0"} <= set(opened.gallery.names)
        assert opened.delete_where({"$label": "1.0"}).deleted == 1


def test_a_filter_deletes_the_label_that_it_names_alone(copied: Path) -> None:
    with closing(Collection.open(copied, writable=True)) as opened:
        vector = np.asarray(opened.encoder.encode([TEXT])[0], np.float32)
        opened._store.upsert([Item("x", " alarm ", TEXT, vector), Item("y", "alarm", TEXT, vector)])
        opened.refresh()
        assert opened.delete_where({"$label": " alarm "}).deleted == 1
        assert opened.item("y") is not None


def test_items_whose_ids_were_decimals_are_replaced_not_doubled(copied: Path, tmp_path: Path) -> None:
    data = tmp_path / "items.parquet"
    parquet.write_table(pa.table({"sku": [7.0, 8.0], "text": [TEXT, TEXT], "label": ["card", "card"]}), data)
    with closing(Collection.open(copied, writable=True)) as opened:
        opened.upsert([NewItem("7.0", "card", TEXT)])
        size = opened.size
    assert add([str(copied), str(data), "--label", "label", "--id", "sku"]) == 0
    with closing(Collection.open(copied)) as opened:
        assert opened.size == size + 1
        assert opened.item("7") is None
        assert opened.item("8") is not None
