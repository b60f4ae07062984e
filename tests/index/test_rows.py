"""Rows: what is written is read, with the line it stands on; what cannot be used is refused by file and line."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.data.label import plain_label
from index.data.rows import MAX_FIELD, Row, read_rows, text_key
from index.errors import DataError

Pair = tuple[str, str]
cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda cell: bool(cell.strip())
)
awkward = st.lists(st.sampled_from(["a", '"', ",", "\n", "\r\n", "\r", "\t", "\u2028", "\x85", "\ufeff", " é"]))
texts = st.one_of(cells, awkward.map("".join).filter(lambda cell: bool(cell.strip())))


def write(tmp_path: Path, name: str, content: bytes | str) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, **options: Any) -> list[Row]:
    return read_rows([path], text="text", label="label", **options)


@settings(max_examples=150)
@given(rows=st.lists(st.tuples(texts, cells), min_size=1, max_size=6), bom=st.booleans(), tabs=st.booleans())
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Pair], bom: bool, tabs: bool) -> None:
    out = io.StringIO()
    csv.writer(out, delimiter="\t" if tabs else ",").writerows([("text", "label"), *rows])
    content = out.getvalue().encode("utf-8-sig" if bom else "utf-8")
    found = read(write(tmp_path_factory.mktemp("csv"), "rows.tsv" if tabs else "rows.csv", content))
    assert [(row.text, row.label) for row in found] == [(text, plain_label(label)) for text, label in rows]


@settings(max_examples=50)
@given(rows=st.lists(st.tuples(texts, cells), min_size=1, max_size=6))
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Pair]) -> None:
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=len(text) % 2 == 0) for text, label in rows]
    found = read(write(tmp_path_factory.mktemp("jsonl"), "rows.jsonl", "\n".join(lines) + "\n"))
    assert [(row.text, row.label) for row in found] == [(text, plain_label(label)) for text, label in rows]
    assert [row.line for row in found] == list(range(1, len(rows) + 1))


def test_parquet_round_trip_keeps_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"text": ["a", "b\nc"], "label": ["x", "7"], "n": [1, None]}), path)
    assert [(row.text, row.label, row.line, row.extra) for row in read(path)] == [
        ("a", "x", 1, {"n": 1}),
        ("b\nc", "7", 2, {"n": None}),
    ]


def test_lines_count_breaks_inside_quotes_and_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", 'text,label,id\n"one\ntwo\r\nthree",a,1\n\nfour,b,2\n"five\rsix",c,3\n')
    assert [(row.line, row.extra["id"]) for row in read(path)] == [(2, "1"), (6, "2"), (7, "3")]


def test_the_header_may_follow_blank_lines(tmp_path: Path) -> None:
    assert [row.line for row in read(write(tmp_path, "rows.csv", "\n\ntext,label\na,b\n"))] == [4]


def test_several_files_are_read_in_order(tmp_path: Path) -> None:
    first, second = write(tmp_path, "1.csv", "text,label\na,x\n"), write(tmp_path, "2.jsonl", '{"text":"b","label":1}')
    found = read_rows([first, second], text="text", label="label")
    assert [(row.text, row.label, row.file) for row in found] == [("a", "x", str(first)), ("b", "1", str(second))]


def test_labels_may_be_missing_when_they_are_not_required(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", "text,label\na,\n")
    assert read(path, require_label=False)[0].label is None
    assert read_rows([path], text="text", label=None)[0].extra == {"label": ""}
    alone = write(tmp_path, "texts.csv", "text\na\n")
    assert [(row.text, row.label) for row in read(alone, require_label=False)] == [("a", None)]
    with pytest.raises(DataError, match="no column 'label'"):
        read(alone)
    with pytest.raises(DataError, match="no column 'label'"):  # it may be another name of it
        read(write(tmp_path, "more.csv", "text,intent\na,b\n"), require_label=False)


BAD = {
    "empty file": ("rows.csv", b"", "no rows", "header"),
    "header only": ("rows.csv", b"text,label\n", "no rows", "header"),
    "no text column": ("rows.csv", b"say,label\na,b\n", "no column 'text'", "--text"),
    "semicolons": ("rows.csv", b"text;label\na;b\n", "no column 'text'", "separated by ';'"),
    "tabs in a csv": ("rows.csv", b"text\tlabel\na\tb\n", "no column 'text'", "separated by '\\t'"),
    "semicolons and quotes": ("rows.csv", b'text;label\n"a;b";c\n', "line 2", "separated by ';'"),
    "semicolons and commas": ("rows.csv", b"text;label\na, b;c\n", "line 2 has 2 fields", "separated by ';'"),
    "delimiter for Excel": ("rows.csv", b"sep=,\r\ntext,label\r\na,b\r\n", "tells Excel", "Delete that line"),
    "other delimiter for Excel": ("rows.csv", b"sep=;\ntext;label\na;b\n", "tells Excel", "Delete that line"),
    "columns without names": ("rows.csv", b"text,label,,\na,b,,\n", "2 columns of the header have no name", "column 3"),
    "no label column": ("rows.csv", b"text,say\na,b\n", "no column 'label'", "--label"),
    "Windows-1252": ("rows.csv", b"text,label\nok,b\ncaf\xe9,b\n", "line 3 is not UTF-8", "iconv -f WINDOWS-1252"),
    "after a BOM": ("rows.csv", b"\xef\xbb\xbftext,label\n\xff,a\n", "line 2 is not UTF-8", "iconv"),
    "UTF-16": ("rows.csv", "text,label\na,b\n".encode("utf-16"), "line 1 is not UTF-8", "iconv -f UTF-16"),
    "NUL byte": ("rows.csv", b"text,label\na,b\nc\0,d\n", "line 3 holds a NUL", "UTF-8 CSV"),
    "unclosed quote": ("rows.csv", b'text,label\na,b\n"c,d\ne,f\ng,h\n', "line 3", "double quote"),
    "quote inside": ("rows.csv", b'text,label\n"a"b,c\n', "line 2", "double quote"),
    "field beyond the limit": (
        "rows.csv",
        b"text,label\n" + b"a" * (MAX_FIELD + 1) + b",b\n",
        "line 2",
        "1,000,000 char",
    ),
    "giant field": ("rows.csv", b'text,label\n"' + b"a" * (MAX_FIELD + 1) + b'",b\n', "line 2", "double quote"),
    "ragged row": ("rows.csv", b"text,label\na,b\nc,d,e\n", "line 3 has 3 fields, the header has 2", "double quotes"),
    "short row": ("rows.csv", b"text,label\na\n", "line 2 has 1 fields", "double quotes"),
    "twin header": ("rows.csv", b"text,label,text\na,b,c\n", "'text' twice", "Rename"),
    "empty text": ("rows.csv", b"text,label\na,b\n  ,b\n", "empty text in column 'text' at line 3", "Fill"),
    "empty label": ("rows.csv", b"text,label\na,b\nc,\n", "empty label in column 'label' at line 3", "Label these"),
    "many empty": ("rows.csv", b"text,label\n" + b",b\n" * 9, "line 2, 3, 4, 5, 6 and 4 more", "Fill"),
    "unknown suffix": ("rows.xlsx", b"PK", "'.xlsx' cannot be read", ".parquet"),
    "no suffix": ("rows", b"a", "cannot be read", ".csv"),
    "not JSON": ("rows.jsonl", b'{"text":"a","label":"b"}\n{"text":\n', "line 2 is not JSON", "one JSON object"),
    "twin member": ("rows.jsonl", b'{"text":"a","label":"b","text":"c"}\n', "'text' stands twice", "one JSON object"),
    "JSON list": ("rows.jsonl", b"[1]\n", "line 1 holds a list", "JSON object"),
    "deep JSON": ("rows.jsonl", b"[" * 100_000, "line 1 is not JSON", "one JSON object"),
    "JSON without text": ("rows.jsonl", b'{"label":"b"}\n', "line 1 has no column 'text'", "--text"),
    "JSON without anything": ("rows.jsonl", b"{}\n", "line 1 has no column 'text'", "--text"),
    "a list as label": ("rows.jsonl", b'{"text":"a","label":["b"]}\n', "line 1: column 'label' holds a list", "string"),
    "NaN as label": ("rows.jsonl", b'{"text":"a","label":NaN}\n', "empty label in column 'label' at line 1", "Label"),
    "null as text": ("rows.jsonl", b'{"text":null,"label":"b"}\n', "empty text in column 'text' at line 1", "Fill"),
    "not Parquet": ("rows.parquet", b"PAR1 and then nothing", "not readable as Parquet", "Write it again"),
}


@pytest.mark.parametrize(("name", "content", "what", "remedy"), BAD.values(), ids=BAD)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: bytes, what: str, remedy: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert what in str(error.value)
    assert remedy in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_folder_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for path, said in ((tmp_path / "nowhere.csv", "no such file"), (tmp_path / "folder.csv", "is a folder")):
        with pytest.raises(DataError, match=said):
            read(path)
    with pytest.raises(DataError, match="No data file"):
        read_rows([], text="text", label=None)


def test_parquet_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names=["text", "label", "label"]), path)
    with pytest.raises(DataError, match="'label' twice"):
        read(path)


def test_parquet_damaged_inside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": [f"text {i} " * 9 for i in range(99)], "label": ["x"] * 99})
    parquet.write_table(table, path, compression="NONE", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[40:100] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(DataError, match="not readable as Parquet"):
        read(path)


def test_parquet_bytes_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"text": [b"abc"], "label": ["x"]}), path)
    with pytest.raises(DataError, match="column 'text' holds a bytes"):
        read(path)


def test_an_unreadable_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "rows.csv", "text,label\na,b\n")

    def refuse(self: Path, **options: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        read(path)


@given(st.text())
def test_text_key_ignores_case_white_space_and_form(text: str) -> None:
    key = text_key(text)
    assert 0 <= key < 2**64
    assert key == text_key(f"  {text}\n") == text_key(unicodedata.normalize("NFD", text))
    assert key != text_key(text + "x")


def test_text_key_is_stable() -> None:
    # stored beside trained encoders: a change would let trained rows into calibrations
    assert text_key("Where is  my CARD?") == text_key("where is my card?") == 0xE310733A693E0F48
    assert text_key("Ångström") == text_key("a\u030angstro\u0308m")
