"""Class weights for many classes: time and memory of a training step with full, sampled and exact sparse heads.

    python benchmarks/bench_heads.py [--classes 10000 100000 1000000] [--json FILE]

A step is loss, gradients and AdamW for 64 vectors of 256 dimensions that stand near their class, as in a training that
is under way. `full` is am-softmax over all classes with dense gradients, beside which the others stand; `sampled` is
partial-fc with a tenth of the classes; `exact-sparse` is the Fenchel-Young loss of entmax-1.5 over all classes. Each
runs in a process of its own: median of the steps after the first, and the highest memory of the process less what it
held before the head was made.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from outcome import Cell, Outcome, Table, ended, ranged

DIMENSION, BATCH, STEPS = 256, 64, 8
HEADS: dict[str, tuple[str, dict[str, float]]] = {
    "full": ("am-softmax", {}),
    "sampled": ("partial-fc", {"fraction": 0.1}),
    "exact-sparse": ("exact-sparse", {"alpha": 1.5}),
}


def work(head: str, classes: int) -> dict[str, Any]:
    """Seconds a step and MiB of one head, in this process."""
    import torch
    from torch import nn

    from training.learning.optimizer import RowAdamW
    from training.objectives import make_objective

    class Encoder(nn.Module):
        def get_embedding_dimension(self) -> int:
            return DIMENSION

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    torch.manual_seed(0)
    name, options = HEADS[head]
    before = peak()
    loss: Any = make_objective(name, Encoder(), classes, **options)
    loss.sparse_gradients = head != "full"
    with torch.no_grad():
        loss.head.weight.normal_()
    optimizer = RowAdamW(loss.head.parameters(), lr=1e-2, weight_decay=0.0)
    spent, touched = [], classes
    for _ in range(STEPS):
        labels = torch.randint(classes, (BATCH,))
        near = loss.head.weight.detach()[labels] + 1.5 * torch.randn(BATCH, DIMENSION)
        vectors = near.requires_grad_()
        started = time.perf_counter()
        loss.loss_of(vectors, labels).backward()
        gradient = loss.head.weight.grad
        touched = gradient._nnz() if gradient.is_sparse else classes
        optimizer.step()
        optimizer.zero_grad()
        spent.append(time.perf_counter() - started)
    return {"seconds": statistics.median(spent[1:]), "steps": spent[1:], "MiB": peak() - before, "rows": touched}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--work", choices=HEADS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work(arguments.work, arguments.classes[0])))
        return
    print(f"{'classes':>15} {'head':14}{'steps/s':>9}{'x full':>8}{'MiB':>8}{'of full':>9}{'rows':>10}")
    results = []
    for classes in arguments.classes:
        full: dict[str, Any] = {}
        for head in HEADS:
            command = [sys.executable, __file__, "--work", head, "--classes", str(classes)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            full = full or result
            results.append({"classes": classes, "head": head, **result})
            print(
                f"{classes:15,} {head:14}{1 / result['seconds']:9.2f}{full['seconds'] / result['seconds']:8.1f}"
                f"{result['MiB']:8.0f}{result['MiB'] / full['MiB']:9.2f}{result['rows']:10,.0f}",
                flush=True,
            )
    report(results).write(arguments.json)


def report(results: list[dict[str, Any]]) -> Outcome:
    """The same figures for docs/benchmarks.md."""
    columns = ["head", "steps/s", "MiB", "class weights touched a step"]
    rows: list[list[Cell]] = [
        [
            f"{one['head']}, {one['classes']:,} classes",
            ranged([1 / step for step in one["steps"]]),
            one["MiB"],
            one["rows"],
        ]
        for one in results
    ]
    note = f"Forward, backward and optimiser step of the loss alone, batches of {BATCH}, {DIMENSION} dimensions; "
    note += "median of the steps after the first, slowest to fastest."
    return Outcome("heads", "Very many classes", [Table("Heads", columns, rows, note, "steps/s")], figures=results)


if __name__ == "__main__":
    ended(main)
