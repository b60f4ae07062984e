"""Which loss finds classes it has never seen? Softmax, margins, Taylor and sparse maps on three data sets.

    make bench-losses                         BANKING77 and the demo's sentences
    make bench-losses-clinc                   CLINC150
    make bench-losses ARGS="--seeds 5"        a closer look

`surematch compare` trains every loss on the same rows, splits and start (the static encoder); each seed keeps its own
quarter of the classes away. Differences are taken within a seed, where they mean most. Each seed of a data set has a
process of one thread, as many at a time as there are cores. An interrupted benchmark keeps in --out what is finished,
and goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from kept import done, kept
from outcome import SKIPPED, Beside, Cell, Outcome, Table, ended
from rich.console import Console

from index.verbs.settings import parse
from training.comparison.compare import compare_losses, summarise
from training.comparison.settings import CompareSettings
from training.demo_data import make_demo_data, write_demo_data
from training.pipeline import train_encoder

LOSSES = ["softmax", "normalised-softmax", "am-softmax", "arcface", "adacos", "taylor", "sparsemax", "entmax"]
DATA = {"banking77": ("banking77/train.csv", "category"), "clinc150": ("clinc150/train.csv", "intent")}
DEMO = "smart-home"
"""Sentences of the demo."""


def sources(tasks: list[str], data: Path, out: Path) -> dict[str, tuple[Path, str]]:
    """Data set to its file and label column; the demo's sentences are made here, so one is always there."""
    found = {}
    for name in tasks:
        if name == DEMO:
            found[name] = (write_demo_data(make_demo_data(seed=0), out / "demo-data")["train"], "label")
        elif (data / DATA[name][0]).is_file():
            found[name] = (data / DATA[name][0], DATA[name][1])
        else:
            print(f"{name}: not at {data}, nothing measured. Give its folder with --data.", file=sys.stderr)
    return found


def compared(file: Path, label: str, out: Path, seed: int) -> list[dict[str, Any]]:
    """The runs of every loss at one seed."""
    words = [str(file), "--text", "text", "--label", label, "--out", str(out), "--losses", ",".join(LOSSES)]
    found: list[dict[str, Any]] = compare_losses(
        parse(CompareSettings, words), train_encoder, Console(stderr=True), [seed]
    )["runs"]
    return found


def table(name: str, losses: list[dict[str, Any]], seeds: int) -> Table:
    """One row a loss, as `surematch compare` sums it up."""
    columns = ["loss", "seen recall@1", "unseen recall@1", "unseen MAP@R", "ahead of softmax", "sd of that", "seconds"]
    rows: list[list[Cell]] = [
        [
            entry["loss"],
            *(_told(entry[key]) for key in ("seen_recall_at_1", "unseen_recall_at_1", "unseen_map_at_r")),
            entry["ahead"]["mean"],
            entry["ahead"]["sd"],
            entry["seconds"]["mean"],
        ]
        for entry in losses
    ]
    note = (
        f"Static encoder; means and deviations of {seeds} seeds, each with its own quarter of the classes never seen. "
        "Trained on one thread, another seed beside it: seconds are no measurement of speed."
    )
    higher = columns[1:4]
    beside = [
        Beside(str(row[0]), ["softmax"], higher=higher, neither=columns[4:]) for row in rows if row[0] != "softmax"
    ]
    return Table(name, columns, rows, note, "ahead of softmax", beside)


def _told(found: dict[str, float | None]) -> Cell:
    """A mean, and its deviation where there are several seeds."""
    return found["mean"] if found["sd"] is None else f"{found['mean']:.4f} ± {found['sd']:.4f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("build/bench-losses"))
    parser.add_argument("--tasks", nargs="+", choices=[*DATA, DEMO], default=[*DATA, DEMO], help="the data sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    options.out = kept(options.out, options)
    found = sources(options.tasks, options.data, options.out)
    if len(found) < len(options.tasks):
        return SKIPPED
    tables, figures = [], {}
    spawn = get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {
            name: [pool.submit(compared, *of, options.out / f"{name}-{seed}", seed) for seed in range(options.seeds)]
            for name, of in found.items()
        }
        for name, of_seeds in running.items():
            runs = [run for one in of_seeds for run in one.result()]
            figures[name] = {"losses": summarise(runs), "runs": runs}
            tables.append(table(name, figures[name]["losses"], options.seeds))
            print(f"\n## {name}\n\n{tables[-1].markdown()}", flush=True)
    title = f"Losses on classes never seen: {' and '.join(found)}"
    Outcome("losses", title, tables, figures=figures).write(options.json)
    done(options.out)
    return 0


if __name__ == "__main__":
    ended(main)
