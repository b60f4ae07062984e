"""The verbs on pictures: what cannot be used is named with its place, or left out and listed."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from sklearn.metrics import roc_curve

from index.collection import Collection
from index.encoders.by_name import load_encoder
from index.encoders.image_encoder import NetworkEncoder, Source, image_encoder
from index.encoders.image_network import ImageNetwork
from index.encoders.pictures import picture_of, read_pictures
from index.errors import CollectionError, DataError, EncoderError, SettingsError
from index.verbs import cli, cli_items
from index.verbs.embed import embed
from tests.index.conftest import World
from tests.pictures import digit, packed, write_digits


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder") / "small"
    network = ImageNetwork(size=24, width=8, dimension=16)
    SentenceTransformer(modules=[network], device="cpu").save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_digits(tmp_path / "people", range(3), range(4))


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder takes no picture of the digit 2, as a face encoder takes none without a face."""
    real = NetworkEncoder.encode_images

    def encode_images(self: NetworkEncoder, images: Sequence[Source]) -> Any:
        for image in images:
            if "d2" in str(image):
                raise DataError(f"{image}: no face found. Use another.")
        return real(self, images)

    monkeypatch.setattr(NetworkEncoder, "encode_images", encode_images)


def table(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("path", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def told(capsys: pytest.CaptureFixture[str], verb: Any, *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert verb([*map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def ask(verb: Any, *words: object) -> None:
    verb([*map(str, words)])


def faulty_table(people: Path) -> Path:
    """Lines 2 to 5 are sound; then an empty label, an empty path, a broken picture, one that is not there."""
    (people / "cut.png").write_bytes(packed(digit(0, 9))[:-60])
    sound = [(f"d{label}/{which:03d}.png", f"d{label}") for label in range(2) for which in range(2)]
    return table(people / "t.csv", [*sound, ("d0/003.png", ""), ("", "d1"), ("cut.png", "d0"), ("nobody.png", "d1")])


def test_a_collection_of_pictures_is_asked_with_a_picture(
    encoder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(cli.index, encoder, people, "--out", tmp_path / "c")
    assert f"surematch search {tmp_path / 'c'} PICTURE" in " ".join(capsys.readouterr().out.split())


def test_an_encoder_of_texts_says_what_reads_pictures(world: World, people: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "people.zip", "w") as packed_people:
        packed_people.write(people / "d0" / "000.png", "d0/000.png")
    for pictures in (people, tmp_path / "people.zip"):
        with pytest.raises(DataError, match=r"Pictures are read by an encoder of pictures: sface"):
            ask(cli.index, world.encoder, pictures, "--label", "label", "--out", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_faults_in_a_table_name_the_line_and_the_picture(
    encoder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = faulty_table(people)
    command = (encoder, rows, "--label", "label", "--out", tmp_path / "c")
    with pytest.raises(DataError) as caught:
        ask(cli.index, *command)
    said = str(caught.value)
    assert said.startswith(
        f"4 files cannot be used: {rows}: line 6: {people}/d0/003.png: an empty cell in column 'label'"
    )
    assert f"{rows}: line 7: an empty cell in column 'path'" in said
    assert f"{rows}: line 8: {people}/cut.png: The picture cannot be decoded" in said
    assert f"{rows}: line 9: {people}/nobody.png: cannot be read (No such file or directory)" in said
    assert said.endswith("Replace or delete these files, or leave them out with --skip-faulty.")
    built = told(capsys, cli.index, *command, "--skip-faulty")
    assert built["items"] == 4
    assert [(fault["file"], fault["table"], fault["line"]) for fault in built["left_out"]] == [
        (f"{people}/d0/003.png", str(rows), 6),
        (None, str(rows), 7),
        (f"{people}/cut.png", str(rows), 8),
        (f"{people}/nobody.png", str(rows), 9),
    ]
    assert built["left_out"][3]["reason"].startswith("cannot be read")


def test_five_faulty_pictures_are_named_and_the_others_counted(encoder: Path, people: Path, tmp_path: Path) -> None:
    for at in range(7):
        (people / "d1" / f"cut{at}.png").write_bytes(packed(digit(1, 9))[:-60])
    with pytest.raises(DataError, match=r"^7 files cannot .*cut4\.png: The[^;]* and 2 more\. .*--skip-faulty\.$"):
        ask(cli.index, encoder, people, "--out", tmp_path / "c")


def test_all_pictures_left_out_are_listed_one_a_line(
    encoder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for at in range(7):
        (people / "d1" / f"cut{at}.png").write_bytes(packed(digit(1, 9))[:-60])
    ask(cli.index, encoder, people, "--out", tmp_path / "c", "--skip-faulty")
    lines = capsys.readouterr().err.splitlines()
    assert "7 pictures were left out:" in lines
    for at in range(7):
        assert sum(line.startswith(f"{people}/d1/cut{at}.png: The picture cannot be") for line in lines) == 1
    capsys.readouterr()
    ask(cli.evaluate, tmp_path / "c", people, "--skip-faulty")
    assert "7 pictures were left out:" in capsys.readouterr().err


def test_a_picture_that_cannot_be_encoded_is_named_with_the_flag(
    encoder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], picky: None
) -> None:
    with pytest.raises(DataError, match=r"d2/000\.png: no face found\. Use another\. Or leave .*--skip-faulty"):
        ask(cli.index, encoder, people, "--out", tmp_path / "c")
    built = told(capsys, cli.index, encoder, people, "--out", tmp_path / "c", "--skip-faulty")
    assert built["items"] == 8
    assert built["left_out"][0] == {
        "file": str(people / "d2" / "000.png"),
        "table": None,
        "line": None,
        "reason": "no face found. Use another.",
    }
    rows = table(people / "t.csv", [("d1/000.png", "d1"), ("d2/001.png", "d1")])
    words = (tmp_path / "c", rows, "--label", "label")
    with pytest.raises(DataError, match=r"t\.csv: line 3: .*/d2/001\.png: no face found\. .*--skip-faulty"):
        ask(cli.evaluate, *words)
    assert told(capsys, cli.evaluate, *words, "--skip-faulty")["left_out"][0]["line"] == 3


def test_where_no_picture_is_left_the_reasons_are_told(
    encoder: Path, people: Path, tmp_path: Path, picky: None
) -> None:
    (tmp_path / "faceless").mkdir()
    (people / "d2").rename(tmp_path / "faceless" / "d2")
    why = r"^No picture is left: 4 files cannot be used: .*d2/000\.png: no face found"
    with pytest.raises(DataError, match=why):
        ask(cli.index, encoder, tmp_path / "faceless", "--out", tmp_path / "c", "--skip-faulty")
    ask(cli.index, encoder, people, "--out", tmp_path / "c", "--skip-faulty")
    with pytest.raises(DataError, match=why):
        ask(cli.evaluate, tmp_path / "c", tmp_path / "faceless", "--skip-faulty")
    with pytest.raises(DataError, match=why):
        ask(cli.evaluate, tmp_path / "c", people, "--unknown", tmp_path / "faceless", "--skip-faulty")
    for at in range(6):
        (tmp_path / "faceless" / "d2" / f"{at:03d}.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"No picture is left: 6 files .* and 1 more\."):
        ask(cli.index, encoder, tmp_path / "faceless", "--out", tmp_path / "d", "--skip-faulty")


@pytest.fixture
def gallery(encoder: Path, people: Path, tmp_path: Path) -> Path:
    ask(cli.index, encoder, people, "--out", tmp_path / "c")
    return tmp_path / "c"


@pytest.mark.parametrize("form", ["folder", "zip", "table"])
def test_pictures_are_added_as_they_are_indexed(
    encoder: Path, gallery: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    new = write_digits(tmp_path / "new", range(2, 5), range(3, 6))
    words: tuple[object, ...] = (new,)
    if form == "zip":
        words = (shutil.make_archive(str(tmp_path / "new"), "zip", new),)
    elif form == "table":
        rows = [(f"d{label}/{at:03d}.png", f"d{label}", "door") for label in range(2, 5) for at in range(3, 6)]
        words = (table(new / "new.csv", rows, ("path", "label", "camera")), "--label", "label")
    added = told(capsys, cli_items.add, gallery, *words)
    assert (added["written"], added["replaced"], added["items"]) == (9, 1, 20)
    assert "left_out" not in added
    ask(cli.index, encoder, *words, "--out", tmp_path / "d", *(() if form == "table" else ("--label", "label")))
    with (
        closing(Collection.open(gallery)) as live,
        closing(Collection.open(tmp_path / "d")) as built,
    ):
        for name in ("d2/003.png", "d4/005.png"):
            (mine,), (theirs,) = (one.search_images([new / name], k=1) for one in (live, built))
            (hit,) = mine.hits
            assert (hit.id, hit.label, hit.text, hit.score) == (name, name[:2], None, pytest.approx(1, abs=1e-5))
            assert hit.metadata == theirs.hits[0].metadata == ({"camera": "door"} if form == "table" else {})
            assert theirs.hits[0].id == name


def test_ids_of_added_pictures_come_from_a_column_and_labels_from_that_of_the_collection(
    gallery: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table(
        people / "t.csv", [("d0/000.png", "zero", "s1"), ("d1/001.png", "one", "s2")], ("path", "label", "sku")
    )
    for flags, kept in (((), ("zero", None)), (("--label", ""), (None, {"label": "zero"}))):
        assert told(capsys, cli_items.add, gallery, rows, "--id", "sku", "--replace", *flags)["items"] == 14
        with closing(Collection.open(gallery)) as live:
            found = {hit.id: hit for hit in live.search_images([people / "d0" / "000.png"], k=14)[0].hits}
        assert (found["s1"].label, found["s1"].metadata or None) == kept


def test_faulty_pictures_are_not_added_or_left_out(
    gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], picky: None
) -> None:
    new = write_digits(tmp_path / "new", range(1, 3), range(5, 7))
    (new / "d1" / "cut.png").write_bytes(packed(digit(1, 9))[:-60])
    with pytest.raises(DataError, match=r"^1 file cannot .*cut\.png.*--skip-faulty"):
        ask(cli_items.add, gallery, new)
    added = told(capsys, cli_items.add, gallery, new, "--skip-faulty")
    assert (added["written"], added["items"]) == (2, 14)
    assert [Path(fault["file"]).name for fault in added["left_out"]] == ["cut.png", "005.png", "006.png"]
    ask(cli_items.add, gallery, new, "--skip-faulty")
    assert "3 pictures were left out:" in capsys.readouterr().err.splitlines()
    (new / "nobody.png").write_bytes(packed(digit(1, 9)))
    with pytest.raises(DataError, match=r"nobody\.png: it lies in no folder"):
        ask(cli_items.add, gallery, new)


def test_batches_of_pictures_are_added_whole_or_not_at_all(
    gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picky: None
) -> None:
    monkeypatch.setattr("index.encoders.encode.BATCH", 4)
    new = write_digits(tmp_path / "new", range(1, 3), range(5, 11))
    words = r"d2/005\.png: no face found.*--skip-faulty\. The first 4 of 12 items were written before"
    with pytest.raises(DataError, match=words):
        ask(cli_items.add, gallery, new)
    with closing(Collection.open(gallery)) as live:
        assert live.size == 16


def test_pictures_are_embedded_with_their_paths_and_labels(
    encoder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = told(capsys, embed, encoder, people, "--out", tmp_path / "v")
    assert (made["rows"], made["dimension"]) == (12, 16)
    found = parquet.read_table(tmp_path / "v")
    assert found.column_names == ["path", "label", "vector"]
    paths = [f"d{label}/{at:03d}.png" for label in range(3) for at in range(4)]
    assert found.column("path").to_pylist() == paths
    assert found.column("label").to_pylist() == [path[:2] for path in paths]
    expected = image_encoder(load_encoder(encoder)).encode_images([people / path for path in paths])
    vectors = np.array(found.column("vector").to_pylist(), np.float32)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    ask(embed, encoder, shutil.make_archive(str(tmp_path / "people"), "zip", people), "--out", tmp_path / "z")
    assert parquet.read_table(tmp_path / "z").column("path").to_pylist() == paths


@pytest.mark.parametrize("column", ["path", "photo"])
def test_a_table_of_pictures_is_embedded_with_its_columns(
    encoder: Path, people: Path, tmp_path: Path, column: str
) -> None:
    rows = table(people / "t.csv", [("d0/000.png", "zero", "7"), ("d0/000.png", "one", "8")], (column, "label", "age"))
    ask(embed, encoder, rows, "--out", tmp_path / "v", *(("--text", "photo") if column == "photo" else ()))
    assert parquet.read_table(tmp_path / "v").select([column, "label", "age"]).to_pylist() == [
        {column: "d0/000.png", "label": "zero", "age": "7"},
        {column: "d0/000.png", "label": "one", "age": "8"},
    ]


def test_faulty_pictures_are_not_embedded_or_left_out(
    encoder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], picky: None
) -> None:
    (people / "d0" / "cut.png").write_bytes(packed(digit(0, 9))[:-60])
    words = (embed, encoder, people, "--out", tmp_path / "v")
    with pytest.raises(DataError, match=r"^1 file cannot .*cut\.png.*--skip-faulty"):
        ask(*words)
    made = told(capsys, *words, "--skip-faulty")
    assert made["rows"] == parquet.read_table(tmp_path / "v").num_rows == 8
    assert [Path(fault["file"]).name for fault in made["left_out"]] == [
        "cut.png",
        *(f"{at:03d}.png" for at in range(4)),
    ]


PAIRED = ("--text", "a", "--pair-text", "b", "--label", "same")


def pairs_of(people: Path, file: Path) -> Path:
    """Every pair of pictures, once."""
    paths = sorted(path.relative_to(people).as_posix() for path in people.rglob("*.png"))
    rows = [(a, b, str(int(a[:2] == b[:2]))) for at, a in enumerate(paths) for b in paths[at + 1 :]]
    return table(file, rows, ("a", "b", "same"))


def test_pairs_of_pictures_are_measured_as_pairs_of_texts_are(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    people = write_digits(tmp_path / "digits", range(4), range(8))
    beside, elsewhere = pairs_of(people, people / "pairs.csv"), pairs_of(people, tmp_path / "pairs.csv")
    seen: list[Source] = []
    real = NetworkEncoder.encode_images

    def encode_images(self: NetworkEncoder, images: Sequence[Source]) -> Any:
        seen.extend(images)
        return real(self, images)

    monkeypatch.setattr(NetworkEncoder, "encode_images", encode_images)
    report = told(capsys, cli.evaluate, encoder, beside, *PAIRED)
    assert len(seen) == len(set(seen)) == 32
    assert (report["pairs"], report["same_share"]) == (496, pytest.approx(4 * 28 / 496))
    assert report["brier"] < report["base_rate"]["brier"]
    assert report == told(capsys, cli.evaluate, encoder, elsewhere, *PAIRED, "--pictures", people)

    beside.unlink()
    rows = read_pictures([people], text="text", label="label")
    vectors = image_encoder(load_encoder(encoder)).encode_images([picture_of(row) for row in rows])
    at = np.triu_indices(32, 1)
    same = np.array([row.label for row in rows])[at[0]] == np.array([row.label for row in rows])[at[1]]
    false, true, _ = roc_curve(same, (vectors @ vectors.T)[at], drop_intermediate=False)
    tenth, hundredth, _ = report["tar_at_far"]
    assert tenth["tar"] == pytest.approx(true[false <= 0.1].max())
    assert (hundredth["tar"], hundredth["pairs_needed"]) == (None, 3000)  # 384 pairs of two cannot tell
    ask(cli.evaluate, encoder, elsewhere, *PAIRED, "--pictures", people)
    assert f"takes 10% of the pairs of two classes for one (FAR) and accepts {tenth['tar']:.1%}" in " ".join(
        capsys.readouterr().out.split()
    )


def test_pairs_of_faulty_pictures_are_named_or_left_out(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], picky: None
) -> None:
    people = write_digits(tmp_path / "digits", (*range(2), *range(3, 6)), range(6))
    pairs = pairs_of(people, people / "pairs.csv")
    (people / "d0" / "005.png").write_bytes(b"nothing")
    (people / "d1" / "005.png").rename(people / "d2.png")
    pairs.write_text(pairs.read_text().replace("d1/005.png", "d2.png"))
    broken = (
        r"^1 file cannot be used: .*pairs\.csv: line 6: .*d0/005\.png: The picture cannot be decoded.*--skip-faulty"
    )
    with pytest.raises(DataError, match=broken):
        ask(cli.evaluate, encoder, pairs, *PAIRED)
    report = told(capsys, cli.evaluate, encoder, pairs, *PAIRED, "--skip-faulty")
    assert [(Path(fault["file"]).name, fault["line"]) for fault in report["left_out"]] == [
        ("005.png", 6),
        ("d2.png", 12),
    ]
    assert report["pairs"] == 28 * 27 // 2
    assert report["warnings"] == ["57 of 435 pairs hold a picture that was left out and were not measured."]
    (people / "d0" / "005.png").write_bytes(packed(digit(0, 5)))
    with pytest.raises(DataError, match=r"pairs\.csv: line \d+: .*/d2\.png: no face found\. Use another\. Or leave"):
        ask(cli.evaluate, encoder, pairs, *PAIRED)


def test_what_pairs_of_pictures_cannot_be_asked_with_is_said(world: World, encoder: Path, people: Path) -> None:
    pairs = pairs_of(people, people / "pairs.csv")
    with pytest.raises(SettingsError, match="there is no such folder"):
        ask(cli.evaluate, encoder, pairs, *PAIRED, "--pictures", people / "none")
    with pytest.raises(SettingsError, match="this encoder takes texts"):
        ask(cli.evaluate, world.encoder, pairs, *PAIRED, "--pictures", people)
    with pytest.raises(SettingsError, match="which --pair-text asks for"):
        ask(cli.evaluate, world.encoder, pairs, "--pictures", people)
    with pytest.raises(SettingsError, match="leaves out pictures only"):
        ask(cli.evaluate, world.encoder, pairs, *PAIRED, "--skip-faulty")


@pytest.mark.parametrize("name", ["NOSUCHMODEL", "nosuch.onnx", "people"])
def test_an_encoder_that_is_none_is_said_first(
    people: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for flags in ((), ("--label", "label")):
        with pytest.raises(EncoderError, match=name):
            ask(cli.index, name, people, "--out", tmp_path / "c", *flags)


def test_what_is_no_collection_is_said_before_its_label_is_asked_for(people: Path, tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="not a collection"):
        ask(cli.evaluate, tmp_path / "none", people)


def test_what_is_no_collection_and_no_picture_is_said(built: Path, people: Path, tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="not a collection"):
        ask(cli_items.add, tmp_path / "none", people)
    with pytest.raises(SettingsError, match="leaves out pictures only"):
        ask(cli_items.add, built, people, "--label", "label", "--skip-faulty")


def test_columns_of_no_table_are_refused_and_no_labels_means_none(
    encoder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c"
    with pytest.raises(SettingsError, match=r"^--text photo and --label person: a column of a table"):
        ask(cli.index, encoder, people, "--text", "photo", "--label", "person", "--out", out)
    ask(cli.index, encoder, people, "--label", "label", "--out", out)
    more = write_digits(tmp_path / "more", range(1), range(4, 6))
    for verb in (cli.evaluate, cli_items.add):
        with pytest.raises(SettingsError, match="--label person"):
            ask(verb, out, more, "--label", "person")
    assert told(capsys, cli_items.add, out, more, "--label", "")["written"] == 2
    with closing(Collection.open(out)) as opened:
        assert [opened.item(f"d0/{at:03d}.png").label for at in (0, 4, 5)] == ["d0", None, None]  # type: ignore[union-attr]
