"""What every benchmark writes with `--json`: tables to print, and each comparison with a peer, better or worse.

`bench_all.py` makes docs/benchmarks.md of these files; nothing in that report is typed by hand.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Cell = str | int | float | None
SKIPPED = 77
"""Exit status of a benchmark whose data cannot be had here, as Automake's and Meson's test programs say it."""


@dataclass(frozen=True)
class Against:
    """One figure of ours beside the same figure of a peer, measured in the same run."""

    where: str
    """The table or the row it stands in."""
    what: str
    ours: float
    peer: str
    theirs: float
    higher_is_better: bool = True

    @property
    def ratio(self) -> float:
        """How many times better ours is; below 1 the peer is ahead."""
        better, worse = (self.ours, self.theirs) if self.higher_is_better else (self.theirs, self.ours)
        return better / worse if worse else 1.0 if better == worse else float("inf")


@dataclass(frozen=True)
class Beside:
    """A row of ours beside rows of peers, by the names in the first column, in every column that tells which is better.

    Each other column of the table stands in one of these lists: none is left out of the comparison by forgetting it.
    """

    ours: str
    peers: list[str]
    higher: list[str] = field(default_factory=list)
    lower: list[str] = field(default_factory=list)
    near: dict[str, str] = field(default_factory=dict)
    """Column to the column it should be equal to."""
    neither: list[str] = field(default_factory=list)
    """Columns in which more is neither better nor worse."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns. `plot` names a column drawn as bars, one a row; `note` says how it was got.

    Raises `ValueError` for rows of another length, and for names of columns that are not there or left out.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    plot: str | None = None
    beside: list[Beside] = field(default_factory=list)

    def __post_init__(self) -> None:
        if wrong := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"{self.title}: {len(self.columns)} columns, and a row of {len(wrong[0])}: {wrong[0]}")
        if self.plot is not None and self.plot not in self.columns:
            raise ValueError(f"{self.title}: no column {self.plot!r} to draw; there are {', '.join(self.columns)}")
        for one in self.beside:
            said = {*one.higher, *one.lower, *one.near, *one.near.values(), *one.neither}
            if wrong_names := said ^ set(self.columns[1:]):
                raise ValueError(f"{self.title}: columns unknown, or not said which way is better: {wrong_names}")
            if unknown := {one.ours, *one.peers} - {str(row[0]) for row in self.rows}:
                raise ValueError(f"{self.title}: no rows {unknown}")

    def against(self) -> Iterator[Against]:
        """Every comparison of a row of ours with a peer's, wherever both have a figure."""
        rows = {str(row[0]): dict(zip(self.columns, map(middle, row), strict=True)) for row in self.rows}
        several = len({one.ours for one in self.beside}) > 1
        for one in self.beside:
            ours, where = rows[one.ours], f"{self.title}: {one.ours}" if several else self.title
            for peer in one.peers:
                theirs = rows[peer]
                for column in self.columns[1:]:
                    other = one.near.get(column)
                    found = [_distance(row[column], row[other] if other else 0.0) for row in (ours, theirs)]
                    if found[0] is None or found[1] is None or column in (*one.neither, *one.near.values()):
                        continue
                    what = f"{column}: away from {other}" if other else column
                    yield Against(where, what, found[0], peer, found[1], column in one.higher)

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.columns) + " |", "|---" + "|---:" * (len(self.columns) - 1) + "|"]
        lines += ["| " + " | ".join(shown(cell) for cell in row) + " |" for row in self.rows]
        return "\n".join(lines)


@dataclass(frozen=True)
class Outcome:
    """All that one benchmark found. `versions` are of the peers, `missing` of those that did not run the reasons;
    `figures` is whatever else it measured.

    `against` holds the comparisons that are not rows of a table beside each other.
    """

    name: str
    title: str
    tables: list[Table]
    against: list[Against] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    figures: Any = None
    missing: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path | None) -> None:
        """Writes it as JSON; nothing where no path is given."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def comparisons(self) -> list[Against]:
        """Every one: those of the tables, and the others."""
        return [one for table in self.tables for one in table.against()] + self.against

    @classmethod
    def read(cls, path: Path) -> Outcome:
        return cls.of(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def of(cls, content: dict[str, Any]) -> Outcome:
        """From what `asdict` made of one."""
        tables = [
            Table(**{**table, "beside": [Beside(**one) for one in table["beside"]]}) for table in content["tables"]
        ]
        return cls(**{**content, "tables": tables, "against": [Against(**one) for one in content["against"]]})


def shown(cell: Cell) -> str:
    """Numbers with as many digits as can be told apart, words as they are."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 1000:
        return f"{cell:,.0f}"
    return f"{cell:.4f}" if abs(cell) < 1 else f"{cell:.3g}" if abs(cell) < 100 else f"{cell:.0f}"


def spread(cell: Cell) -> tuple[float, float, float] | None:
    """Lowest, middle and highest of a cell: a number, "mean ± deviation" or "middle (lowest to highest)"; else None."""
    if isinstance(cell, int | float):
        return float(cell), float(cell), float(cell)
    found = [float(number.replace(",", "")) for number in re.findall(r"-?[\d,]*\.?\d+", str(cell))]
    if len(found) == 2 and "±" in str(cell):
        return found[0] - found[1], found[0], found[0] + found[1]
    if len(found) == 3 and " to " in str(cell):
        return found[1], found[0], found[2]
    return (found[0], found[0], found[0]) if len(found) == 1 else None


def middle(cell: Cell) -> float | None:
    """The cell's figure without its spread; None for words."""
    found = spread(cell)
    return None if found is None else found[1]


def between(value: float, low: float, high: float) -> str:
    """A figure and what it lies between: `658 (601 to 702)`."""
    return f"{shown(value)} ({shown(low)} to {shown(high)})"


def ranged(values: Sequence[float]) -> str:
    """The median, and the lowest to the highest."""
    return between(statistics.median(values), min(values), max(values))


def _distance(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else abs(value - other) if other else value


def ended(main: Callable[[], int | None]) -> None:
    """Runs a benchmark to its exit status; interrupted, it ends with a line instead of a traceback."""
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted.")
    except subprocess.SubprocessError as error:
        sys.exit(str(error))
