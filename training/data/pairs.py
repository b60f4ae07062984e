"""Pairs of texts that are or are not of one class, made into classes by union-find."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from index.calibration.pairs import is_same, second_text
from index.data.rows import Row, text_key
from training.data.review import Fault, refuse

CLASS = "class"


def rows_of_pairs(pairs: Sequence[Row], second: str, *, skip: bool) -> tuple[list[Row], list[Fault]]:
    """One row for each distinct text of `pairs`, labelled by the number of its class, and the report.

    The label of a pair says whether its text and the text in column `second` are of one class. Texts that no pair joins
    to another are left out. A pair said to be of two classes whose texts other pairs join is refused; with `skip`, the
    whole class is left out. Raises `DataError`.
    """
    texts: dict[int, Row] = {}
    groups = _Groups()
    apart: list[tuple[int, int, Row]] = []
    empty: list[Fault] = []
    for pair in pairs:
        other = replace(pair, text=second_text(pair, second))
        if not other.text.strip():
            empty.append(Fault("empty text", pair, True))
            continue
        a, b = text_key(pair.text), text_key(other.text)
        texts.setdefault(a, pair)
        texts.setdefault(b, other)
        if is_same(pair):
            groups.join(a, b)
        else:
            apart.append((a, b, pair))
    torn = {groups.find(a): pair for a, b, pair in apart if groups.find(a) == groups.find(b)}
    faults = [*empty, *(Fault("contradictory pair", pair, True) for pair in torn.values())]
    if not skip:
        refuse(faults)
    sizes = Counter(groups.find(key) for key in texts)
    rows: list[Row] = []
    names: dict[int, str] = {}  # no texts: labels go wherever the encoder goes
    for key, row in texts.items():
        root = groups.find(key)
        named = replace(row, label=names.setdefault(root, f"{CLASS} {len(names) + 1}"), extra={})
        if sizes[root] < 2:
            faults.append(Fault("text in no pair of one class", named, True))
        elif root not in torn:
            rows.append(named)
    return rows, faults


def is_numbered(labels: Iterable[str]) -> bool:
    """Whether all labels are of `rows_of_pairs`; those of earlier versions were texts."""
    return all(re.fullmatch(rf"{CLASS} [0-9]+", label) for label in labels)


class _Groups:
    """Union-find over keys; a group is represented by the key that came first."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}
        self._age: dict[int, int] = {}

    def find(self, key: int) -> int:
        self._age.setdefault(key, len(self._age))
        root = key
        while self._parent.get(root, root) != root:
            root = self._parent[root]
        while self._parent.get(key, root) != root:
            self._parent[key], key = root, self._parent[key]
        return root

    def join(self, a: int, b: int) -> None:
        older, younger = sorted((self.find(a), self.find(b)), key=self._age.__getitem__)
        self._parent[younger] = older
