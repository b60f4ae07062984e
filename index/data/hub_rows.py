"""Records of Hugging Face data sets: folders saved with `save_to_disk`, folders of data files, and names on the Hub.

A source is written FOLDER, FOLDER:SPLIT, OWNER/NAME, OWNER/NAME/CONFIG or any of these with :SPLIT; without, the split
is `train`, or the only one. Nothing of a data set is executed: there are no loading scripts, and only builders that
read plain tables are used. What a folder's CSV, TSV and JSONL files hold is read as such a file alone is, unless the
data set says their types or how they are read: the library would guess, and take the labels 001 and 1 for one number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from index.errors import DataError

BUILDERS = ("arrow", "csv", "json", "parquet")
"""Readers of the library that are used: tables. Others decode archives, images or foreign binary formats."""
TABLES = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tsv")
Records = Iterator[tuple[int, dict[str, Any]]]
_NOT_READING = ("name", "version", "data_dir", "data_files", "description")
_SAVED = ("dataset_dict.json", "state.json")
_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")
_SPLIT = re.compile(r"[\w.-]+")


def is_dataset(path: Path) -> bool:
    """Whether `path` (a :SPLIT apart) is a folder of a saved data set, or of data files."""
    folder, _ = _parts(path)
    return folder.is_dir() and (_is_saved(folder) or any(_tables(folder)))


def looks_like_hub_name(path: Path) -> bool:
    """Whether `path` could be OWNER/NAME or OWNER/NAME/CONFIG on the Hub, with or without :SPLIT."""
    name, _ = _parts(path)
    return _NAME.fullmatch(str(name)) is not None and ".." not in name.parts and name.suffix not in (*TABLES, ".zip")


def dataset_records(path: Path, readers: Mapping[str, Callable[[Path], Records]]) -> Records:
    """Each row with its number, counted from 1. Columns of class codes give the names of their classes.

    `readers` read single files, by how their names end. Raises `DataError`: not found, no such split, damaged, or not a
    table.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{path}: a data set needs the package datasets. Install it with: pip install 'surematch[train]'"
        ) from error
    source, wanted = _parts(path)
    with _quiet(datasets):
        found = _open(datasets, source, path, readers)
        table = _split(found, wanted, path) if isinstance(found, dict) else found
        if isinstance(table, list):
            records = chain.from_iterable(readers[file.suffix](file) for file in table)
            yield from enumerate((record for _, record in records), 1)
            return
        if table is found and wanted is not None:
            raise DataError(f"{path}: this data set has no splits. Leave :{wanted} out.")
        names = {
            column: feature.names
            for column, feature in table.features.items()
            if isinstance(feature, datasets.ClassLabel)
        }
        line = 0
        for batch in table.with_format("arrow").iter(batch_size=1000):
            for record in batch.to_pylist():
                line += 1
                yield line, {column: _named(value, names.get(column)) for column, value in record.items()}


def _open(datasets: Any, source: Path, path: Path, readers: Mapping[str, Any]) -> Any:
    """The data set, the mapping of its splits, or of the files of its splits."""
    try:
        if _is_saved(source):
            return datasets.load_from_disk(str(source))
        files = _texts(datasets, source) if source.is_dir() else {}
        if files and all(file.suffix in readers for of in files.values() for file in of):
            return files
        if source.is_dir():
            builder = datasets.load_dataset_builder(str(source))
        else:
            owner, name, *config = source.parts
            builder = datasets.load_dataset_builder(f"{owner}/{name}", *config)
        kind = type(builder).__module__.rpartition(".")[2]
        if kind not in BUILDERS:
            raise DataError(
                f"{path}: this data set is read by '{kind}', and only tables are ({', '.join(BUILDERS)}). Export it as "
                "CSV, JSONL or Parquet."
            )
        builder.download_and_prepare()
        return builder.as_dataset()
    except DataError:
        raise
    except Exception as error:  # the library passes on whatever its readers, file systems and network raise
        where = "read" if source.is_dir() else "found: it is no file or folder here, and not to be had from the Hub"
        said = " ".join(str(error).split())[:300]
        raise DataError(
            f"{path}: the data set cannot be {where} ({said}). Check the name; OWNER/NAME:SPLIT."
        ) from error


def _texts(datasets: Any, source: Path) -> dict[str, list[Path]]:
    """The splits' files where these are CSV or JSON, and the data set says neither their columns' types nor how they
    are to be read; none otherwise."""
    with TemporaryDirectory() as nothing:  # the library's own cache holds the types that it guessed before
        builder = datasets.load_dataset_builder(str(source), cache_dir=nothing)
    config, kind = builder.config, type(builder).__module__.rpartition(".")[2]
    if kind not in ("csv", "json") or builder.info.features is not None:
        return {}
    files = {str(split): [Path(file) for file in of] for split, of in config.data_files.items()}
    tabs = {file.suffix for of in files.values() for file in of} == {".tsv"}
    usual = type(config)(**({"sep": "\t"} if tabs else {}))
    said = (one.name for one in fields(config) if one.name not in _NOT_READING)
    if any(getattr(config, name) != getattr(usual, name) for name in said):
        return {}
    return files if all(file.is_file() for of in files.values() for file in of) else {}


def _split(splits: dict[str, Any], wanted: str | None, path: Path) -> Any:
    name = wanted or ("train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None)
    if name not in splits:
        what = f"has no split '{name}'" if name else "has several splits and none called train"
        listed = ", ".join(map(repr, splits))
        raise DataError(f"{path}: the data set {what}; it has {listed}. Write one after a colon: {path.name}:SPLIT.")
    return splits[name]


def _named(value: Any, names: list[str] | None) -> Any:
    """A class code as its name; -1 and null, which data sets write for no label, as null."""
    if names is None or value is None:
        return value
    return names[value] if 0 <= value < len(names) else None


def _parts(path: Path) -> tuple[Path, str | None]:
    """The source, and the split after its last colon; a path that exists has none."""
    before, colon, split = str(path).rpartition(":")
    if path.exists() or not colon or not _SPLIT.fullmatch(split):
        return path, None
    return Path(before), split


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SAVED)


def _tables(folder: Path) -> Iterator[Path]:
    """Data files in the folder and in the folders in it, as the Hub keeps them."""
    return (path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix in TABLES)


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the library's own progress bars."""
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            datasets.utils.logging.enable_progress_bar()
