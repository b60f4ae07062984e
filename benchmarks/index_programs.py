"""The graph libraries beside our `hnsw`, each run by its own Python: index_programs.py NAME FOLDER RECALL.

FOLDER holds `items.npy`, `queries.npy` and `true.npy` (the ten nearest of each query). The first line written tells the
version, the seconds the graph took, the beam, and the recall@10 with it; then every line "BATCH SECONDS" read is
answered with the median queries a second in batches of that size.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

K, LINKS, BEAM = 10, 32, 100
"""A graph as ours: 32 links (64 in the lowest layer), built with a beam of 100."""

BEAMS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
CORES = len(os.sched_getaffinity(0))
Search = Callable[[Any, int], Any]
"""The rows (n, 10) nearest to queries (n, d), with a beam of that width."""


def hnswlib(items: Any) -> Search:
    from hnswlib import Index

    index = Index("ip", items.shape[1])
    index.init_index(len(items), ef_construction=BEAM, M=LINKS)
    index.set_num_threads(CORES)
    index.add_items(items)

    def search(queries: Any, beam: int) -> Any:
        index.set_ef(beam)
        return index.knn_query(queries, K)[0]

    return search


def usearch(items: Any) -> Search:
    from usearch.index import Index

    index = Index(ndim=items.shape[1], metric="ip", dtype="f32", connectivity=LINKS, expansion_add=BEAM)
    index.add(np.arange(len(items)), items, threads=CORES)

    def search(queries: Any, beam: int) -> Any:
        index.expansion_search = beam
        found = index.search(queries, K, threads=CORES if len(queries) > 1 else 1).keys
        return found.reshape(len(queries), K)

    return search


def recall(rows: Any, true: Any) -> float:
    return float(
        np.mean([len(set(got) & set(want)) / K for got, want in zip(rows.tolist(), true.tolist(), strict=True)])
    )


def per_second(search: Callable[[Any], Any], queries: Any, batch: int, seconds: float) -> float:
    """Median queries a second in batches of that size."""
    taken: list[float] = []
    over = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < over or len(taken) < 5:
        at = len(taken) * batch % (len(queries) - batch)
        search(queries[at : at + batch])
        taken.append(time.perf_counter() - begun)
    return round(batch / statistics.median(taken), 1)


def main() -> None:
    name, folder, wanted = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    items, queries, true = (np.load(folder / f"{what}.npy") for what in ("items", "queries", "true"))
    begun = time.perf_counter()
    search = {"hnswlib": hnswlib, "usearch": usearch}[name](items)
    built = time.perf_counter() - begun
    # the narrowest beam that finds as much as ours, up to what another graph would change by chance
    reached = [(beam, recall(search(queries, beam), true)) for beam in BEAMS]
    beam, found = next((one for one in reached if one[1] >= wanted - 0.002), reached[-1])
    told = {"version": version(name), "build, s": round(built, 1), "beam": beam, "recall@10": round(found, 4)}
    print(json.dumps(told), flush=True)
    for line in sys.stdin:
        batch, seconds = line.split()
        print(per_second(lambda asked: search(asked, beam), queries, int(batch), float(seconds)), flush=True)


if __name__ == "__main__":
    main()
