"""What every benchmark writes with `--json`: tables to print, and each comparison with a peer, better or worse.

`bench_all.py` makes docs/benchmarks.md of these files; nothing in that report is typed by hand.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns. `plot` names a column drawn as bars, one a row; `note` says how it was got."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    plot: str | None = None

    def __post_init__(self) -> None:
        if wrong := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"{self.title}: {len(self.columns)} columns, and a row of {len(wrong[0])}: {wrong[0]}")
        if self.plot is not None and self.plot not in self.columns:
            raise ValueError(f"{self.title}: no column {self.plot!r} to draw; there are {', '.join(self.columns)}")

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.columns) + " |", "|---" + "|---:" * (len(self.columns) - 1) + "|"]
        lines += ["| " + " | ".join(shown(cell) for cell in row) + " |" for row in self.rows]
        return "\n".join(lines)


@dataclass(frozen=True)
class Against:
    """One figure of ours beside the same figure of a peer, measured in the same run."""

    what: str
    ours: float
    peer: str
    theirs: float
    higher_is_better: bool = True

    @property
    def ratio(self) -> float:
        """How many times better ours is; below 1 the peer is ahead."""
        better, worse = (self.ours, self.theirs) if self.higher_is_better else (self.theirs, self.ours)
        return better / worse if worse else float("inf")


@dataclass(frozen=True)
class Outcome:
    """All that one benchmark found. `versions` are of the peers; `figures` is whatever else it measured."""

    name: str
    title: str
    tables: list[Table]
    against: list[Against] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    figures: Any = None

    def write(self, path: Path | None) -> None:
        """Writes it as JSON; nothing where no path is given."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Outcome:
        return cls.of(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def of(cls, content: dict[str, Any]) -> Outcome:
        """From what `asdict` made of one."""
        tables = [Table(**table) for table in content["tables"]]
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


def mean_sd(values: Sequence[float]) -> str:
    """`0.651 ± 0.004`."""
    return f"{statistics.fmean(values):.3f} ± {statistics.pstdev(values):.3f}"
