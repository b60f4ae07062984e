"""The figures of docs/scale.md: `python docs/scale_numbers.py`. Computed, not measured; the engines' own estimates."""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from index.engines.choice import FAISS

SIZES, DIMENSION = (10**7, 10**8, 10**9), 384
MACHINE = 64 * 2**30 * 0.75
"""Bytes of a 64 GiB machine that may hold an index."""
READ = 9e9
"""Assumed: bytes a second that one core compares."""
FLOPS = 1e11
"""Assumed: floating-point operations a second in a matrix product."""
QUERIES = 4000
SHOWN = ("flat", "hnsw", "ivf-pq", "sq8")


def tables() -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of both tables."""
    memory, work = [], []
    for size in SIZES:
        name, whole = f"10^{round(math.log10(size))}", 4 * DIMENSION * size
        needed = [FAISS[kind].memory(size, DIMENSION) for kind in SHOWN]
        memory.append([name, *(f"{one / 1e9:,.0f} GB, {math.ceil(one / MACHINE)}" for one in needed)])
        scan, fit = whole / READ, 2 * QUERIES * size * DIMENSION / FLOPS / 60
        nearest = math.sqrt(2 * math.log(size) / DIMENSION)
        work.append([name, f"{whole / 1e9:,.0f} GB", f"{scan:,.1f} s", f"{fit:,.0f} min", f"{nearest:.2f}"])
    columns = ["vectors", "vectors on disk", "exact scan, one core", "exact calibration, 4,000 queries"]
    return [
        ("memory and machines of 64 GiB", ["vectors", *SHOWN], memory),
        ("time, and what an unrelated item reaches", [*columns, "unrelated best"], work),
    ]


if __name__ == "__main__":
    for title, columns, rows in tables():
        print(f"{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print("".join(f"| {' | '.join(row)} |\n" for row in rows))
