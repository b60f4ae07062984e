"""Labelled rows from CSV, TSV, JSONL, Parquet and Hugging Face data sets, each remembered with its file and line.

One reader serves training, indexing and evaluation, so a row means the same everywhere. A file that cannot be used
raises `DataError` naming the file, the first faulty rows and the remedy; rows are never dropped.
"""

from __future__ import annotations

import csv
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index.data.hub_rows import dataset_records, is_dataset, looks_like_hub_name
from index.data.label import plain_label, whole_number
from index.data.picture import Picture
from index.errors import DataError, NoLabelColumn
from index.strict_json import parsed

MAX_FIELD = 1_000_000
"""Longest field of a CSV file, in characters: a missing closing quote swallows the rest of a file."""
SHOWN = 5
"""How many faulty rows an error names before it counts the rest."""


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text or picture. `line` is where its record starts in `file`, from 1, the header included.

    The label is kept as all are (`index.data.label`), however it was written.
    With a picture (`index.encoders.pictures`), `text` is the digest of its bytes, and `fault` why it cannot be used.
    """

    text: str
    label: str | None
    file: str
    line: int
    extra: dict[str, Any] = field(default_factory=dict)
    image: Picture | None = None
    fault: str | None = None

    def __post_init__(self) -> None:
        if self.label is not None:
            object.__setattr__(self, "label", plain_label(self.label))


def text_key(text: str) -> int:
    """64-bit identity of a text up to case, white space and Unicode form: recognises rows an encoder was trained on."""
    plain = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return int.from_bytes(hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()[:8], "big")


class RowFiles:
    """The rows of data files, read anew on every iteration and never held in memory together."""

    def __init__(self, paths: Sequence[Path], *, text: str, label: str | None, require_label: bool = True) -> None:
        """Columns and `require_label` as in `read_rows`."""
        self._paths, self._text, self._label, self._require_label = list(paths), text, label, require_label

    def __iter__(self) -> Iterator[Row]:
        """Rows in order. Raises `DataError`, for empty texts and labels only at the end of their file."""
        if not self._paths:
            raise _no_file()
        for path in self._paths:
            yield from _read_file(path, self._text, self._label, self._require_label, None)


def read_rows(
    paths: Sequence[Path],
    *,
    text: str,
    label: str | None,
    require_label: bool = True,
    faulty: list[Row] | None = None,
) -> list[Row]:
    """All rows of all files, in order.

    `text` and `label` name columns; with `label` None every row's label is None. An empty label is an error while
    `require_label` holds, else None; then a file may also have no column but `text`. Given a list as `faulty`, rows
    with an empty text or label are appended to it instead of being an error. Raises `DataError`.
    """
    rows = [row for path in paths for row in _read_file(path, text, label, require_label, faulty)]
    if not rows and not faulty:
        raise _no_file()
    return rows


_PICTURES = "Pictures are read by an encoder of pictures: sface, or one made by `surematch train --encoder image`."


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every record of a data file with the line it starts on, whatever its columns. Raises `DataError`."""
    if is_dataset(path) or (not path.exists() and looks_like_hub_name(path)):
        return dataset_records(path, _READERS)
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not a file, and no data set. {_PICTURES}")
    if not path.is_file():
        raise DataError(f"{path}: no such file. Check the path; it is taken from {Path.cwd()}.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        pictures = f" {_PICTURES}" if path.suffix.lower() == ".zip" else ""
        known = ", ".join(_READERS)
        raise DataError(f"{path}: files ending in '{path.suffix}' cannot be read. Use one of {known}.{pictures}")
    return reader(path)


def _no_file() -> DataError:
    return DataError("No data file was given. Name at least one CSV, TSV, JSONL or Parquet file, or a data set.")


def _read_file(
    path: Path, text: str, label: str | None, require_label: bool, faulty: list[Row] | None
) -> Iterator[Row]:
    no_text: list[int] = []
    no_label: list[int] = []
    empty = True
    for line, record in read_records(path):
        empty = False
        for column in (text, label):
            texts_alone = column == label and not require_label and list(record) == [text]
            if column is not None and column not in record and not texts_alone:
                kind = DataError if column == text else NoLabelColumn
                raise kind(_missing_column(path, line, column, column == text, record))
        content = cell_text(record[text], path, line, text)
        cell = None if label is None else whole_number(record.get(label))
        name = None if label is None else plain_label(cell_text(cell, path, line, label))
        extra = {key: value for key, value in record.items() if key not in (text, label)}
        row = Row(content, name or None, str(path), line, extra)
        blank, unlabelled = not content.strip(), label is not None and not name and require_label
        if faulty is not None and (blank or unlabelled):
            faulty.append(row)
            continue
        if blank:
            no_text.append(line)
        if unlabelled:
            no_label.append(line)
        yield row
    if empty:
        raise DataError(f"{path}: the file holds no rows. Expected a header line and one row a text.")
    _refuse(path, no_text, f"an empty text in column '{text}'", "Fill these texts or delete the rows.")
    _refuse(path, no_label, f"an empty label in column '{label}'", "Label these rows or delete them.")


def _refuse(path: Path, lines: list[int], what: str, remedy: str) -> None:
    if lines:
        shown = ", ".join(map(str, lines[:SHOWN])) + (f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")
        raise DataError(f"{path}: {what} at line {shown}. {remedy}")


def _missing_column(path: Path, line: int, column: str, is_text: bool, record: dict[str, Any]) -> str:
    flag = "--text" if is_text else "--label"
    found = f"{path}: line {line} has no column '{column}'; it has {', '.join(map(repr, record))}."
    return f"{found} {_other_delimiter(record) or f'Name the right one with {flag} COLUMN.'}"


def _other_delimiter(columns: Iterable[str]) -> str:
    """What to do where the one column there is seems to be several; nothing where it does not."""
    names = list(columns)
    other = next((mark for mark in (";", "\t", "|") if len(names) == 1 and mark in names[0]), None)
    if other is None:
        return ""
    return f"The columns seem to be separated by {other!r}: save the file with commas, or as .tsv with tabs."


def cell_text(value: Any, path: Path, line: int, column: str) -> str:
    """A cell as text; null and NaN, which tools write for a missing value, are empty."""
    if value is None or value != value:
        return ""
    if isinstance(value, bytes | list | dict):
        raise DataError(
            f"{path}: line {line}: column '{column}' holds a {type(value).__name__}, expected text. Write it as a "
            "string, or name another column."
        )
    return str(value)


def _lines(path: Path, newline: str) -> Iterator[str]:
    """The file's lines, their ends kept, as `open` cuts them with this `newline`. Raises `DataError`."""
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield from file
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error


def _not_utf8(path: Path) -> DataError:
    """Reads again, line by line, to say where: the decoder only knows its place in a block."""
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        for line, content in enumerate(file, 1):
            try:
                content.decode("utf-8")
            except UnicodeDecodeError as error:
                encoding = "UTF-16" if start in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
                return DataError(
                    f"{path}: line {line} is not UTF-8 (byte {content[error.start]:#04x}). Save the file as UTF-8, "
                    f"for example: iconv -f {encoding} -t UTF-8 {path.name} > fixed{path.suffix}"
                )
    return DataError(f"{path}: changed while it was read. Try again when nothing writes to it.")


def _without_nul(path: Path) -> Iterator[str]:
    line = 1
    for content in _lines(path, newline=""):
        if "\0" in content:
            raise DataError(
                f"{path}: line {line} holds a NUL byte, so this is not a text file. Export it as UTF-8 CSV."
            )
        line += content.endswith("\n")
        yield content


def _csv(path: Path, delimiter: str = ",") -> Iterator[tuple[int, dict[str, Any]]]:
    """Records with the line each starts on: quoted fields may contain line breaks (RFC 4180)."""
    previous_limit = csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(_without_nul(path), delimiter=delimiter, strict=True)
    start, header = 1, [""]
    try:
        header = next((record for record in reader if record), [""])
        if re.fullmatch("sep=.", delimiter.join(header)):
            raise DataError(f"{path}: its first line tells Excel the delimiter and is no header. Delete that line.")
        _refuse_repeated(path, header)
        while True:
            start = reader.line_num + 1
            record = next(reader, None)
            if record is None:
                return
            if not record:  # a blank line between records carries nothing
                continue
            if len(record) != len(header):
                remedy = "Put texts that contain the delimiter or line breaks in double quotes."
                raise DataError(
                    f"{path}: line {start} has {len(record)} fields, the header has {len(header)}. "
                    f"{_other_delimiter(header) or remedy}"
                )
            yield start, dict(zip(header, record, strict=True))
    except csv.Error as error:
        remedy = "Check for an unclosed or misplaced double quote."
        if "larger than field limit" in str(error):
            remedy = f"A cell holds up to {MAX_FIELD:,} characters: shorten it, or close its double quote."
        raise DataError(
            f"{path}: the record that starts on line {start} cannot be read: {error}. "
            f"{_other_delimiter(header) or remedy}"
        ) from error
    finally:
        csv.field_size_limit(previous_limit)


def _refuse_repeated(path: Path, columns: list[str]) -> None:
    if columns.count("") > 1:
        raise DataError(
            f"{path}: {columns.count('')} columns of the header have no name, the first is column "
            f"{columns.index('') + 1}. Delete these columns, or name them."
        )
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: the header names column {repeated[0]!r} twice. Rename one of them.")


def _tsv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return _csv(path, "\t")


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, record in enumerate(_lines(path, newline="\n"), 1):
        if not record.strip():
            continue
        try:
            value = parsed(record)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {line} is not JSON: {error}. Write one JSON object a line.") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}: line {line} holds a {type(value).__name__}, expected a JSON object.")
        yield line, value


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(
            f"{path}: Parquet needs the package pyarrow. Install it with: pip install 'surematch[parquet]'"
        ) from error
    line = 0
    try:
        with parquet.ParquetFile(path) as table:
            _refuse_repeated(path, table.schema_arrow.names)
            for batch in table.iter_batches():
                for record in batch.to_pylist():
                    line += 1
                    yield line, record
    except DataError:
        raise
    except Exception as error:  # pyarrow raises many unrelated types for damaged files
        raise DataError(f"{path}: not readable as Parquet after row {line} ({error}). Write it again.") from error


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
