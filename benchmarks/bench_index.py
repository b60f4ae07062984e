"""Every engine beside raw FAISS of the same kind: build time, bytes, recall@10, and queries a second, as ratios.

    make bench-index                              100,000 x 384, clustered
    make bench-index ARGS="--size 1000000 --dimension 128 --engines hnsw --json big.json"    one engine of a long run

Raw FAISS searches the very same index with the same parameters, in turns with ours; what is compared is what the engine
adds: checks, row numbers, never fewer than k. `flat` is compared with `IndexFlatIP` as the wheel ships it, and with its
BLAS tuned (newer kernels, `distance_compute_blas_threshold` 1); `flat-8-bits` is the same index prepared as a service
prepares it. Ratios are medians over rounds. Beside `hnsw` stand hnswlib and usearch, with graphs of the same size and
the narrowest beam that finds as much (`index_peers.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from outcome import ended

from benchmarks.index_peers import PEERS, beside
from index.engines import exact
from index.engines.choice import FAISS, make_engine
from index.engines.engine import Vectors
from index.engines.faiss_engine import FaissEngine
from index.engines.native_faiss import BLAS_FROM, faiss

K = 10
EIGHT_BITS = "flat-8-bits"
BATCHES = (1, 12, 64)
"""A query alone, what queues up at a busy service, and a bulk."""
Calls = dict[str, Callable[[Vectors], Any]]


def clustered(count: int, dimension: int, queries: int, seed: int = 0) -> tuple[Vectors, Vectors]:
    """Gallery and queries around the same thousand centres: unit vectors (count, d) and (queries, d)."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((1000, dimension), dtype=np.float32)
    found = np.empty((count + queries, dimension), np.float32)
    for start in range(0, len(found), 100_000):
        part = found[start : start + 100_000]
        part[:] = centres[random.integers(0, len(centres), len(part))]
        part += 0.7 * random.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return found[:count], found[count:]


def in_turns(calls: Calls, queries: Vectors, batch: int, seconds: float) -> dict[str, Any]:
    """Median queries a second of each call, and the median over rounds of the first one's time against the others'."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(queries[:batch])
    end = time.perf_counter() + seconds
    at = 0
    while time.perf_counter() < end or at < 5:
        start = at * batch % (len(queries) - batch)
        order = list(calls) if at % 2 else list(calls)[::-1]
        for name in order:
            begun = time.perf_counter()
            calls[name](queries[start : start + batch])
            times[name].append(time.perf_counter() - begun)
        at += 1
    first, *others = times
    result: dict[str, Any] = {name: round(batch / statistics.median(taken), 1) for name, taken in times.items()}
    quarters = {name: np.percentile(taken, [75, 25]) for name, taken in times.items()}
    result["middle half"] = {name: [round(batch / taken, 1) for taken in both] for name, both in quarters.items()}
    for other in others:
        ratio = statistics.median(theirs / ours for ours, theirs in zip(times[first], times[other], strict=True))
        result[f"times {other}"] = round(ratio, 2)
    return result


def raw_calls(engine: FaissEngine) -> Calls:
    """The peers: FAISS's own search of the same index."""
    parameters = engine._search_parameters(K, 1.0)

    def searched(queries: Vectors, blas_from: int) -> Any:
        faiss.cvar.distance_compute_blas_threshold = blas_from
        found = engine._index.search(queries, K, params=parameters)
        faiss.cvar.distance_compute_blas_threshold = BLAS_FROM
        return found

    def shipped(queries: Vectors) -> Any:
        return searched(queries, 128_000)

    def tuned(queries: Vectors) -> Any:
        return searched(queries, 1 if len(queries) > 1 else 128_000)

    return {"raw FAISS": shipped, "raw FAISS, BLAS tuned": tuned} if engine.kind == "flat" else {"raw FAISS": shipped}


def measure(
    kind: str, vectors: Vectors, queries: Vectors, true: Any, seconds: float, cache: Path, peers: Sequence[str]
) -> dict[str, Any]:
    """One engine; `hnsw` beside these peers, which keep their environments in `cache`."""
    begun = time.perf_counter()
    engine = make_engine("flat" if kind == EIGHT_BITS else kind, vectors, np.arange(len(vectors)))
    if kind == EIGHT_BITS:
        engine.prepare()
    built = time.perf_counter() - begun
    assert isinstance(engine, FaissEngine)
    _, rows = engine.search(queries, K)
    recall = np.mean([len(set(got) & set(want)) / K for got, want in zip(rows.tolist(), true.tolist(), strict=True)])
    result: dict[str, Any] = {
        "engine": engine.kind,
        "parameters": engine.parameters,
        "build and tune, s": round(built, 1),
        "memory, MB": round(engine.describe()["memory_bytes"] / 1e6, 1),
        "on disk, MB": round(sum(map(len, engine.dump().values())) / 1e6, 1),
        "recall@10 measured when built": engine.recall,
        "recall@10 of new queries": round(float(recall), 4),
    }
    for batch in BATCHES:
        calls = {"ours": lambda asked: engine.search(asked, K), **raw_calls(engine)}
        result[f"batch {batch}, queries/s"] = in_turns(calls, queries, batch, seconds)
    if kind == "hnsw" and peers:
        result["peers"] = beside(engine, vectors, queries, true, float(recall), BATCHES, cache, peers)
    return result


def earlier(path: Path | None, setting: dict[str, Any]) -> dict[str, Any]:
    """The engines that a run of the same setting left in the file, so that a long run can be cut into parts."""
    if path is None or not path.is_file():
        return {}
    told = json.loads(path.read_text())
    engines: dict[str, Any] = told.pop("engines")
    return engines if told == setting else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--engines", nargs="*", default=["flat", EIGHT_BITS, *FAISS, "auto"])
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each batch size of each engine")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "surematch-bench-index")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), help="beside our hnsw")
    args = parser.parse_args()
    vectors, queries = clustered(args.size, args.dimension, args.queries)
    _, true = exact.top(queries, vectors, K)
    setting = {"size": args.size, "dimension": args.dimension, "faiss": faiss.__version__, "cores": os.cpu_count()}
    results = earlier(args.json, setting)
    for kind in dict.fromkeys(args.engines):
        results[kind] = measure(kind, vectors, queries, true, args.seconds, args.cache, args.peers)
        print(json.dumps({kind: results[kind]}, indent=2), flush=True)
        if args.json:
            args.json.write_text(json.dumps({**setting, "engines": results}, indent=2))


if __name__ == "__main__":
    ended(main)
