"""hnswlib and usearch beside our `hnsw`: the same vectors, graphs of the same size, as much found, in turns."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index_programs import K, per_second
from benchmarks.service_peers import environment
from index.engines.engine import Vectors
from index.engines.faiss_engine import FaissEngine

PEERS = {"hnswlib": "hnswlib==0.8.0", "usearch": "usearch==2.26.6"}
"""The newest of each when they were last looked at (November 2026)."""
ROUNDS = 3


@contextmanager
def _running(name: str, cache: Path, recall: float) -> Iterator[tuple[dict[str, Any], Callable[[int, float], float]]]:
    """What it says of itself, and its queries a second for a batch size. Raises `subprocess.SubprocessError`."""
    python = environment(cache / f"{name}-venv", [PEERS[name]])
    program = [python, Path(__file__).with_name("index_programs.py"), name, cache, str(recall)]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    source, sink = process.stdout, process.stdin

    def speed(batch: int, seconds: float) -> float:
        sink.write(f"{batch} {seconds}\n")
        sink.flush()
        if not (answer := source.readline()):
            raise subprocess.SubprocessError(f"{name} ended")
        return float(json.loads(answer))

    try:
        if not (told := source.readline()):
            raise subprocess.SubprocessError(f"{name} did not start")
        yield json.loads(told), speed
    finally:
        process.kill()
        process.wait()


def beside(
    engine: FaissEngine,
    vectors: Vectors,
    queries: Vectors,
    true: Any,
    recall: float,
    batches: tuple[int, ...],
    cache: Path,
    peers: Sequence[str],
) -> dict[str, Any]:
    """{peer: its build time, beam, recall and queries a second beside ours}, medians over rounds with their range."""
    cache.mkdir(parents=True, exist_ok=True)
    for name, array in (("items", vectors), ("queries", queries), ("true", true)):
        np.save(cache / f"{name}.npy", array)
    found: dict[str, Any] = {}

    def ours(asked: Vectors) -> Any:
        return engine.search(asked, K)

    for name in peers:
        try:
            with _running(name, cache, recall) as (told, speed):
                found[name] = told
                for batch in batches:
                    pairs = [(per_second(ours, queries, batch, 2.0), speed(batch, 2.0)) for _ in range(ROUNDS)]
                    for who, of in zip(("ours", name), zip(*pairs, strict=True), strict=True):
                        found[name][f"batch {batch}, {who}"] = sorted(of)
        except (OSError, subprocess.SubprocessError) as error:
            found[name] = {"not measured": str(error)[-500:]}
    return found
