"""A trained encoder serves labels it never saw: what it says of them must be as honest as what it says of its own."""

from __future__ import annotations

from pathlib import Path

from index.build import build_collection
from index.collection import Collection
from index.data.rows import read_rows
from index.evaluate import evaluate
from training.cli import train


def test_on_labels_it_never_saw_it_knows_what_it_does_not_know(shared_data: Path, tmp_path: Path) -> None:
    """All rows count as held out: a label that showed one item only would not be like those that queries meet."""
    banking = shared_data / "banking77" / "train.csv"
    assert train([str(banking), "--label", "category", "--encoder", "static", "--out", str(tmp_path / "model")]) == 0
    items, test = (
        read_rows([shared_data / "clinc150" / name], text="text", label="intent") for name in ("train.csv", "test.csv")
    )
    labels = sorted({str(row.label) for row in items})[:120]
    gallery = [row for label in labels for row in [row for row in items if row.label == label][:20]]
    queries = build_collection(str(tmp_path / "model"), gallery, tmp_path / "c")["calibration"]["queries"]
    assert (queries["known"], queries["source"]) == (720, "rows held out of training")
    known, unknown = ([row for row in test if (row.label in labels) == inside] for inside in (True, False))
    collection = Collection.open(tmp_path / "c")
    found = evaluate(collection, known, unknown, progress=lambda what, done, of: None)
    collection.close()
    assert found["fpir"] < 0.5  # nearly all of them got in where one item of a label was left to see
    assert found["sets_known_unknown"][1]["unknown"] > 0.8  # of 95 %
