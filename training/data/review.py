"""What is wrong with the rows, row by row: the report every training makes, and the lenient way through it.

Strictly, rows that cannot be learned from stop the training; with `--skip-faulty` they are left out, after the report
has named each. Rows that can be learned from but look wrong are named either way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from index.data.rows import Row, text_key
from index.encoders.pictures import cannot_be_used
from index.errors import DataError

Kind = Literal[
    "empty text",
    "empty label",
    "unusable picture",
    "conflicting labels",
    "duplicate",
    "class of one row",
    "contradictory pair",
    "text in no pair of one class",
]
SHOWN = 5
"""How many faulty rows a line of the report or an error names before it counts the rest."""
LEAST_TO_TRAIN = 2
"""A class is learned from at least two rows: one row gives nothing to be close to."""

_REMEDY: dict[Kind, str] = {
    "empty text": "Fill these texts or delete the rows",
    "empty label": "Label these rows or delete them",
    "unusable picture": "Replace or delete these files",
    "class of one row": (
        "A class is learned from at least two rows: add another row to each, correct the label, or delete the row"
    ),
    "contradictory pair": "Other pairs join the two texts of each: correct these pairs, or those",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One row and what is the matter with it; `left_out` says whether it trains."""

    kind: Kind
    row: Row
    left_out: bool

    def as_json(self) -> dict[str, Any]:
        """The fault as `training.json` keeps it."""
        row = self.row
        place = {"file": row.file, "line": row.line, "text": row.text, "label": row.label}
        return {"kind": self.kind, **place, "left_out": self.left_out}


def review(rows: Sequence[Row], empty: Sequence[Row], *, skip: bool) -> tuple[list[Row], list[Fault]]:
    """The rows to train on, and the report. `empty` are rows without a text or a label.

    With `skip`, what cannot be learned is left out: empty rows, texts that carry two labels, classes of one row.
    Without, texts of two labels train and the others raise `DataError`.
    """
    faults = [Fault(_missing(row), row, True) for row in empty]
    labels_of: dict[int, set[str | None]] = defaultdict(set)
    for row in rows:
        labels_of[text_key(row.text)].add(row.label)
    kept: list[Row] = []
    seen: set[int] = set()
    for row in rows:
        key = text_key(row.text)
        if len(labels_of[key]) > 1:
            faults.append(Fault("conflicting labels", row, skip))
        elif key in seen:
            faults.append(Fault("duplicate", row, False))
        seen.add(key)
        if not (skip and len(labels_of[key]) > 1):
            kept.append(row)
    sizes = Counter(row.label for row in kept)
    if len(sizes) > 1:  # a single class is refused for what it is, however many rows it has
        faults += [Fault("class of one row", row, True) for row in kept if sizes[row.label] < LEAST_TO_TRAIN]
        kept = [row for row in kept if sizes[row.label] >= LEAST_TO_TRAIN]
    if not skip:
        refuse(faults)
    return kept, faults


def _missing(row: Row) -> Kind:
    if row.fault is not None:
        return "unusable picture"
    return "empty text" if not row.text.strip() else "empty label"


def refuse(faults: Sequence[Fault]) -> None:
    """Raises `DataError` for the first kind of fault that nothing can be learned from."""
    for kind, remedy in _REMEDY.items():
        found = [fault.row for fault in faults if fault.kind == kind and fault.left_out]
        if found:
            raise DataError(f"{describe(kind, found)}. {remedy}, or leave them out with --skip-faulty.")


def describe(kind: Kind, rows: Sequence[Row]) -> str:
    """One line: how many rows, and which."""
    if kind == "unusable picture":
        return cannot_be_used(rows)
    if kind in ("empty text", "empty label"):
        lines: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            lines[row.file].append(str(row.line))
        return "; ".join(f"{file}: an {kind} at line {_some(found, ', ')}" for file, found in lines.items())
    named = _some([f"{row.label!r} at {row.file} line {row.line} ({row.text[:60]!r})" for row in rows], "; ")
    count = f"{len(rows)} {'row' if len(rows) == 1 else 'rows'}"
    what = {
        "conflicting labels": f"{count} whose text carries two labels",
        "duplicate": f"{count} with a text that came before",
        "class of one row": f"{len(rows)} {'class has' if len(rows) == 1 else 'classes have'} a single row",
        "contradictory pair": f"{count} said to be of two classes that are one",
        "text in no pair of one class": f"{len(rows)} texts that no pair joins to another",
    }[kind]
    return f"{what}: {named}"


def summary(faults: Sequence[Fault]) -> list[str]:
    """The report in lines, one for each kind that occurs and each fate."""
    lines = []
    for kind, left_out in dict.fromkeys((fault.kind, fault.left_out) for fault in faults):
        rows = [fault.row for fault in faults if (fault.kind, fault.left_out) == (kind, left_out)]
        lines.append(f"{describe(kind, rows)}. {'Left out.' if left_out else 'They train.'}")
    return lines


def _some(names: Sequence[str], between: str) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(names[:SHOWN]) + more
