"""Labelled pictures: a folder per identity, a zip of such folders, or a table of paths and labels.

They become the same `Row`s as texts. In place of the text stands the SHA-256 of the picture's file, so that duplicates,
conflicting labels and rows an encoder was trained on are recognised wherever the files lie, though not in copies that
were saved anew; the bytes stay where they are and are read when needed.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from index.data.images import LIMITS, SUFFIXES, decode
from index.data.picture import Picture, open_zip
from index.data.rows import SHOWN, Row, read_records, read_rows
from index.encoders.files import Modality
from index.errors import DataError

MAX_MEMBERS = 1_000_000
MAX_TOTAL = 50_000_000_000
"""Bytes that all members of a zip may have together, unpacked."""
MAX_RATIO = 500
"""How many times larger than in the zip a member may be: pictures hardly shrink, bombs do."""
DIGEST = "sha256:"
_SEEN_AS_NOTHING = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def picture_of(row: Row) -> Picture:
    """The picture of a row that must have one. Raises `DataError`."""
    if row.image is None:
        raise DataError(f"{row.file}: line {row.line} is a text, but this encoder takes pictures.")
    return row.image


def read_content(modality: Modality, paths: Sequence[Path], **how: Any) -> list[Row]:
    """`read_rows` or `read_pictures`, by what the encoder takes."""
    return read_pictures(paths, **how) if modality == "image" else read_rows(paths, **how)


def read_pictures(
    paths: Sequence[Path],
    *,
    text: str,
    label: str | None,
    require_label: bool = True,
    faulty: list[Row] | None = None,
) -> list[Row]:
    """All pictures of all folders, zips and tables, in order; the arguments mean what they mean in `read_rows`.

    In a folder or zip, the label is the path of the folder a picture lies in, counted from the top. In a table, the
    column `text` (or, where there is none, `path`) holds paths relative to the table. Every picture is decoded once;
    those that cannot be are an error that names them, or go to `faulty` with the reason as their `fault`, as do
    lines of a table with an empty cell.
    """
    found = (row for path in paths for row in _found(path, text, label, require_label))
    rows = sound_ones(found, faulty, unlabelled_ok=label is None or not require_label)
    if not rows and not faulty:
        raise DataError(
            f"{', '.join(map(str, paths)) or 'Nothing'}: no picture found. Give a folder with one folder of pictures "
            "an identity, a zip of such folders, or a table of paths and labels."
        )
    return rows


def sound_ones(rows: Iterable[Row], faulty: list[Row] | None, *, unlabelled_ok: bool = True) -> list[Row]:
    """Those rows whose picture can be decoded, with its digest as text.

    The others are an error that names them, or go to `faulty` with the reason as their `fault`.
    """
    kept: list[Row] = []
    broken: list[Row] = []
    for row in rows:
        sound = _sound(row, unlabelled_ok=unlabelled_ok)
        (broken if sound.fault is not None else kept).append(sound)
    if broken and faulty is None:
        raise DataError(
            f"{cannot_be_used(broken)}. Replace or delete these files, or leave them out with --skip-faulty."
        )
    if faulty is not None:
        faulty += broken
    return kept


def place_of(row: Row) -> str:
    """Where a person finds the picture of `row`: its file, or the table and its line before it."""
    picture = row.file if row.image is None else str(row.image)
    if not of_table(row):
        return picture
    return f"{row.file}: line {row.line}" + (f": {picture}" if row.image is not None else "")


def of_table(row: Row) -> bool:
    """Whether a line of a table names the picture of `row`; else it lies in a folder or zip."""
    return row.image is None or row.file != str(row.image)


def cannot_be_used(faulty: Sequence[Row]) -> str:
    """How many pictures have a fault, and which in the first ones, for a sentence that goes on."""
    named = "; ".join(f"{place_of(row)}: {str(row.fault).rstrip('.')}" for row in faulty[:SHOWN])
    more = f" and {len(faulty) - SHOWN} more" if len(faulty) > SHOWN else ""
    return f"{len(faulty)} {'file' if len(faulty) == 1 else 'files'} cannot be used: {named}{more}"


def _found(path: Path, text: str, label: str | None, require_label: bool) -> Iterator[Row]:
    if path.is_dir():
        yield from _folder(path)
    elif path.suffix.lower() == ".zip":
        yield from _zip(path)
    else:
        yield from _table(path, text, label, require_label)


def _sound(row: Row, *, unlabelled_ok: bool) -> Row:
    """`row` with the digest of its picture as text, or with the reason it cannot be used as its `fault`."""
    if row.fault is not None or row.image is None:
        return row
    if row.label is None and not unlabelled_ok:
        return _with_fault(row, "it lies in no folder that names its identity. Move it into one.")
    try:
        content = row.image.read()
        decode(content)
    except DataError as error:
        return _with_fault(row, str(error))
    return Row(digest(content), row.label, row.file, row.line, row.extra, row.image)


def digest(content: bytes) -> str:
    """What stands for a picture where a text would stand for itself."""
    return DIGEST + hashlib.sha256(content).hexdigest()


def _with_fault(row: Row, fault: str) -> Row:
    return replace(row, text="", fault=fault)


def _picture_row(picture: Picture, name: PurePosixPath) -> Row:
    label = None if name.parent == PurePosixPath(".") else name.parent.as_posix()
    row = Row("", label, str(picture), 1, {}, picture)
    if name.suffix.lower() not in SUFFIXES:
        return _with_fault(row, f"not a picture by its name. Expected one of {', '.join(sorted(SUFFIXES))}.")
    return row


def _empty(folder: Picture, name: PurePosixPath) -> Row:
    """In place of the pictures that a folder lacks: somebody it names would otherwise be missing without a word."""
    row = Row("", name.as_posix(), str(folder), 1, {}, folder)
    return _with_fault(row, "a folder without a picture. Put some into it, or remove it.")


def _ignored(name: str) -> bool:
    """What file managers leave behind."""
    return name.startswith(".") or name.lower() in _SEEN_AS_NOTHING


def _folder(folder: Path) -> Iterator[Row]:
    for at, folders, files in os.walk(folder, onerror=_cannot_be_listed, followlinks=False):
        folders[:] = sorted(name for name in folders if not _ignored(name))
        for name in folders:
            if Path(at, name).is_symlink():
                raise DataError(f"{Path(at, name)}: a link to a folder, which is not followed. Put the folder there.")
        pictures = sorted(name for name in files if not _ignored(name))
        inside = PurePosixPath(Path(at).relative_to(folder).as_posix())
        if not folders and not pictures and inside.name:
            yield _empty(Picture(Path(at), inside.as_posix()), inside)
        for name in pictures:
            yield _picture_row(Picture(Path(at, name), (inside / name).as_posix()), inside / name)


def _cannot_be_listed(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Repair its permissions.") from error


def _zip(path: Path) -> Iterator[Row]:
    try:
        with open_zip(path) as archive:
            everything = archive.infolist()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: holds names that are not in UTF-8, so which letters are meant is not known. Make it again with "
            "names in UTF-8 (in 7-Zip: the parameter cu=on), or give the folder itself."
        ) from error
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: not readable as a zip ({error}). Make it again.") from error
    shown = [name for name in (PurePosixPath(one.filename) for one in everything) if not any(map(_ignored, name.parts))]
    full = {PurePosixPath("."), PurePosixPath("/"), *(parent for name in shown for parent in name.parents)}
    folders = {PurePosixPath(one.filename): one for one in everything if one.is_dir()}  # some zips name one twice
    members = [one for one in everything if not one.is_dir()]
    members += [one for name, one in folders.items() if name not in full]
    _check_members(path, members)
    members = [member for member in members if not any(map(_ignored, PurePosixPath(member.filename).parts))]
    names = [PurePosixPath(member.filename) for member in members]
    tops = {name.parts[0] for name in names}
    # one folder around everything is how folders are usually zipped; it names no identity
    wrapped = len(tops) == 1 and all(
        len(name.parts) > 2 - member.is_dir() for member, name in zip(members, names, strict=True)
    )
    for member, name in sorted(zip(members, names, strict=True), key=lambda pair: pair[1].parts):
        inner = PurePosixPath(*name.parts[1:]) if wrapped else name
        picture = Picture(path, inner.as_posix(), member.filename)
        yield _empty(picture, inner) if member.is_dir() else _picture_row(picture, inner)


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raises `DataError` for a zip that is not simply a set of picture files. Nothing is unpacked for this."""
    if len(members) > MAX_MEMBERS:
        raise DataError(f"{path}: holds {len(members):,} files, at most {MAX_MEMBERS:,} are read. Split it.")
    total = sum(member.file_size for member in members)
    if total > MAX_TOTAL:
        raise DataError(f"{path}: unpacks to {total:,} bytes, at most {MAX_TOTAL:,} are read. Split it.")
    seen: set[str] = set()
    for member in members:
        name = member.filename
        what = None
        if name.startswith("/") or "\\" in name or ":" in name.split("/")[0] or ".." in name.split("/"):
            what = "a path that leads out of the zip"
        elif stat.S_ISLNK(member.external_attr >> 16):
            what = "a link"
        elif member.flag_bits & 1:
            what = "an encrypted file"
        elif name in seen:
            what = "a second file of one name"
        elif member.file_size > LIMITS.bytes:
            what = f"a file of {member.file_size:,} bytes, over the limit of {LIMITS.bytes:,}"
        elif member.file_size > MAX_RATIO * max(member.compress_size, 1) and member.file_size > 1_000_000:
            what = f"a file that unpacks to more than {MAX_RATIO} times its size"
        if what is not None:
            raise DataError(f"{path}: {name!r} is {what}, so the zip is refused. Make it of plain picture files.")
        seen.add(name)


def _table(path: Path, text: str, label: str | None, require_label: bool) -> Iterator[Row]:
    """Rows of a table with a column of paths; those with an empty cell have that as their fault."""
    incomplete: list[Row] = []
    column = text
    if text == "text":  # the default for texts; tables of pictures call it `path`
        _, first = next(read_records(path), (0, {}))
        column = "path" if "path" in first and "text" not in first else text
    rows = read_rows([path], text=column, label=label, require_label=require_label, faulty=incomplete)
    for row in incomplete:
        named = bool(row.text.strip())
        row = Row("", row.label, row.file, row.line, row.extra, _beside(path, row) if named else None)
        yield _with_fault(row, f"an empty cell in column '{label if named else column}'. Fill it.")
    for row in rows:
        yield Row("", row.label, row.file, row.line, row.extra, _beside(path, row))


def _beside(table: Path, row: Row) -> Picture:
    return Picture(table.parent / row.text, row.text)
