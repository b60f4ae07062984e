"""The service over HTTP beside raw FAISS and other vector databases: same vectors, same machine, same run.

    make bench-service                       # both parts of the report, one after the other
    make bench-service ARGS="--part hnsw"    # a look at one: flat, hnsw, text, peers
    make bench-service-own                   # flat, hnsw, text
    make bench-service-peers                 # the other databases

100,000 clustered vectors of 384 dimensions, calibrated; every answer of ours carries ten hits, the label distribution
and the no-match share. `wrk` (Debian: apt-get install wrk) asks with 1, 8 and 32 connections, each query in a request
of its own; what has no server is asked in process by as many threads, which is to its advantage. Peers are installed
into environments of their own under --cache. The median of --rounds is shown; runs of what is compared alternate.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from outcome import ended

from benchmarks.loads import Load, alternate, costing, find_wrk, in_process, wrk
from benchmarks.service_gallery import HELD, build
from index.engines import exact
from index.engines.native_faiss import faiss

SIZE, DIMENSION, K = 100_000, 384, 10
CORES = len(os.sched_getaffinity(0))
FILTER = {"not": {"$label": "label 1"}}
"""Nearly everything passes: it is asked again and again, as a tenant or a language is."""


@contextmanager
def serving(collection: Path, *flags: str) -> Iterator[tuple[str, int]]:
    """The address and the process of `surematch serve` on the collection."""
    command = [str(Path(sys.executable).with_name("surematch")), "serve", str(collection), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        greeting = process.stdout.readline()
        if "http://" not in greeting:
            sys.exit("surematch serve did not start")
        yield "http://" + greeting.partition("http://")[2].partition("/")[0], process.pid
    finally:
        process.terminate()
        process.wait(60)


class Work:
    """What all parts share: the gallery, the queries as bodies, and how long to ask."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.cache: Path = args.cache
        self.seconds: float = args.seconds
        self.rounds: int = args.rounds
        self.cache.mkdir(parents=True, exist_ok=True)

    def collection(self, engine: str) -> Path:
        out, self.items, self.queries = build(self.cache, engine, SIZE, DIMENSION)
        return out

    def ours(self, served: tuple[str, int], *kinds: str) -> dict[str, Load]:
        """Loads of our API: `binary`, `base64`, `json` (lists), `filter` (lists, and `FILTER`) and `text`."""
        made = {}
        url, pid = served
        for kind in kinds:
            file = self.cache / f"queries.{kind}"
            if kind == "binary":
                file.write_bytes(self.queries.astype("<f4").tobytes())
            else:
                how = {"filter": FILTER} if kind == "filter" else {}
                file.write_text("".join(json.dumps({"queries": [query], **how}) + "\n" for query in self._bodies(kind)))
            size, type_ = (4 * DIMENSION, "application/octet-stream") if kind == "binary" else (0, "application/json")
            made[f"surematch, {kind}"] = costing(wrk(url, "/v1/search", file, size, type_, self.seconds), pid)
        return made

    def _bodies(self, kind: str) -> Iterator[dict[str, Any]]:
        for at, vector in enumerate(self.queries):
            if kind in ("json", "filter"):
                yield {"vector": [round(float(x), 7) for x in vector]}
            elif kind == "base64":
                yield {"vector_base64": base64.b64encode(vector.astype("<f4").tobytes()).decode()}
            else:  # never the same text twice within a cache's length
                yield {"text": " ".join(f"q{HELD + (at + step) % len(self.queries)}" for step in range(8))}

    def recall(self, rows: list[list[int]], truth: Any) -> float:
        """Recall@10 of found rows against exact search."""
        return round(float(np.mean([len(set(a) & set(b)) / K for a, b in zip(rows, truth.tolist(), strict=True)])), 4)

    def our_recall(self, url: str, some: int = 300) -> float:
        rows = []
        for start in range(0, some, 100):
            body = json.dumps({"queries": [{"vector": v.tolist()} for v in self.queries[start : start + 100]]})
            request = Request(f"{url}/v1/search", body.encode(), {"Content-Type": "application/json"})
            with urlopen(request) as reply:
                answers = json.load(reply)["results"]
            assert all(answer["calibrated"] and answer["labels"] for answer in answers)
            rows += [[int(hit["id"].rpartition(":")[2]) for hit in answer["hits"]] for answer in answers]
        return self.recall(rows, self.truth(some))

    def truth(self, some: int = 300) -> Any:
        return exact.top(self.queries[:some], self.items, K)[1]


def part_flat(work: Work) -> dict[str, Any]:
    """Exact search: ours against IndexFlatIP in process, which gets the queries of all clients in one call."""
    collection = work.collection("flat")
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(work.items)
    queries = work.queries

    def batches(k: int, blas_from: int) -> Load:
        """What so many clients would get at best: their queries in one call, its BLAS used from so many numbers on."""

        def run(clients: int) -> dict[str, Any]:
            faiss.cvar.distance_compute_blas_threshold = blas_from
            found = in_process(lambda at: index.search(queries[at * clients % 1900 :][:clients], k), work.seconds)(1)
            return {**found, "per_second": clients * found["per_second"]}

        return run

    raw = {
        "raw FAISS as shipped, 10 hits": batches(K, 128_000),
        "raw FAISS, BLAS from 2 queries, 10 hits": batches(K, 2 * DIMENSION),
        "raw FAISS, BLAS from 2 queries, 100 hits": batches(100, 2 * DIMENSION),
    }
    with serving(collection) as served:
        found = alternate({**work.ours(served, "binary", "json"), **raw}, work.rounds)
        recall = work.our_recall(served[0])
    best = max(found[name]["32"]["per_second"] for name in raw)
    ratio = round(found["surematch, binary"]["32"]["per_second"] / best, 2)
    return {"loads": found, "recall_at_10": recall, **gate("flat, 32 clients, times raw FAISS", ratio, 0.6)}


def part_hnsw(work: Work) -> dict[str, Any]:
    """HNSW with two workers, against raw FAISS with the same graph and beam in two threads."""
    collection = work.collection("hnsw")
    file = next((collection / "snapshots").glob("*/vectors.faiss"))
    settings = json.loads(file.with_name("engine.json").read_text())
    index = faiss.deserialize_index(np.frombuffer(file.read_bytes(), np.uint8)[settings["padding"] :])
    beams = {}
    for k in (K, 100):
        beams[k] = faiss.SearchParametersHNSW(efSearch=max(settings["parameters"]["ef_search"], k))
    faiss.omp_set_num_threads(1)
    raw = {
        f"raw FAISS, {k} hits, beam {beam.efSearch}": in_process(
            lambda at, k=k, beam=beam: index.search(work.queries[at % 1900 :][:1], k, params=beam), work.seconds
        )
        for k, beam in beams.items()
    }
    with serving(collection, "--workers", str(CORES)) as served:
        found = alternate({**work.ours(served, "binary", "base64", "json", "filter"), **raw}, work.rounds)
        recall = work.our_recall(served[0])
    alone = index.search(work.queries[:300], K, params=beams[K])[1].tolist()
    theirs = {f"raw FAISS, beam {beams[K].efSearch}": work.recall(alone, work.truth())}
    most = max(by["per_second"] for by in found["surematch, binary"].values())
    found = {"loads": found, "recall_at_10": recall, "raw_recall_at_10": theirs}
    return {**found, **gate("hnsw, requests a second", most, 1000)}


def part_text(work: Work) -> dict[str, Any]:
    """Texts: a static encoder of our gallery, and MiniLM exported to ONNX int8 against sentence-transformers."""
    collection = work.collection("hnsw")
    with serving(collection, "--workers", str(CORES), "--cache-bytes", "0") as served:
        print("static encoder, texts of 8 words, no cache:")
        found = alternate(work.ours(served, "text"), work.rounds)
    most = max(by["per_second"] for by in found["surematch, text"].values())
    result = {"static": found, **gate("static text, requests a second", most, 1000)}
    from benchmarks.service_text import minilm

    told = minilm(work.cache, work.seconds, serving, wrk)
    print(f"  minilm int8 over HTTP p50 {told['ours_p50_ms']} ms, encode alone {told['theirs_p50_ms']} ms", flush=True)
    times = gate("minilm int8 p50, times sentence-transformers", told["times"], 0.25, below=True)
    return {**result, "minilm": told, **times}


def part_peers(work: Work) -> dict[str, Any]:
    """The others, each on the same vectors, beside ours at that moment: a graph, as they have, and lists."""
    from benchmarks.service_peers import PEERS, PeerError

    collection, lists = work.collection("hnsw"), work.collection("ivf")
    workers = ("--workers", str(CORES))
    result: dict[str, Any] = {}
    with serving(collection, *workers) as served, serving(collection) as single, serving(lists, *workers) as of_lists:
        ours = {"surematch, json": work.ours(served, "json")["surematch, json"]}
        ours["surematch, json, one process"] = work.ours(single, "json")["surematch, json"]
        ours["surematch, ivf, binary"] = work.ours(of_lists, "binary")["surematch, binary"]
        recall = min(work.our_recall(url) for url, _ in (served, of_lists))
        for name, start in PEERS.items():
            print(f"{name}:", flush=True)
            try:
                with start(work.cache, work.items, work.queries, work.seconds, wrk) as peer:
                    found = alternate({**ours, name: peer.load}, work.rounds)
                    told = {"version": peer.version, "recall_at_10": work.recall(peer.rows(300), work.truth())}
            except PeerError as error:
                print(f"  not measured: {error}", flush=True)
                result[name] = {"not measured": str(error)}
                continue
            times = {
                n: round(max(found[way][n]["per_second"] for way in ours) / found[name][n]["per_second"], 2)
                for n in found[name]
            }
            print(f"  recall@10 {told['recall_at_10']} (ours {recall}); ours answers {times} times as many", flush=True)
            result[name] = {**told, "ours": {"recall_at_10": recall}, "loads": found, "times": times}
            result |= gate(f"requests a second at 32 clients, times {name}", times["32"], 1.0)
    return result


def gate(what: str, got: float, wanted: float, *, below: bool = False) -> dict[str, Any]:
    met = got <= wanted if below else got >= wanted
    print(f"  {'met' if met else 'NOT MET'}: {what}: {got} (wanted {'<=' if below else '>='} {wanted})", flush=True)
    return {f"gate: {what}": {"got": got, "wanted": wanted, "met": bool(met)}}


PARTS = {"flat": part_flat, "hnsw": part_hnsw, "text": part_text, "peers": part_peers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS), help="only these parts")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "surematch-bench-service")
    parser.add_argument("--json", type=Path, help="also write the figures here; parts already there are kept")
    args = parser.parse_args()
    find_wrk(args.cache)
    work = Work(args)
    told = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    told["machine"] = {"cores": CORES, "python": platform.python_version(), "faiss": version("faiss-cpu")}
    for part in args.part:
        print(f"{part} ({PARTS[part].__doc__})  load average {os.getloadavg()[0]:.1f}", flush=True)
        told[part] = {**PARTS[part](work), "load_average": round(os.getloadavg()[0], 1)}
        if args.json:
            args.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    ended(main)
