"""Forward plus backward of the sparse maps against the `entmax` package, in the same run: `make bench-simplex`.

Medians over interleaved runs, float32, N(0,1) scores, and the same scores times 0.01, the worst case for a sparse map
(nothing is zero). A ratio of 10 means that the package takes 10 times as long. torch.softmax is the floor.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import entmax as package
import torch
from outcome import Against, Cell, Outcome, Table, ended, ranged

import simplex
from simplex import kernel

SHAPES = ((64, 1000), (64, 10_000), (8, 100_000), (1024, 128))
Map = Callable[[torch.Tensor], torch.Tensor]
Ratios = dict[tuple[str, float], list[float]]
"""By map and scale of the scores: the package's time over ours, for each shape."""
Times = list[list[float]]
PAIRS: dict[str, tuple[Map, Map, float]] = {
    "sparsemax": (package.sparsemax, simplex.sparsemax, 8),
    "entmax15": (package.entmax15, simplex.entmax15, 8),
    "entmax(1.5)": (lambda x: package.entmax_bisect(x, 1.5), lambda x: simplex.entmax(x, 1.5), 20),
    "entmax(1.3)": (lambda x: package.entmax_bisect(x, 1.3), lambda x: simplex.entmax(x, 1.3), 1),
}


def in_turns(maps: list[Map], x: torch.Tensor, g: torch.Tensor, runs: int) -> Times:
    """Milliseconds of every run of each map, the maps taking turns so that a busy machine slows all of them."""
    times: list[list[float]] = [[] for _ in maps]
    for run in range(runs + 2):
        for function, record in zip(maps, times, strict=True):
            x.grad = None
            start = time.perf_counter()
            function(x).backward(g)
            if run >= 2:
                record.append(1e3 * (time.perf_counter() - start))
    return times


def report(rows: list[list[Cell]], against: list[Against], options: argparse.Namespace) -> Outcome:
    """The same figures for docs/benchmarks.md."""
    columns = ["map", "shape", "torch.softmax ms", "entmax package ms", "surematch ms", "times faster"]
    ours = "pure torch" if options.no_kernel or kernel.library() is None else "our compiled kernel"
    note = (
        f"Forward and backward, float32, {options.threads} threads, {ours}, medians of {options.runs} interleaved "
        "runs; times faster than the package, lowest to highest of the middle half of the runs. The package has an "
        "exact map for 1.5, `entmax15`, and bisects for every other number, as for `entmax(1.5)` here. torch.softmax "
        "is another map."
    )
    versions = {"entmax": version("entmax"), "torch": torch.__version__}
    table = Table("Sparse maps", columns, rows, note, "times faster")
    return Outcome("simplex", "Speed of the maps", [table], against, versions)


def middle_half(values: list[float]) -> list[float]:
    """Without the lowest and the highest quarter, which tell of the machine."""
    quarter = len(values) // 4
    return sorted(values)[quarter : len(values) - quarter]


def mean(values: list[float]) -> float:
    """Geometric."""
    return float(math.prod(values) ** (1 / len(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--no-kernel", action="store_true", help="pure torch, as on a machine without a compiler")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.no_kernel:
        kernel.usable = lambda x, alpha: False  # type: ignore[assignment]
    print(f"{options.threads} threads, float32, medians of {options.runs}, ms forward + backward;", end=" ")
    print("pure torch" if options.no_kernel or kernel.library() is None else "compiled kernel")
    print(f"{'scores':>8} {'shape':>12} {'softmax':>8} " + " ".join(f"{name:>26}" for name in PAIRS))
    ratios: Ratios = {}
    rows: list[list[Cell]] = []
    against: list[Against] = []
    for scale in (1.0, 0.01):
        for shape in SHAPES:
            x = (torch.randn(shape) * scale).requires_grad_()
            maps: list[Map] = [lambda z: z.softmax(-1)]
            maps += [function for theirs, ours, _ in PAIRS.values() for function in (theirs, ours)]
            runs = in_turns(maps, x, torch.randn(shape), options.runs)
            floor, *pairs = map(statistics.median, runs)
            cells, shown = [], f"{shape[0]}x{shape[1]}"
            for at, (name, theirs, ours) in enumerate(zip(PAIRS, pairs[::2], pairs[1::2], strict=True)):
                ratios.setdefault((name, scale), []).append(theirs / ours)
                cells.append(f"{theirs:8.2f} /{ours:7.3f} ={theirs / ours:6.1f}x")
                times = [package / own for package, own in zip(runs[1 + 2 * at], runs[2 + 2 * at], strict=True)]
                row = f"{name}, scores x {scale:g}"
                rows.append([row, shown, floor, theirs, ours, ranged(middle_half(times))])
                against.append(Against(row, f"{shown}, ms", ours, "torch.softmax", floor, False))
                against.append(Against(row, f"{shown}, ms", ours, "entmax package", theirs, False))
            print(f"{scale:8g} {shown:>12} {floor:8.3f} " + " ".join(f"{cell:>26}" for cell in cells), flush=True)
    report(rows, against, options).write(options.json)
    for (name, scale), values in ratios.items():
        average, least = mean(values), PAIRS[name][2] if scale == 1 else 1
        met = average >= least and min(values) >= 1
        print(
            f"{name:>12} x {scale:<5g} geometric mean {average:6.1f}x (wanted {least}x), least {min(values):6.1f}x",
            end=" ",
        )
        print("" if met else "NOT MET")


if __name__ == "__main__":
    ended(main)
