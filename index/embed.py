"""Texts to vectors in Parquet, without a gallery: `surematch embed MODEL DATA --out FOLDER`.

The result is a folder of part files, as Spark, DuckDB, pandas and pyarrow read and write them: the input's columns and
one of fixed-size lists of float32. A part is there whole or not at all, so an interrupted run continues at the next.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console

from index import console
from index.encode import Encoded, encode_stream, workers_for
from index.encoder_files import fingerprint
from index.encoders import encoder_folder, load_encoder
from index.errors import CollectionError, DataError, SettingsError
from index.intake import take_in
from index.onnx_export import Backend, install_encoder
from index.place import STATE, begin, building, prepare
from index.rows import Row, RowFiles
from index.settings import Settings, parse
from index.sources import Progress

if TYPE_CHECKING:
    import pyarrow as pa

PART = 1 << 16
"""Rows of a part file."""
_VERIFIED = 256
_ENCODER = "encoder"


class EmbedSettings(Settings):
    """Encode the texts of data files and write them with their vectors as a folder of Parquet files."""

    model_config = SettingsConfigDict(cli_prog_name="surematch embed")

    model: CliPositionalArg[str] = Field(description="trained encoder's folder, `static`, `minilm`, or a hub id")
    data: CliPositionalArg[list[Path]] = Field(description="CSV, TSV, JSONL or Parquet files")
    out: Path = Field(description="new folder of the Parquet files")
    text: str = Field("text", description="column that holds the text")
    vector: str = Field("vector", description="name of the new column")
    backend: Backend = Field("auto", description="what runs a neural encoder; auto: onnx where it is installed")
    workers: int | None = Field(None, ge=1, le=256, description="encoding processes [default: one a core]")
    resume: bool | None = Field(None, description="continue an interrupted run (--no-resume: start over)")
    json_: bool = Field(False, alias="json", description="print one JSON object")


def embed(argv: Sequence[str]) -> int:
    """`surematch embed MODEL DATA --out FOLDER`"""
    settings = parse(EmbedSettings, argv)
    with console.progress(quiet=settings.json_) as progress:
        made = embed_rows(settings, progress)
    if settings.json_:
        sys.stdout.write(json.dumps(made) + "\n")
    else:
        Console().print(f"{settings.out}: {made['rows']} rows, {made['dimension']} dimensions", highlight=False)
    return 0


def embed_rows(settings: EmbedSettings, progress: Progress) -> dict[str, Any]:
    """Writes the parts; returns how many rows, the dimension and the encoder. Raises `DataError` and `EncoderError`."""
    if find_spec("pyarrow") is None:
        raise SettingsError("surematch embed writes Parquet and needs pyarrow: pip install 'surematch[parquet]'")
    _must_be_new(settings.out)
    rows = RowFiles(settings.data, text=settings.text, label=None)
    taken = take_in(rows, None, progress, metadata=False)
    schema = _schema(rows, settings)
    with (
        encoder_folder(settings.model) as source,
        building(settings.out, partial(_must_be_new, settings.out)) as folder,
    ):
        inputs = {
            "encoder": fingerprint(source),
            "backend": settings.backend,
            "text": settings.text,
            "vector": settings.vector,
            "rows": taken.files,
        }
        if not prepare(folder, inputs, settings.resume):
            install_encoder(source, folder / _ENCODER, settings.backend, [row.text for row in islice(rows, _VERIFIED)])
            begin(folder, inputs)
        encoder = load_encoder(folder / _ENCODER)
        done = PART * len(list(folder.glob("part-*.parquet")))
        left = max(0, taken.count - done)
        stream = encode_stream(
            encoder, folder / _ENCODER, islice(rows, done, None), workers_for(left, settings.workers)
        )
        with closing(stream):
            for part in _parts(stream):
                path = folder / f"part-{done // PART:06d}.parquet"
                _write(path, part, schema, settings)
                done += sum(len(encoded.rows) for encoded in part)
                progress("encoding", done, taken.count)
        _clear(folder)
    return {"rows": taken.count, "dimension": encoder.dimension, "encoder": encoder.fingerprint}


def _must_be_new(out: Path) -> None:
    if out.exists():
        raise CollectionError(f"{out}: already exists. Choose another --out, or move it away.")


def _parts(stream: Iterator[Encoded]) -> Iterator[list[Encoded]]:
    """Batches of the stream until they make `PART` rows, which whole batches do."""
    part: list[Encoded] = []
    for encoded in stream:
        part.append(encoded)
        if sum(len(batch.rows) for batch in part) >= PART:
            yield part
            part = []
    if part:
        yield part


def _schema(rows: Iterable[Row], settings: EmbedSettings) -> pa.Schema:
    """One type for every column, that of all its values. Raises `DataError` where there is none."""
    import pyarrow as pa

    schema = pa.schema([(settings.text, pa.string())])
    left = iter(rows)
    while chunk := list(islice(left, 10_000)):
        if any(settings.vector in row.extra for row in chunk) or settings.vector == settings.text:
            raise DataError(
                f"{chunk[0].file}: has a column {settings.vector!r} already. Name the new one with --vector."
            )
        place = f"{chunk[0].file}: lines {chunk[0].line} to {chunk[-1].line}"
        names = list(dict.fromkeys(name for row in chunk for name in row.extra))
        try:
            found = pa.schema([(name, pa.array([row.extra.get(name) for row in chunk]).type) for name in names])
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise DataError(f"{place}: a column holds values of several types ({error}). Make them one.") from error
    return schema


def _write(path: Path, part: list[Encoded], schema: pa.Schema, settings: EmbedSettings) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [row for encoded in part for row in encoded.rows]
    vectors = np.concatenate([encoded.vectors for encoded in part])
    columns = {
        name: pa.array(
            [row.text if name == settings.text else row.extra.get(name) for row in rows], schema.field(name).type
        )
        for name in schema.names
    }
    columns[settings.vector] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    temporary = path.with_suffix(".writing")
    parquet.write_table(pa.table(columns), temporary)
    temporary.replace(path)


def _clear(folder: Path) -> None:
    """Leaves nothing but the parts."""
    for path in sorted((folder / _ENCODER).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / _ENCODER).rmdir()
    for path in (folder / STATE, *folder.glob("*.writing")):
        path.unlink(missing_ok=True)
