"""Verification: are two pictures of one person? Pairs files and the true accept rate at a false accept rate."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError
from index.metrics import line_at_far


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures by their names (`index.data.picture.Picture.name`), and whether they show one identity."""

    first: str
    second: str
    same: bool


def read_pairs(path: Path, suffix: str = "jpg") -> list[Pair]:
    """The pairs of a CSV (columns image_a, image_b, same) or of a file in the format of LFW's pairs.txt.

    LFW's lines are `NAME N1 N2` (one person) and `NAME1 N1 NAME2 N2` (two); picture N of NAME is
    NAME/NAME_000N.`suffix`. Raises `DataError` naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the pairs cannot be read ({error}). Give a CSV or a pairs.txt in UTF-8.") from error
    pairs = _csv_pairs(path, lines) if lines and "," in lines[0] else _lfw_pairs(path, lines, suffix)
    if len({pair.same for pair in pairs}) < 2:
        raise DataError(f"{path}: holds pairs of one kind only. Verification needs same and different pairs.")
    return pairs


def tar_at_far(vectors: NDArray[np.floating], names: Sequence[str], pairs: Sequence[Pair], far: float) -> float:
    """Share of same pairs whose cosine lies above the threshold that lets through at most `far` of the others.

    Args:
        vectors: (n, d) unit rows of the pictures `names`.
        far: false accept rate in (0, 1).

    Raises:
        DataError: a pair names a picture that is not there, or there are too few different pairs for `far`.
    """
    at = {name: row for row, name in enumerate(names)}
    missing = next((name for pair in pairs for name in (pair.first, pair.second) if name not in at), None)
    if missing is not None:
        raise DataError(f"A pair names the picture {missing!r}, which is not among the {len(names)} given.")
    scores = np.array([vectors[at[pair.first]] @ vectors[at[pair.second]] for pair in pairs])
    same = np.array([pair.same for pair in pairs], bool)
    others = int((~same).sum())
    if not 0 < far < 1 or int(far * others) < 1:
        raise DataError(f"A false accept rate of {far} cannot be measured on {others} different pairs.")
    return float((scores[same] >= line_at_far(scores, same, far)).mean())


def _csv_pairs(path: Path, lines: Sequence[str]) -> list[Pair]:
    reader = csv.DictReader(lines)
    wanted = {"image_a", "image_b", "same"}
    if not wanted <= set(reader.fieldnames or ()):
        raise DataError(f"{path}: has the columns {reader.fieldnames}, expected image_a, image_b and same (1 or 0).")
    pairs = []
    for line, row in enumerate(reader, 2):
        if row["same"] not in ("0", "1") or not row["image_a"] or not row["image_b"]:
            raise DataError(f"{path}: line {line}: expected two pictures and 1 or 0, got {list(row.values())}.")
        pairs.append(Pair(row["image_a"], row["image_b"], row["same"] == "1"))
    return pairs


def _lfw_pairs(path: Path, lines: Sequence[str], suffix: str) -> list[Pair]:
    pairs = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or (number == 1 and all(word.isdigit() for word in words)):  # the count of folds and pairs
            continue
        match words:
            case [name, one, two] if one.isdigit() and two.isdigit():
                pairs.append(Pair(_lfw(name, one, suffix), _lfw(name, two, suffix), True))
            case [name, one, other, two] if one.isdigit() and two.isdigit():
                pairs.append(Pair(_lfw(name, one, suffix), _lfw(other, two, suffix), False))
            case _:
                raise DataError(f"{path}: line {number}: expected NAME N N or NAME N NAME N, got {line[:80]!r}.")
    return pairs


def _lfw(name: str, number: str, suffix: str) -> str:
    return f"{name}/{name}_{int(number):04d}.{suffix}"
