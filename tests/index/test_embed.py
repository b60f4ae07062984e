"""`surematch embed`: every row with its columns and its vector, in parts that survive an interruption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from index.calibration.sources import Progress
from index.data.picture import Picture
from index.data.rows import Row
from index.encoders.by_name import load_encoder
from index.errors import CollectionError, DataError
from index.storage.place import BuildBegun
from index.verbs import embed as module
from index.verbs.embed import EmbedSettings, embed, reader_of
from tests.index.conftest import World


def silent(what: str, done: int, of: int) -> None: ...


def embed_rows(settings: EmbedSettings, progress: Progress) -> None:
    module.embed_rows(settings, reader_of(settings), progress)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 32)
    monkeypatch.setattr("index.encoders.encode.BATCH", 16)


def test_every_row_with_its_columns_and_vector(world: World, tmp_path: Path, small_parts: None) -> None:
    assert embed([str(world.encoder), str(world.items), "--out", str(tmp_path / "v"), "--json"]) == 0
    parts = sorted((tmp_path / "v").iterdir())
    assert [path.name for path in parts] == [f"part-{at:06d}.parquet" for at in range(6)]
    table = parquet.read_table(tmp_path / "v")
    rows = world.rows(world.items)
    assert table.column("text").to_pylist() == [row.text for row in rows]
    assert table.column("label").to_pylist() == [row.label for row in rows]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 16)
    expected = load_encoder(world.encoder).encode([row.text for row in rows])
    np.testing.assert_array_equal(np.array(table.column("vector").to_pylist(), np.float32), expected)
    with pytest.raises(CollectionError, match="already exists"):
        embed([str(world.encoder), str(world.items), "--out", str(tmp_path / "v")])


@pytest.mark.parametrize("name", ["emb[/]", "emb[x]", "emb:x:"])
def test_where_it_is_written_is_said_as_it_is(
    name: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed([str(world.encoder), str(world.items), "--out", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / name}: ")


def test_columns_keep_one_type_through_all_parts(world: World, tmp_path: Path, small_parts: None) -> None:
    file = tmp_path / "rows.jsonl"
    records = [{"text": "card", "n": None if at < 40 else at, "tags": ["a"] if at % 2 else None} for at in range(80)]
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    embed_rows(EmbedSettings(model=str(world.encoder), data=[file], out=tmp_path / "v"), silent)
    table = parquet.read_table(tmp_path / "v")
    assert table.select(["text", "n", "tags"]).to_pylist() == records
    assert table.schema.field("n").type == pa.int64()
    again = EmbedSettings(model=str(world.encoder), data=sorted((tmp_path / "v").iterdir()), out=tmp_path / "w")
    with pytest.raises(DataError, match="column 'vector' already"):
        embed_rows(again, silent)
    file.write_text('{"text": "card", "n": 1}\n{"text": "card", "n": "one"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="lines 1 to 2: column 'n' holds values of several types"):
        embed_rows(EmbedSettings(model=str(world.encoder), data=[file], out=tmp_path / "x"), silent)


def test_columns_of_parquet_keep_their_types(world: World, tmp_path: Path, small_parts: None) -> None:
    """What a value is read as does not tell nanoseconds, maps, unsigned numbers, or the type of a column of nulls."""
    given = pa.table(
        {
            "text": ["card", "rain"] * 20,
            "at": pa.array([1700000000123456789, None] * 20, pa.timestamp("ns")),
            "lasts": pa.array([5, 7] * 20, pa.duration("ns")),
            "counts": pa.array([[("a", 1)], []] * 20, pa.map_(pa.string(), pa.int64())),
            "large": pa.array([2**63 + 5, 1] * 20, pa.uint64()),
            "small": pa.array([1, None] * 20, pa.int8()),
            "nothing": pa.array([None] * 40, pa.float32()),
        }
    )
    parquet.write_table(given, tmp_path / "rows.parquet")
    embed_rows(EmbedSettings(model=str(world.encoder), data=[tmp_path / "rows.parquet"], out=tmp_path / "v"), silent)
    assert parquet.read_table(tmp_path / "v").drop(["vector"]).equals(given)


def test_a_folder_may_be_called_as_a_parquet_file_is(world: World, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").mkdir()
    parquet.write_table(pa.table({"text": ["card", "rain"]}), tmp_path / "rows.parquet" / "part-0.parquet")
    embed_rows(EmbedSettings(model=str(world.encoder), data=[tmp_path / "rows.parquet"], out=tmp_path / "v"), silent)
    assert parquet.read_table(tmp_path / "v").num_rows == 2


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"text": "a", "meta": {}}], "rows.jsonl: column 'meta' holds .* one that Parquet cannot keep"),
        ([{"text": "a", "n": 2**60 + 1}] * 10_000 + [{"text": "b", "n": 0.5}], "line 1 .*: column 'n' holds"),
        ([{"text": "a", "n": 2**70}], "lines 1 to 1: column 'n' holds"),
    ],
)
def test_a_column_that_parquet_cannot_keep_is_named(
    records: list[dict[str, Any]], said: str, world: World, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    with pytest.raises(DataError, match=said):
        embed_rows(EmbedSettings(model=str(world.encoder), data=[file], out=tmp_path / "v"), silent)
    assert not (tmp_path / "v").exists()


def test_pictures_whose_name_is_no_unicode_are_named(tmp_path: Path) -> None:
    row = Row("", "d0", "scans", 1, {}, Picture(tmp_path / "scans" / "caf\udce9.png", "caf\udce9.png"))
    settings = EmbedSettings(model="sface", data=[tmp_path / "scans"], out=tmp_path / "v")
    with pytest.raises(DataError, match=r"column 'path' holds .*caf.udce9.* which is no Unicode"):
        module._schema([row], settings)


def test_files_of_one_name_are_embedded_together(world: World, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.csv").write_text(f"text\ncard {name}\n", encoding="utf-8")
    data = [tmp_path / name / "rows.csv" for name in "ab"]
    embed_rows(EmbedSettings(model=str(world.encoder), data=data, out=tmp_path / "v"), silent)
    assert parquet.read_table(tmp_path / "v").column("text").to_pylist() == ["card a", "card b"]


def test_an_interrupted_run_continues(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None
) -> None:
    data = Path(shutil.copyfile(world.items, tmp_path / "items.csv"))
    given = {"model": str(world.encoder), "data": [data], "out": tmp_path / "v"}
    real, left = module._write, [3]

    def write(path: Path, *rest: object) -> None:
        if not left[0]:
            path.with_suffix(".writing").write_bytes(b"half")
            raise KeyboardInterrupt
        left[0] -= 1
        real(path, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", write)
        with pytest.raises(KeyboardInterrupt):
            embed_rows(EmbedSettings(**given), silent)  # type: ignore[arg-type]
    with pytest.raises(BuildBegun, match="--resume"):
        embed_rows(EmbedSettings(**given), silent)  # type: ignore[arg-type]
    done: list[int] = []
    embed_rows(EmbedSettings(**given, resume=True), lambda what, at, of: done.append(at))  # type: ignore[arg-type]
    assert done == [128, 160, 180]
    assert parquet.read_table(tmp_path / "v").column("text").to_pylist() == [row.text for row in world.rows(data)]
    assert len(list((tmp_path / "v").iterdir())) == 6
