"""Labelled rows made ready for training: what cannot be learned is refused, what calibrates is held out.

The split is stratified (every class gives its share, small ones together) and keeps equal texts on one side, so that
the held-out rows are texts the encoder has really never seen.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.data.rows import Row, text_key
from index.errors import DataError
from training.data.review import LEAST_TO_TRAIN

SPLIT = "a share of each class, of small ones together"
"""How rows are held out. A training that began otherwise does not go on: it would be measured on what has trained."""


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of the rows that train and of those held out, both ascending, together all rows."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]


def check_classes(rows: Sequence[Row]) -> list[str]:
    """The sorted labels of `rows`. Raises `DataError` for fewer than two classes."""
    labels = sorted({label_of(row) for row in rows})
    if not labels:
        raise DataError("Nothing is left to train on: the report above names every row that was left out, and why.")
    if len(labels) == 1:
        row = rows[0]
        raise DataError(
            f"{row.file}: every row has the label {row.label!r}, from line {row.line} on. Learning what sets classes "
            "apart needs at least two labels: add rows of another class, or name the right column with --label."
        )
    return labels


def split_rows(rows: Sequence[Row], share: float, seed: int) -> Split:
    """Holds out `share` of each class (`_wanted`), never so much that fewer than two of its rows are left to train.

    Rows with equal texts (`index.data.rows.text_key`) go to the same side; a text that carries two labels trains.
    """
    keys = [text_key(row.text) for row in rows]
    labels_of_key: dict[int, set[str]] = defaultdict(set)
    groups: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for at, (row, key) in enumerate(zip(rows, keys, strict=True)):
        labels_of_key[key].add(label_of(row))
        groups[label_of(row)][key].append(at)
    wanted_of = _wanted({label: sum(map(len, texts.values())) for label, texts in groups.items()}, share, seed)
    generator = np.random.default_rng(seed)
    held_out: list[int] = []
    for label in sorted(groups):
        texts = groups[label]
        left = sum(map(len, texts.values()))
        wanted = wanted_of[label]
        candidates = [key for key in texts if len(labels_of_key[key]) == 1]
        for at in generator.permutation(len(candidates)):
            positions = texts[candidates[at]]
            if len(positions) <= min(wanted, left - LEAST_TO_TRAIN):
                held_out += positions
                wanted -= len(positions)
                left -= len(positions)
    mask = np.zeros(len(rows), dtype=bool)
    mask[held_out] = True
    return Split(train=np.flatnonzero(~mask), held_out=np.flatnonzero(mask))


def _wanted(sizes: Mapping[str, int], share: float, seed: int) -> dict[str, int]:
    """Rows that each class is to give, of classes so large.

    Classes that are to give less than half a row, and have one to give, give `share` of their rows together: one each
    of some that are drawn.
    """
    wanted = {label: round(share * size) for label, size in sizes.items()}
    small = sorted(label for label, size in sizes.items() if not wanted[label] and size > LEAST_TO_TRAIN)
    drawn = [small[at] for at in np.random.default_rng(seed).permutation(len(small))]
    due = np.cumsum([share * sizes[label] for label in drawn]).round().astype(int)
    return wanted | dict(zip(drawn, np.diff(due, prepend=0).tolist(), strict=True))


def choose_unseen(labels: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """Classes that stay out of training whole: `share` of `labels`, drawn with `seed`; two to train are left.

    Raises `DataError` when a share is wanted but there are too few classes to hold out two.
    """
    if not share:
        return frozenset()
    count = min(max(2, round(share * len(labels))), len(labels) - 2)
    if count < 2:
        raise DataError(
            f"Measuring on classes never seen takes at least two of them and two to train; there are {len(labels)} "
            "classes. Leave --unseen-classes out, or add classes."
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    return frozenset(labels[at] for at in order[:count])


def data_fingerprint(rows: Sequence[Row]) -> str:
    """SHA-256, in hex, of all texts and labels in order: the identity of what was trained on, wherever it lay."""
    digest = hashlib.sha256()
    for row in rows:
        for part in (row.text, label_of(row)):
            content = part.encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def trained_row_keys(rows: Sequence[Row]) -> NDArray[np.uint64]:
    """Sorted, distinct 64-bit keys of the texts, by which an index recognises rows its encoder was trained on."""
    return np.unique(np.array([text_key(row.text) for row in rows], dtype=np.uint64))


def label_of(row: Row) -> str:
    """The label of a row that must have one."""
    if row.label is None:
        raise DataError(f"{row.file}: line {row.line} has no label. Label this row or delete it.")
    return row.label
