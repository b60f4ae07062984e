"""Faulty rows: named one by one, refused or left out; pairs made into classes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from index.data.rows import Row, read_rows
from index.errors import DataError, EncoderError
from tests.training.conftest import sentences
from training.cli import train
from training.data.pairs import rows_of_pairs
from training.data.review import review, summary
from training.push import files_to_send


def rows_of(pairs: list[tuple[str, str]]) -> list[Row]:
    return [Row(text, label, "rows.csv", line) for line, (text, label) in enumerate(pairs, 2)]


def test_a_class_of_one_row_is_refused_by_label_and_line() -> None:
    with pytest.raises(DataError, match=r"1 class has a single row: 'rare' at rows\.csv line 4 \('c'\).*--skip-faulty"):
        review(rows_of([("a", "x"), ("b", "x"), ("c", "rare")]), [], skip=False)


def test_many_classes_of_one_row_are_counted_beyond_the_first_five() -> None:
    pairs = [("a", "x"), ("b", "x"), *((f"t{i}", f"rare{i}") for i in range(7))]
    with pytest.raises(DataError, match=r"7 classes have .*'rare4'.* and 2 more\. "):
        review(rows_of(pairs), [], skip=False)


def test_duplicates_and_conflicts_train_but_are_named() -> None:
    rows = rows_of([("a", "x"), ("A ", "x"), ("b", "x"), ("b", "y"), ("c", "y")])
    kept, faults = review(rows, [], skip=False)
    assert kept == rows
    assert [(fault.kind, fault.row.line, fault.left_out) for fault in faults] == [
        ("duplicate", 3, False),
        ("conflicting labels", 4, False),
        ("conflicting labels", 5, False),
    ]
    assert "1 row with a text that came before: 'x' at rows.csv line 3 ('A '). They train." in summary(faults)


def test_leaving_out_conflicts_can_leave_a_class_of_one_row() -> None:
    rows = rows_of([("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("d", "x"), ("e", "z"), ("f", "z")])
    kept, faults = review(rows, [], skip=True)
    assert [row.text for row in kept] == ["a", "b", "e", "f"]
    assert [(fault.kind, fault.row.text) for fault in faults] == [
        ("conflicting labels", "d"),
        ("conflicting labels", "d"),
        ("class of one row", "c"),
    ]


def test_every_row_is_kept_or_named(tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The usual faults of a new user's file, all at once."""
    good = sentences(8)
    lines = ["text,label", *(f"{text},{label}" for text, label in good)]
    lines += ['"rain\r\nand storm",weather', "card,card", "card,food", ",card", "soup,", "   ,food"]
    lines += ["hotel,one", "flight,two", "lemon,three", f"{good[0][0].upper()},{good[0][1]}"]
    data = tmp_path / "rows.csv"
    data.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    command = [str(data), "--encoder", str(tiny_encoder), "--epochs", "1", "--batch-size", "8"]
    with pytest.raises(DataError, match=r"rows\.csv: an empty text at line 38, 40\. Fill .* with --skip-faulty"):
        train([*command, "--out", str(tmp_path / "strict")])
    assert train([*command, "--out", str(tmp_path / "m"), "--skip-faulty"]) == 0
    report = json.loads((tmp_path / "m" / "training.json").read_text())["data"]["report"]
    assert {(fault["kind"], fault["line"]) for fault in report if fault["left_out"]} == {
        ("empty text", 38),
        ("empty label", 39),
        ("empty text", 40),
        ("conflicting labels", 36),
        ("conflicting labels", 37),
        ("class of one row", 41),
        ("class of one row", 42),
        ("class of one row", 43),
    }
    assert [(fault["kind"], fault["line"]) for fault in report if not fault["left_out"]] == [("duplicate", 44)]
    shown = " ".join(capsys.readouterr().err.split())
    for part in (
        "empty text at line 38, 40",
        "empty label at line 39",
        "'one' at",
        "'two' at",
        "'three' at",
        "line 44",
    ):
        assert part in shown
    record = json.loads((tmp_path / "m" / "training.json").read_text())
    assert record["data"]["rows"] == 8 * 4 + 2
    assert record["labels"] == ["card", "food", "travel", "weather"]


def test_a_file_of_nothing_but_faults_says_so(tiny_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n,x\na,\n", encoding="utf-8")
    with pytest.raises(DataError, match="Nothing is left to train on"):
        train(
            [str(tmp_path / "rows.csv"), "--encoder", str(tiny_encoder), "--out", str(tmp_path / "m"), "--skip-faulty"]
        )


# --- pairs ------------------------------------------------------------------------------------------------------------


def pairs_of(triples: list[tuple[str, str, str]]) -> list[Row]:
    return [Row(a, same, "p.csv", line, {"text_b": b}) for line, (a, b, same) in enumerate(triples, 2)]


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=25),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=3),
)
def test_pairs_become_connected_components(joined: list[tuple[int, int]], apart: list[tuple[int, int]]) -> None:
    ends = np.array(joined).T
    components = connected_components(coo_array((np.ones(len(joined)), ends), shape=(13, 13)), directed=False)[1]
    triples = [(f"t{a}", f"t{b}", "1") for a, b in joined] + [(f"t{a}", f"t{b}", "no") for a, b in apart]
    torn = {int(components[a]) for a, b in apart if components[a] == components[b]}
    rows, faults = rows_of_pairs(pairs_of(triples), "text_b", skip=True)
    mentioned = {f"t{x}" for pair in [*joined, *apart] for x in pair}
    alone = {row.row.text for row in faults if row.kind == "text in no pair of one class"}
    label_of = {row.text: row.label for row in rows}
    for text in mentioned:
        component = components[int(text[1:])]
        members = [t for t in mentioned if components[int(t[1:])] == component]
        if len(members) < 2:
            assert text in alone
        elif component in torn:
            assert text not in label_of
        else:
            assert {label_of[t] for t in members} == {label_of[text]}
    assert len(set(label_of.values())) == len({components[int(t[1:])] for t in label_of})


def test_contradictory_pairs_are_refused_by_line() -> None:
    pairs = pairs_of([("a", "b", "1"), ("b", "c", "1"), ("c", "a", "0")])
    with pytest.raises(DataError, match=r"1 row said to be of two classes that are one: '0' at p\.csv line 4.*--skip"):
        rows_of_pairs(pairs, "text_b", skip=False)


@pytest.mark.parametrize(
    ("triples", "message"),
    [([("a", "b", "maybe")], "line 2 says 'maybe'.*Write 1"), ([("a", " ", "1")], "empty text at line 2")],
)
def test_pairs_that_say_nothing_are_refused(triples: list[tuple[str, str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of_pairs(pairs_of(triples), "text_b", skip=False)
    with pytest.raises(DataError, match=r"no column 'second'.*'text_b'.*--pair-text"):
        rows_of_pairs(pairs_of(triples), "second", skip=False)


def test_training_on_pairs(tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = sentences(8)
    by_topic: dict[str, list[str]] = {}
    for text, topic in rows:
        by_topic.setdefault(topic, []).append(text)
    chains = list(by_topic.values())
    lines = [f"{a},{b},1" for chain in chains for a, b in pairwise(chain)]
    lines += [f"{chains[0][0]},{chains[1][0]},0", f"{chains[0][0]},a lonely text about rain,0"]
    data = tmp_path / "pairs.csv"
    data.write_text("\n".join(["text_a,text_b,same", *lines]), encoding="utf-8")
    flags = ("--text", "text_a", "--pair-text", "text_b", "--label", "same", "--epochs", "1", "--batch-size", "8")
    assert train([str(data), "--encoder", str(tiny_encoder), "--out", str(tmp_path / "m"), *flags]) == 0
    record = json.loads((tmp_path / "m" / "training.json").read_text())
    assert record["data"]["rows"] == 32
    assert set(record["labels"]) == {f"class {number}" for number in range(1, len(chains) + 1)}
    assert [fault["text"] for fault in record["data"]["report"]] == ["a lonely text about rain"]
    assert "ITEMS.csv --label LABEL" in capsys.readouterr().out, "pairs are no items"
    sent = files_to_send(tmp_path / "m", with_texts=False)
    for name in set(sent) - {"tokenizer.json"}:
        content = sent[name]
        content = content if isinstance(content, bytes) else content.read_bytes()
        assert not [text for text, _ in rows if text.encode() in content], name
    for text in (chains[0][0], "4711"):
        record["labels"][0] = text
        (tmp_path / "m" / "training.json").write_text(json.dumps(record))
        assert files_to_send(tmp_path / "m", with_texts=True)
        with pytest.raises(EncoderError, match="named classes by texts"):
            files_to_send(tmp_path / "m", with_texts=False)


def test_a_text_with_a_column_called_fault_is_no_picture() -> None:
    row = Row("a", None, "rows.csv", 2, {"fault": "none"})
    with pytest.raises(DataError, match=r"rows\.csv: an empty label at line 2"):
        review([], [row], skip=False)


def test_the_reader_hands_faulty_rows_over_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,x\n,x\nb,\n", encoding="utf-8")
    faulty: list[Row] = []
    assert [row.line for row in read_rows([path], text="text", label="label", faulty=faulty)] == [2]
    assert [row.line for row in faulty] == [3, 4]
    (tmp_path / "none.csv").write_text("text,label\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"none\.csv: the file holds no rows"):
        read_rows([path, tmp_path / "none.csv"], text="text", label="label", faulty=[])
    with pytest.raises(DataError, match="empty text in column 'text' at line 3"):
        read_rows([path], text="text", label="label")
