"""Building a collection: whole and calibrated, or an explanation and not a trace on disk."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index import build as module
from index.backup import copy_collection
from index.build import build_collection
from index.calibration.sources import Held
from index.collection import Collection
from index.data.rows import Row, text_key
from index.errors import CollectionError, DataError, EncoderError, SurematchError, WriterBusy
from index.items.new_items import NewItem
from tests.index.conftest import World
from tests.index.helpers import sentences


def listing(folder: Path) -> list[str]:
    # the writers' lock stays where it was ever taken, and says nothing of the collection
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "writer.lock")


def test_a_collection_is_whole_and_self_contained(built: Path) -> None:
    assert {path.name for path in built.iterdir()} == {"collection.json", "encoder", "items.sqlite", "snapshots"}
    assert [path.name for path in built.parent.iterdir()] == [built.name]
    opened = Collection.open(built)
    described = opened.describe()
    opened.close()
    assert (described["items"], described["labels"], described["calibrated"], described["reason"]) == (
        180,
        3,
        True,
        None,
    )
    items, apart = described["warnings"]
    assert items.startswith("5 of 180 calibration queries are items")  # the same words in another order
    assert "told apart without one error" in apart  # these topics are
    queries = described["calibration"]["queries"]
    assert (queries["known"], queries["unknown"], queries["unknown_share"]) == (114, 57, 0.4)
    assert queries["unknowns"] == "57 real unknown queries"


def changed(rows: list[Row], at: int, **values: object) -> list[Row]:
    return [dataclasses.replace(row, **values) if number == at else row for number, row in enumerate(rows)]  # type: ignore[arg-type]


Fault = Callable[[World], dict[str, object]]
FAULTS: dict[str, tuple[Fault, type[SurematchError], str]] = {
    "no rows": (lambda world: {"rows": []}, DataError, "no rows"),
    "no such encoder": (lambda world: {"model": "no-such-encoder"}, EncoderError, "No encoder"),
    "not an encoder": (lambda world: {"model": str(world.encoder.parent)}, EncoderError, "modules.json"),
    "a text that encodes to nothing": (
        lambda world: {"rows": changed(world.rows(world.items), 5, text="\u2028", line=999)},
        DataError,
        "line 999: The encoder finds nothing",
    ),
    "half a character": (
        lambda world: {"rows": changed(world.rows(world.items), 5, text="card \ud800", line=999)},
        DataError,
        "line 999: Item .* the text holds half",
    ),
    "half a character in a label": (
        lambda world: {"rows": changed(world.rows(world.items), 5, label="\ud800", line=999)},
        DataError,
        "line 999: .* label holds half",
    ),
    "a consent that cannot be kept to": (
        lambda world: {"rows": changed(world.rows(world.items), 5, extra={"consent": {"expires": "never"}}, line=999)},
        DataError,
        "line 999: consent.expires: got 'never'",
    ),
    "the same file twice": (
        lambda world: {"rows": world.rows(world.items) * 2},
        DataError,
        "line 2: the id 'items.csv:2' was already used at",
    ),
    "no such id column": (lambda world: {"id_column": "nr"}, DataError, "no column 'nr'"),
    "an item without an id": (
        lambda world: {
            "id_column": "nr",
            "rows": [dataclasses.replace(r, extra={"nr": None}) for r in world.rows(world.items)],
        },
        DataError,
        "holds no id",
    ),
    "an id that cannot be stored": (
        lambda world: {
            "id_column": "nr",
            "rows": changed(
                [dataclasses.replace(r, extra={"nr": f"{r.line}"}) for r in world.rows(world.items)],
                5,
                extra={"nr": "x" * 513},
                line=999,
            ),
        },
        DataError,
        "line 999: An id must have 1 to 512 bytes",
    ),
    "known queries outside the gallery": (
        lambda world: {"held": Held(world.rows(world.held_unknown))},
        DataError,
        "held_unknown.csv: line 2: the label 'weather' is not in the gallery.*--unknown FILE",
    ),
    "unknown queries inside the gallery": (
        lambda world: {"held": Held(world.rows(world.held), world.rows(world.test))},
        DataError,
        "test.csv: line 2: the label 'card' is in the gallery.*--calibrate",
    ),
}


@pytest.mark.parametrize(("fault", "error", "said"), FAULTS.values(), ids=FAULTS)
def test_bad_input_leaves_nothing_behind(
    world: World, tmp_path: Path, fault: Fault, error: type[SurematchError], said: str
) -> None:
    arguments: dict[str, object] = {"model": str(world.encoder), "rows": world.rows(world.items), **fault(world)}
    with pytest.raises(error, match=said):
        build_collection(arguments.pop("model"), arguments.pop("rows"), tmp_path / "new" / "c", **arguments)  # type: ignore[arg-type]
    assert listing(tmp_path) == []


def test_what_cannot_be_stored_is_found_before_anything_is_encoded(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "encode_stream", lambda *given, **more: pytest.fail("texts were encoded"))
    deep: object = "x"
    for _ in range(99):
        deep = [deep]
    for wrong in ({"label": "\ud800"}, {"text": "\ud800"}, {"extra": {"a": "\ud800"}}, {"extra": {"a": deep}}):
        with pytest.raises(DataError, match=r"items\.csv: line 2: Item"):
            build_collection(str(world.encoder), changed(world.rows(world.items), 0, **wrong), tmp_path / "c")


@pytest.mark.parametrize(
    "step", ["install_encoder", "encode_stream", "calibration_queries", "keep_queries", "write_snapshot"]
)
def test_a_crash_at_any_step_leaves_the_old_collection(
    world: World, copied: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    Collection.open(copied, writable=True).close()  # where a writer was, its lock's file stays
    before = {path: path.read_bytes() for path in copied.parent.rglob("*") if path.is_file()}

    def crash(*arguments: object, **options: object) -> None:
        raise RuntimeError("crash")

    monkeypatch.setattr(module, step, crash)
    held = Held(world.rows(world.held))
    with pytest.raises(RuntimeError, match="crash"):
        build_collection(str(world.encoder), world.rows(world.items), copied, held=held, overwrite=True)
    assert {path: path.read_bytes() for path in copied.parent.rglob("*") if path.is_file()} == before


def test_a_failed_replacement_puts_the_old_collection_back(
    world: World, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = listing(copied.parent), Path.rename

    def rename(self: Path, target: Path) -> Path:
        if target == copied and not self.name.endswith("-old"):
            raise OSError("crash")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(CollectionError, match=r"could not be written .crash"):
        build_collection(str(world.encoder), world.rows(world.items), copied, overwrite=True)
    assert listing(copied.parent) == before


def test_an_existing_place_is_not_overwritten_by_accident(world: World, copied: Path, tmp_path: Path) -> None:
    rows = world.rows(world.items)
    with pytest.raises(CollectionError, match=r"already exists.*--overwrite"):
        build_collection(str(world.encoder), rows, copied)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "only copy.txt").write_text("precious")
    with pytest.raises(CollectionError, match="not a collection"):
        build_collection(str(world.encoder), rows, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "only copy.txt").read_text() == "precious"
    (copied / "notes.txt").write_text("precious")
    with pytest.raises(CollectionError, match=r"beside the collection it holds notes\.txt, which --overwrite would"):
        build_collection(str(world.encoder), rows, copied, overwrite=True)
    assert (copied / "notes.txt").read_text() == "precious"


def test_overwrite_replaces_the_whole_collection(world: World, copied: Path) -> None:
    build_collection(str(world.encoder), world.rows(world.test), copied, overwrite=True)
    opened = Collection.open(copied)
    assert opened.size == 90
    opened.close()
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


def test_ids_come_from_a_column_or_from_the_place(world: World, tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, extra={"nr": at, "note": "é"}) for at, row in enumerate(world.rows(world.items))]
    for number, (column, expected, kept) in enumerate(
        [("nr", "0", {"note": "é"}), (None, "items.csv:2", {"nr": 0, "note": "é"})]
    ):
        build_collection(str(world.encoder), rows, tmp_path / str(number), id_column=column)
        opened = Collection.open(tmp_path / str(number))
        hit = opened.search([rows[0].text], k=1)[0].hits[0]
        opened.close()
        assert (hit.id, hit.metadata) == (expected, kept)


@pytest.mark.parametrize(
    ("given", "said"),
    [(None, "no id"), ("", "no id"), (float("nan"), "no id"), ([1], "a list"), ({"a": 1}, "a dict"), (b"a", "a bytes")],
)
def test_what_is_no_id_is_refused(world: World, tmp_path: Path, given: object, said: str) -> None:
    rows = [dataclasses.replace(row, extra={"nr": at}) for at, row in enumerate(world.rows(world.items))]
    with pytest.raises(DataError, match=rf"items\.csv: line 3: (the )?column 'nr' holds {said}"):
        build_collection(str(world.encoder), changed(rows, 1, extra={"nr": given}), tmp_path / "c", id_column="nr")


@pytest.mark.parametrize(
    ("count", "topics", "said"),
    [
        (5, ("card", "food"), "at least 20 are needed"),
        (300, ("card",), "All items of the gallery have one label"),
        (1, ("card",), ""),
    ],
    ids=["few rows", "one class", "one row"],
)
def test_without_an_honest_calibration_it_says_why(
    world: World, tmp_path: Path, count: int, topics: tuple[str, ...], said: str
) -> None:
    rows = [Row(text, label, "x.csv", at + 2) for at, (text, label) in enumerate(sentences(count, topics))]
    described = build_collection(str(world.encoder), rows, tmp_path / "c")
    assert described["calibrated"] is False
    assert described["calibration"] is None
    assert said in described["reason"]
    opened = Collection.open(tmp_path / "c")
    answer = opened.search([rows[0].text])[0]
    opened.close()
    assert (answer.calibrated, answer.reason) == (False, described["reason"])
    assert {answer.labels, answer.no_match, answer.decision, answer.prediction_set, answer.coverage} == {None}  # type: ignore[arg-type]
    assert {hit.probability for hit in answer.hits} == {None}


def test_rows_the_encoder_was_trained_on_never_calibrate(world: World, tmp_path: Path) -> None:
    encoder = Path(shutil.copytree(world.encoder, tmp_path / "encoder"))
    items, held = world.rows(world.items), world.rows(world.held)
    np.save(encoder / "trained_rows.npy", np.array(sorted(text_key(row.text) for row in items + held[:20]), np.uint64))
    described = build_collection(str(encoder), items, tmp_path / "none")
    assert "Every row of the gallery was used to train" in described["reason"]
    described = build_collection(str(encoder), items, tmp_path / "given", held=Held(held))
    assert described["calibration"]["queries"]["known"] == 95  # of 100, five that show nothing new
    assert any(
        warning.startswith("20 of 120 calibration queries were in the encoder's") for warning in described["warnings"]
    )
    assert any(warning.startswith("Unknown queries were imitated") for warning in described["warnings"])
    unknown = world.rows(world.held_unknown)
    for real, said in ((1, True), (len(unknown), False)):
        both = Held(held, unknown[:real])
        described = build_collection(str(encoder), items, tmp_path / str(real), held=both, unknown_share=0.2)
        assert any(w.startswith("Beside the 1 given, unknown queries") for w in described["warnings"]) == said


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04zip"], ids=["empty", "garbage", "archive"])
def test_a_damaged_list_of_trained_rows_is_refused(world: World, tmp_path: Path, content: bytes) -> None:
    encoder = Path(shutil.copytree(world.encoder, tmp_path / "encoder"))
    (encoder / "trained_rows.npy").write_bytes(content)
    with pytest.raises(CollectionError, match=r"trained_rows\.npy: cannot be read"):
        build_collection(str(encoder), world.rows(world.items), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_unlabelled_items_stand_for_themselves(world: World, tmp_path: Path) -> None:
    rows = world.rows(world.items)
    rows[-1] = dataclasses.replace(rows[-1], text="unheard wind melody", label=None)
    described = build_collection(str(world.encoder), rows, tmp_path / "c", held=Held(world.rows(world.held)))
    assert described["labels"] == 4
    opened = Collection.open(tmp_path / "c")
    answer = opened.search(["unheard wind melody"], k=2, coverage=0.9)[0]
    opened.close()
    assert (answer.hits[0].label, answer.hits[0].id) == (None, f"items.csv:{rows[-1].line}")
    assert answer.labels is not None
    itself = [entry for entry in answer.labels if entry.id == answer.hits[0].id]
    assert [entry.probability for entry in itself] == [answer.hits[0].probability]


def test_texts_longer_than_the_encoder_reads_are_named(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = world.rows(world.items)
    monkeypatch.setattr("index.encoders.text_encoders.StaticEncoder.too_long", lambda self, texts: [1, 3])
    described = build_collection(str(world.encoder), rows, tmp_path / "C")
    (said,) = [warning for warning in described["warnings"] if "their ends are ignored" in warning]
    assert f"{rows[1].file} line {rows[1].line}, {rows[3].file} line {rows[3].line}" in said


def test_a_collection_that_is_written_to_is_not_replaced(world: World, copied: Path) -> None:
    live = Collection.open(copied, writable=True)
    before = live.snapshot_id
    with pytest.raises(WriterBusy, match=f"process {os.getpid()} is writing to it"):
        build_collection(str(world.encoder), world.rows(world.items), copied, overwrite=True)
    assert live.upsert([NewItem("kept", "card", "bank card")]).written == 1
    live.close()
    again = Collection.open(copied)
    assert (again.snapshot_id, again.item("kept") is not None) == (before, True)
    again.close()
    refused: list[bool] = []

    def meanwhile(what: str, done: int, of: int) -> None:
        with pytest.raises(WriterBusy):
            Collection.open(copied, writable=True)
        refused.append(True)

    build_collection(str(world.encoder), world.rows(world.items), copied, overwrite=True, progress=meanwhile)
    assert len(refused) > 1, "what is written while the replacement is built would be lost"
    replaced = Collection.open(copied, writable=True)
    assert replaced.item("kept") is None
    replaced.close()


def test_a_collection_and_its_copies_are_as_readable_as_the_umask_lets_them_be(world: World, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        build_collection(str(world.encoder), world.rows(world.items), tmp_path / "topics")
        opened = Collection.open(tmp_path / "topics", writable=True)
        opened.upsert([NewItem("new", "card", "bank card")])
        opened.snapshot()
        opened.close()
        copy_collection(tmp_path / "topics", tmp_path / "copy", lambda what, done, of: None)
    finally:
        os.umask(before)
    made = [path for name in ("topics", "copy") for path in (tmp_path / name, *(tmp_path / name).rglob("*"))]
    open_to_others = [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert not open_to_others
