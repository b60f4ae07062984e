"""Pairs of pictures: a table's two columns of paths, with the pictures they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from index.calibration.sources import Progress
from index.data.picture import Picture
from index.data.rows import Row
from index.encoders.encoder import Encoder
from index.encoders.pictures import picture_of
from index.errors import SettingsError
from index.verbs.reading import Reader


def picture_pairs(
    firsts: Sequence[Row],
    seconds: Sequence[Row],
    root: Path | None,
    reader: Reader,
    encoder: Encoder,
    progress: Progress,
) -> tuple[list[Row], list[Row]]:
    """The firsts and the seconds of the pairs that can be used, with the pictures at the paths they hold.

    Paths count from the folder `root`, else from that of their table. Every picture is looked at once, in however many
    pairs it is; one that cannot be used is an error, or is left out with all its pairs, as `reader` says. Raises
    `DataError` and, where there is no `root`, `SettingsError`.
    """
    if root is not None and not root.is_dir():
        raise SettingsError(f"--pictures {root}: there is no such folder. It is looked for from {Path.cwd()}.")
    firsts, seconds = ([_named(row, root) for row in rows] for rows in (firsts, seconds))
    distinct: dict[Picture, Row] = {}
    for pair in zip(firsts, seconds, strict=True):
        for row in pair:
            distinct.setdefault(picture_of(row), row)
    sound = reader.look(distinct.values())
    if reader.skips:
        sound = reader.usable(encoder, sound, progress)
    digests = {picture_of(row): row.text for row in sound}
    kept = [pair for pair in zip(firsts, seconds, strict=True) if all(picture_of(row) in digests for row in pair)]
    first, second = ([replace(pair[at], text=digests[picture_of(pair[at])]) for pair in kept] for at in (0, 1))
    return first, second


def _named(row: Row, root: Path | None) -> Row:
    folder = Path(row.file).parent if root is None else root
    return replace(row, image=Picture(folder / row.text, row.text))
