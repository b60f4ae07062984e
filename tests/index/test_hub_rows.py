"""Hugging Face data sets as rows, from folders as the library itself writes them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed: no data set was read")

from index.data.rows import read_rows  # noqa: E402
from index.errors import DataError  # noqa: E402

TEXTS = ["a card", "the rain", "a bank", "no label"]
LABEL = {"name": "label", "dtype": {"class_label": {"names": {"0": "rain", "1": "weather"}}}}
PLAIN = {"text": TEXTS, "label": ["card", "weather", "card", "none"], "price": [1.5, 2.0, None, 4.0]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def coded() -> object:
    """Labels as codes of named classes; -1 is no label."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    return datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 0, -1]}, features=features)


def read(path: Path, **flags: object) -> list[tuple[str, str | None, int]]:
    return [(row.text, row.label, row.line) for row in read_rows([path], text="text", label="label", **flags)]


def test_a_saved_data_set_gives_names_for_its_class_codes(tmp_path: Path) -> None:
    coded().save_to_disk(tmp_path / "saved")
    expected = [("a card", "x", 1), ("the rain", "y", 2), ("a bank", "x", 3), ("no label", None, 4)]
    assert read(tmp_path / "saved", require_label=False) == expected
    with pytest.raises(DataError, match=r"saved: an empty label in column 'label' at line 4\."):
        read(tmp_path / "saved")


def test_splits_are_chosen_by_name_and_train_by_default(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(PLAIN)
    datasets.DatasetDict({"train": rows.select([0, 1]), "test": rows.select([2])}).save_to_disk(tmp_path / "d")
    assert [text for text, _, _ in read(tmp_path / "d")] == TEXTS[:2]
    assert read(tmp_path / "d:test") == [("a bank", "card", 1)]
    with pytest.raises(DataError, match=r"no split 'dev'; it has 'train', 'test'\..*:SPLIT"):
        read(tmp_path / "d:dev")
    datasets.DatasetDict({"a": rows, "b": rows}).save_to_disk(tmp_path / "e")
    with pytest.raises(DataError, match="several splits and none called train; it has 'a', 'b'"):
        read(tmp_path / "e")
    rows.save_to_disk(tmp_path / "f")
    with pytest.raises(DataError, match=r"has no splits\. Leave :train out"):
        read(tmp_path / "f:train")


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_a_folder_of_data_files_is_read_as_the_hub_keeps_it(kind: str, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(PLAIN)
    (tmp_path / "repo" / "data").mkdir(parents=True)
    for split, part in (("train", rows.select([0, 1])), ("test", rows.select([2]))):
        ending = "jsonl" if kind == "json" else kind
        getattr(part, f"to_{kind}")(tmp_path / "repo" / "data" / f"{split}-00000-of-00001.{ending}")
    assert read(tmp_path / "repo") == [("a card", "card", 1), ("the rain", "weather", 2)]
    assert read(tmp_path / "repo:test") == [("a bank", "card", 1)]
    (row,) = read_rows([tmp_path / "repo:test"], text="text", label="label")
    assert row.extra == {"price": "" if kind == "csv" else None}, "as the file alone is read"


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_folder_of_text_files_says_what_its_files_say(ending: str, tmp_path: Path) -> None:
    """The library would read 001 and 1 as one label, NA as nothing, and a day as a moment."""
    (tmp_path / "repo").mkdir()
    rows = [("one", "001", "00003"), ("two", "1", "NA"), ("Namibia", "NA", "2024-01-01"), ("none", "None", "n/a")]
    mark = "\t" if ending == "tsv" else ","
    lines = [mark.join(row) for row in (("text", "label", "code"), *rows)]
    if ending == "jsonl":
        lines = [json.dumps(dict(zip(("text", "label", "code"), row, strict=True))) for row in rows]
        lines.append('{"text": "large", "label": "x", "nested": {"k": 9223372036854775808}}')
    files = [tmp_path / "repo" / f"train-{part}.{ending}" for part in "ab"]
    for file in files:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = [read_rows([path], text="text", label="label") for path in (tmp_path / "repo", files[0])]
    found, alone = ([(row.text, row.label, row.extra) for row in of] for of in read)
    assert found == alone * 2
    assert [row.line for row in read[0]] == list(range(1, 2 * len(alone) + 1))
    assert [label for _, label, _ in alone][:4] == ["001", "1", "NA", "None"]


def test_what_the_library_guessed_before_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "train.csv").write_text("text,label\na card,001\nthe rain,1\n")
    datasets.load_dataset(str(tmp_path / "repo"))
    assert read(tmp_path / "repo") == [("a card", "001", 1), ("the rain", "1", 2)]


def test_how_a_data_set_says_it_is_read_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "train.csv").write_text("text;label\na card;bank\n")
    card = {"configs": [{"config_name": "default", "data_files": "train.csv", "sep": ";"}]}
    (tmp_path / "repo" / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    assert read(tmp_path / "repo") == [("a card", "bank", 1)]


def test_types_that_a_data_set_declares_are_those_of_its_columns(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "train.csv").write_text("text,label\na card,1\nthe rain,0\n")
    card = {"dataset_info": {"features": [{"name": "text", "dtype": "string"}, LABEL]}}
    (tmp_path / "repo" / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    assert read(tmp_path / "repo") == [("a card", "weather", 1), ("the rain", "rain", 2)]


def test_a_missing_column_lists_those_there_are(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(PLAIN).rename_column("text", "sentence").save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"no column 'text'; it has 'sentence', 'label', 'price'\. .*--text COLUMN"):
        read(tmp_path / "saved")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nobody/nothing: .* no file or folder here, and not to be had from the Hub"):
        read(Path("nobody/nothing"))
    with pytest.raises(DataError, match="is a folder, not a file"):
        read(tmp_path)  # an empty folder
    for file in ("../people/new.zip", "people/new.zip", "../people/new"):
        with pytest.raises(DataError, match=r"no such file\. Check the path"):
            read(Path(file))
    datasets.Dataset.from_dict(PLAIN).save_to_disk(tmp_path / "saved")
    (part,) = (tmp_path / "saved").glob("*.arrow")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match="saved: the data set cannot be read"):
        read(tmp_path / "saved")


def test_no_code_of_a_data_set_runs(tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "evil" / "rows.csv").write_text("text,label\na,x\n")
    with contextlib.suppress(DataError):
        read(tmp_path / "evil")
    assert not (tmp_path / "ran").exists()


def test_archives_are_not_unpacked(tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "web").mkdir()
    (tmp_path / "a.txt").write_text("a")
    for name in ("a", "b", "c"):
        with tarfile.open(tmp_path / "web" / f"{name}.tar", "w") as file:
            file.add(tmp_path / "a.txt", "a.txt")
    (tmp_path / "web" / "rows.csv").write_text("text,label\na,x\n")
    with pytest.raises(DataError, match="read by 'webdataset', and only tables are"):
        read(tmp_path / "web")
