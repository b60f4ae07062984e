"""Texts or pictures to vectors in Parquet, without a gallery: `surematch embed MODEL DATA --out FOLDER`.

The result is a folder of part files, as Spark, DuckDB, pandas and pyarrow read and write them: the input's columns (of
pictures in folders their paths and labels) and one of fixed-size lists of float32. A part is there whole or not at all,
so an interrupted run continues at the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from index.calibration.sources import Progress
from index.data.rows import Row
from index.encoders.by_name import check_encoder, encoder_folder, load_encoder
from index.encoders.encode import Encoded, encode_stream, workers_for
from index.encoders.encoder import Encoder
from index.encoders.files import fingerprint, modality_of
from index.encoders.onnx_export import Backend, install_encoder
from index.errors import CollectionError, DataError, SettingsError
from index.intake import take_in
from index.storage.place import STATE, begin, building, prepare
from index.verbs import console
from index.verbs.reading import SKIP, Reader
from index.verbs.settings import Settings, parse
from index.verbs.terminal import Terminal, print_json
from index.verbs.usable import Remembering

if TYPE_CHECKING:
    import pyarrow as pa

PART = 1 << 16
"""Rows of a part file."""
_VERIFIED = 256
_ENCODER = "encoder"


class EmbedSettings(Settings):
    """Encode texts or pictures and write what was read of them with their vectors as a folder of Parquet files."""

    model_config = SettingsConfigDict(cli_prog_name="surematch embed")

    model: CliPositionalArg[str] = Field(
        description="trained encoder's folder, `static`, `minilm`, `sface`, a picture encoder's ONNX file, or a hub id"
    )
    data: CliPositionalArg[list[Path]] = Field(
        description="CSV, TSV, JSONL or Parquet files; of pictures also zips, or a folder of folders"
    )
    out: Path = Field(description="new folder of the Parquet files")
    text: str = Field("text", description="column that holds the text, or the path of a picture")
    vector: str = Field("vector", description="name of the new column")
    backend: Backend = Field("auto", description="what runs a neural encoder; auto: onnx where it is installed")
    skip_faulty: bool = SKIP
    workers: int | None = Field(None, ge=1, le=256, description="encoding processes [default: one a core]")
    resume: bool | None = Field(None, description="continue an interrupted run (--no-resume: start over)")
    json_: bool = Field(False, alias="json", description="print one JSON object")


def embed(argv: Sequence[str]) -> int:
    """`surematch embed MODEL DATA --out FOLDER`"""
    settings = parse(EmbedSettings, argv)
    reader = reader_of(settings)
    with console.progress(quiet=settings.json_) as progress:
        made = embed_rows(settings, reader, progress)
    if settings.json_:
        print_json(made | reader.as_json(), indent=None)
    else:
        reader.tell()
        Terminal().print(f"{settings.out}: {made['rows']} rows, {made['dimension']} dimensions")
    return 0


def reader_of(settings: EmbedSettings) -> Reader:
    """What reads the data, by what the encoder takes. Raises `EncoderError`, `SettingsError`."""
    check_encoder(settings.model)
    return Reader(modality_of(settings.model), text=settings.text, label=None, skip=settings.skip_faulty)


def embed_rows(settings: EmbedSettings, reader: Reader, progress: Progress) -> dict[str, Any]:
    """Writes the parts; returns how many rows, the dimension and the encoder. Raises `DataError` and `EncoderError`."""
    if find_spec("pyarrow") is None:
        raise SettingsError("surematch embed writes Parquet and needs pyarrow: pip install 'surematch[parquet]'")
    _must_be_new(settings.out)
    rows, opened = reader.stream(settings.data), None
    with encoder_folder(settings.model) as source:
        if reader.skips:
            opened = Remembering(load_encoder(source))
            rows = reader.usable(opened, rows, progress)
        taken = take_in(rows, None, progress, items=False)
        schema = _schema(rows, settings)
        with building(settings.out, partial(_must_be_new, settings.out)) as folder:
            inputs = {
                "encoder": fingerprint(source),
                "backend": settings.backend,
                "text": settings.text,
                "vector": settings.vector,
                "rows": taken.files,
            }
            if not prepare(folder, inputs, settings.resume):
                sample = [row.text for row in islice(rows, _VERIFIED)]
                install_encoder(source, folder / _ENCODER, settings.backend, sample)
                begin(folder, inputs)
            encoder = load_encoder(folder / _ENCODER)
            if opened is not None and opened.fingerprint == encoder.fingerprint:
                encoder = opened
            _encode(encoder, folder, rows, taken.count, schema, settings, progress)
            _clear(folder)
    return {"rows": taken.count, "dimension": encoder.dimension, "encoder": encoder.fingerprint}


def _encode(
    encoder: Encoder,
    folder: Path,
    rows: Iterable[Row],
    count: int,
    schema: pa.Schema,
    settings: EmbedSettings,
    progress: Progress,
) -> None:
    """Writes the parts that are not there yet."""
    done = PART * len(list(folder.glob("part-*.parquet")))
    known = isinstance(encoder, Remembering)  # which other processes could not ask
    workers = 1 if known else workers_for(max(0, count - done), settings.workers)
    with closing(encode_stream(encoder, folder / _ENCODER, islice(rows, done, None), workers)) as stream:
        for part in _parts(stream):
            path = folder / f"part-{done // PART:06d}.parquet"
            _write(path, part, schema, settings)
            done += sum(len(encoded.rows) for encoded in part)
            progress("encoding", done, count)


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
    """One type for every column: what Parquet files say, else that of all its values. Raises `DataError` where there is
    none."""
    import pyarrow as pa
    from pyarrow import parquet

    # what a value was read as may not tell: nanoseconds, maps, unsigned numbers
    given = [path for path in settings.data if path.suffix.lower() == ".parquet" and path.is_file()]
    files = [parquet.read_schema(path) for path in given]
    declared = {field.name: field.type for schema in reversed(files) for field in schema}
    types: dict[str, pa.DataType] = {}
    left = iter(rows)
    while chunk := list(islice(left, 10_000)):
        read = [_columns(row, settings.text) for row in chunk]
        if any(settings.vector in columns for columns in read):
            raise DataError(
                f"{chunk[0].file}: has a column {settings.vector!r} already. Name the new one with --vector."
            )
        for name in dict.fromkeys(name for columns in read for name in columns):
            values = [columns.get(name) for columns in read]
            place = f"{chunk[0].file}: lines {chunk[0].line} to {chunk[-1].line}: column {name!r}"
            with _told(place):
                found = pa.schema([(name, _array(values, declared.get(name)).type)])
                before = pa.schema([(name, types.get(name, pa.null()))])
                both = pa.unify_schemas([before, found], promote_options="permissive")
                types[name] = both.field(name).type
    for name, kind in types.items():
        with _told(f"{settings.data[0]}: column {name!r}"):  # an object without members cannot be written
            parquet.ParquetWriter(BytesIO(), pa.schema([(name, kind)])).close()
    return pa.schema(list(types.items()))


def _array(values: list[Any], wanted: pa.DataType | None) -> pa.Array:
    """Of the type `wanted` where it holds the values: files of one name may say other types."""
    import pyarrow as pa

    if wanted is not None:
        with suppress(pa.ArrowException, OverflowError):
            return pa.array(values, wanted)
    return pa.array(values)


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Raises `DataError` for a column that Parquet cannot hold."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(
            f"{place} holds values of several types, or of one that Parquet cannot keep ({error}). Make them one, for "
            "example texts."
        ) from error
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place} holds {error.object!r}, which is no Unicode. Rename it, or repair its encoding."
        ) from error


def _columns(row: Row, text: str) -> dict[str, Any]:
    """What was read of a row; of a picture its path, and the label that its folder names."""
    if row.image is None:
        return {text: row.text, **row.extra}
    named = {} if row.label is None else {"label": row.label}
    column = "path" if text == "text" and "path" not in row.extra else text  # a table may hold both
    return {column: row.image.name, **named, **row.extra}


def _write(path: Path, part: list[Encoded], schema: pa.Schema, settings: EmbedSettings) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    read = [_columns(row, settings.text) for encoded in part for row in encoded.rows]
    vectors = np.concatenate([encoded.vectors for encoded in part])
    columns, first, last = {}, part[0].rows[0], part[-1].rows[-1]
    for name in schema.names:
        with _told(f"{first.file}: from line {first.line} to {last.line} of {last.file}: column {name!r}"):
            columns[name] = pa.array([columns_of.get(name) for columns_of in read], schema.field(name).type)
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
