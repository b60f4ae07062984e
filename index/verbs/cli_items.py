"""The verbs that keep a live collection: add, delete, compact, backup, restore."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from index.backup import copy_collection
from index.calibration.sources import Progress
from index.collection import Collection
from index.data.rows import SHOWN, Row, text_key
from index.encoders.encode import Encoded, encode_stream
from index.encoders.files import modality_of
from index.errors import DataError, NoLabelColumn, SettingsError
from index.intake import item_id, metadata_of, take_in
from index.items.filters import read_filter
from index.items.new_items import NewItem, Receipt
from index.storage.folder import ENCODER, SNAPSHOTS, read_config
from index.storage.signing import KEY, signing
from index.storage.snapshot import sign
from index.storage.versions import Versions
from index.storage.writer_lock import WriterLock
from index.verbs import console
from index.verbs.reading import SKIP, Reader, check_columns, folders_are_labels, indexed_label
from index.verbs.settings import Settings, parse
from index.verbs.terminal import Terminal, print_json
from index.verbs.usable import Remembering

UNLABELLED = " With --label '' the items are added without labels."
JSON = Field(False, alias="json", description="print one JSON object instead of words")


class AddSettings(Settings):
    """Add items to a collection, or replace those whose id it has: 1,024 at a time, each batch whole or not at all."""

    model_config = SettingsConfigDict(cli_prog_name="surematch add")

    collection: CliPositionalArg[Path] = Field(description="folder of the collection")
    data: CliPositionalArg[list[Path]] = Field(
        description="items: CSV, TSV, JSONL or Parquet files; of pictures also zips, or a folder of folders"
    )
    text: str = Field("text", description="column that holds the text, or the path of a picture")
    label: str | None = Field(
        None,
        description="column that holds the label, '' for items without labels [default: as indexed; pictures in "
        "folders carry the folder's]",
    )
    id: str | None = Field(
        None, description="column that holds the item's id [default: file name and line, of a picture its path]"
    )
    replace: bool = Field(
        False, description="without --id: items of the same file name and line are these, though their text is another"
    )
    skip_faulty: bool = SKIP
    json_: bool = JSON


class DeleteSettings(Settings):
    """Delete items. They are not found from then on; `surematch compact` also erases them from every file."""

    model_config = SettingsConfigDict(cli_prog_name="surematch delete")

    collection: CliPositionalArg[Path] = Field(description="folder of the collection")
    ids: CliPositionalArg[list[str]] = Field([], description="ids of the items")
    where: str | None = Field(None, description='filter instead of ids, as JSON: {"brand": "acme"}')
    json_: bool = JSON


class CompactSettings(Settings):
    """Build the index anew from the items, fit the calibration again, and erase what was deleted from every file."""

    model_config = SettingsConfigDict(cli_prog_name="surematch compact")

    collection: CliPositionalArg[Path] = Field(description="folder of the collection")
    sign: bool = Field(
        False, description=f"trust the folder as it lies, and sign its snapshot with the key that {KEY} names"
    )
    json_: bool = JSON


class BackupSettings(Settings):
    """Copy a collection while it is served and written to. The copy is verified before it takes its place."""

    model_config = SettingsConfigDict(cli_prog_name="surematch backup")

    collection: CliPositionalArg[Path] = Field(description="folder of the collection")
    dest: CliPositionalArg[Path] = Field(description="folder of the copy, which must not exist")
    json_: bool = JSON


class RestoreSettings(Settings):
    """Put a back-up in place as a collection, verified file by file."""

    model_config = SettingsConfigDict(cli_prog_name="surematch restore")

    src: CliPositionalArg[Path] = Field(description="folder of the back-up")
    dest: CliPositionalArg[Path] = Field(description="folder of the collection, which must not exist")
    json_: bool = JSON


def add(argv: Sequence[str]) -> int:
    """`surematch add COLLECTION DATA`"""
    settings = parse(AddSettings, argv)
    config = read_config(settings.collection)  # what is no collection is said before any data is read for it
    reader = _reader(settings, config)
    try:
        rows = reader.read(settings.data)
    except NoLabelColumn as error:
        raise DataError(f"{error}{UNLABELLED}") from error
    if settings.label == "":
        rows = [replace(row, label=None) for row in rows]  # those of pictures in folders have one all the same
    with (
        closing(Collection.open(settings.collection, writable=True, compacts=False)) as collection,
        console.progress(quiet=settings.json_) as progress,
    ):
        if reader.skips:
            collection.encoder = Remembering(collection.encoder)
            rows = reader.usable(collection.encoder, rows, progress)
        take_in(rows, settings.id, progress)
        if settings.id is None and not settings.replace:
            _refuse_strangers(collection, rows)
        told = asdict(_add(collection, rows, settings.id, progress)) | _state(collection) | reader.as_json()
    if not settings.json_:
        reader.tell()
    words = f"{_counted(told['written'], 'item')} written, {told['replaced']} of them replaced."
    words += _advice(told, settings.collection)
    return tell(told, words, settings.json_)


def _reader(settings: AddSettings, config: dict[str, Any]) -> Reader:
    """Raises `SettingsError` where no column of labels is named, here or before: many items without labels end the
    collection's calibration, so that they are to have none is said."""
    encoder, label = settings.collection / ENCODER, settings.label
    check_columns(modality_of(str(encoder)), settings.data, settings.text, label)
    if label is None:
        data = next(filter(folders_are_labels, settings.data), settings.data[0])
        label = indexed_label(config, encoder, data, UNLABELLED)
    return Reader(modality_of(str(encoder)), text=settings.text, label=label or None, skip=settings.skip_faulty)


def _refuse_strangers(collection: Collection, rows: Sequence[Row]) -> None:
    """Raises `DataError` where file name and line make the id of an item with another text: next month's file may have
    the name of this month's. A picture of the same path is a newer one."""
    for row in rows:
        there = None if row.image else collection.item(item_id(row, None))
        if there is not None and there.text != row.text:
            raise DataError(
                f"{row.file}: line {row.line}: would replace the item {there.id!r}, whose text is another "
                f"({(there.text or '')[:40]!r}). Name a column of ids with --id COLUMN or give the file another name; "
                "say --replace where these rows are those items, changed."
            )


def _add(collection: Collection, rows: Sequence[Row], id_column: str | None, progress: Progress) -> Receipt:
    """Encodes and writes the rows, batch by batch. Raises `DataError` saying how many were written before a fault."""
    done = Receipt(0)
    try:
        for encoded in encode_stream(collection.encoder, collection.path / ENCODER, rows):
            receipt = collection.upsert(_new_items(collection, encoded, id_column))
            done = Receipt(receipt.sequence, done.written + receipt.written, done.replaced + receipt.replaced)
            progress("adding", done.written, len(rows))
    except DataError as error:
        if not done.written:
            raise
        so_far = f"The first {done.written:,} of {len(rows):,} items were written before this one was found."
        raise DataError(f"{error} {so_far}") from error
    return done


def _new_items(collection: Collection, encoded: Encoded, id_column: str | None) -> list[NewItem]:
    return [
        NewItem(
            _id_there(collection, row, id_column),
            row.label,
            row.text if row.image is None else None,  # pictures are not kept
            vector,
            metadata=metadata_of(row, id_column),
            content=None if row.image is None else text_key(row.text),
        )
        for row, vector in zip(encoded.rows, encoded.vectors, strict=True)
    ]


def _id_there(collection: Collection, row: Row, id_column: str | None) -> str:
    """The row's id; where it is a decimal, "22.0", as an earlier version kept it, if that is there."""
    given = None if id_column is None else row.extra.get(id_column)
    there = isinstance(given, float) and collection.item(str(given)) is not None
    return str(given) if there else item_id(row, id_column)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def delete(argv: Sequence[str]) -> int:
    """`surematch delete COLLECTION ID ...`"""
    settings = parse(DeleteSettings, argv)
    if settings.ids and settings.where is not None:
        raise SettingsError("Items to delete were named twice: give their ids, or --where FILTER, not both.")
    if not settings.ids and settings.where is None:
        raise SettingsError("Name the items to delete: their ids, or --where FILTER.")
    with closing(Collection.open(settings.collection, writable=True, compacts=False)) as collection:
        missing = [name for name in settings.ids if collection.item(name) is None]
        if settings.where is None:
            receipt = collection.delete(settings.ids)
        else:
            receipt = collection.delete_where(read_filter(settings.where))
        told = asdict(receipt) | {"missing": missing} | _state(collection)
    words = f"{_counted(receipt.deleted, 'item')} deleted."
    if receipt.deleted:
        words += f" `surematch compact {shlex.quote(str(settings.collection))}` erases them from every file."
    else:
        words = "No item was deleted: none has such an id, or passes the filter."
    if missing and receipt.deleted:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        words += f" No item has the id {', '.join(map(repr, missing[:SHOWN]))}{more}."
    return tell(told, f"{words}{_advice(told, settings.collection)}", settings.json_)


def compact(argv: Sequence[str]) -> int:
    """`surematch compact COLLECTION`"""
    settings = parse(CompactSettings, argv)
    if settings.sign:
        _sign(settings.collection)
    with (
        closing(Collection.open(settings.collection, writable=True, compacts=False)) as collection,
        console.progress(quiet=settings.json_) as progress,
    ):
        name = collection.snapshot(progress)
        erased = collection.describe()["erased"]
        told = {"snapshot": name, "erased": erased} | _state(collection)
    words = f"Snapshot {name} of {told['items']} items. "
    words += f"What was deleted up to write {erased['sequence']} is in no file any more." if erased["at"] else ""
    return tell(told, f"{words}{_advice(told, settings.collection)}", settings.json_)


def _sign(path: Path) -> None:
    if not signing():
        raise SettingsError(f"--sign: {KEY} is not set. Name a file with a secret there, then sign.")
    read_config(path)
    lock = WriterLock(path)
    try:
        sign(path / SNAPSHOTS)
        Versions(path).sign()
    finally:
        lock.release()


def backup(argv: Sequence[str]) -> int:
    """`surematch backup COLLECTION DEST`"""
    settings = parse(BackupSettings, argv)
    return _copy(settings.collection, settings.dest, settings.json_)


def restore(argv: Sequence[str]) -> int:
    """`surematch restore SRC DEST`"""
    settings = parse(RestoreSettings, argv)
    return _copy(settings.src, settings.dest, settings.json_)


def _copy(source: Path, destination: Path, as_json: bool) -> int:
    with console.progress(quiet=as_json) as progress:
        copied = copy_collection(source, destination, progress)
    words = f"{destination}: {copied.items} items as of write {copied.sequence}, verified."
    return tell(asdict(copied), words, as_json)


def _state(collection: Collection) -> dict[str, Any]:
    reason, due = collection.uncalibrated(), collection.compaction_due()
    return {"items": collection.size, "calibrated": reason is None, "reason": reason, "compaction_due": due}


def _advice(told: dict[str, Any], path: Path) -> str:
    """Why there are no probabilities, and that compaction is due: no verb does it by the way."""
    why = "" if told["reason"] is None else f" Without probabilities: {told['reason']}"
    return why + (f" Compaction is due: surematch compact {shlex.quote(str(path))}" if told["compaction_due"] else "")


def tell(told: dict[str, Any], words: str, as_json: bool) -> int:
    """Prints what a verb did, in words or as one JSON object."""
    if as_json:
        print_json(told)
    else:
        Terminal().print(words)
    return 0
