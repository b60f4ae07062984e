"""The peers of `bench_service.py`, each run by the Python of its own environment: python peer_programs.py NAME FOLDER.

FOLDER holds `items.npy` and `queries.npy`. The first line written to stdout tells the version, and for a server where
it answers and with which bodies (a file of one a line). Then one line of JSON is answered for every line read:
"rows N" (the hits of the first N queries), and "load CLIENTS SECONDS" where there is no server.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

K, BATCH = 10, 5000
BEAM = {"m": 32, "ef_construct": 100, "ef": 32}
"""A graph as ours: 32 links, built with a beam of 100; searched with what ours needs for ten hits."""

folder = Path(os.environ.get("PEER_FOLDER") or sys.argv[2])
items: Any = np.load(folder / "items.npy", mmap_mode="r")
queries: Any = np.load(folder / "queries.npy")
Ask = Callable[[int], list[int]]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(command: list[str], url: str, **environment: str) -> None:
    """A server that ends with this program; returns when it answers."""
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
    atexit.register(process.kill)
    for _ in range(600):
        try:
            urlopen(url)
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.2)
    sys.exit((folder / "server.log").read_text()[-2000:] or f"{url} does not answer")


def post(url: str, body: Any) -> Any:
    with urlopen(Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})) as reply:
        return json.load(reply)


def server(name: str, url: str, path: str, bodies: list[Any], rows: Callable[[Any], list[int]]) -> Ask:
    file = folder / "bodies.jsonl"
    file.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    print(json.dumps({"version": version(name), "url": url, "path": path, "bodies": str(file)}), flush=True)
    return lambda at: rows(post(url + path, bodies[at]))


def chroma() -> Ask:
    import chromadb

    port = free_port()
    path = folder / "data"
    command = [str(Path(sys.executable).with_name("chroma")), "run", "--path", str(path), "--port", str(port)]
    start(command, f"http://127.0.0.1:{port}/api/v2/heartbeat", ANONYMIZED_TELEMETRY="False")
    client = chromadb.HttpClient("127.0.0.1", port)
    hnsw = {"space": "ip", "max_neighbors": BEAM["m"], "ef_construction": BEAM["ef_construct"], "ef_search": BEAM["ef"]}
    kept: Any = client.get_or_create_collection("items", configuration={"hnsw": hnsw}, embedding_function=None)
    for at in range(kept.count(), len(items), BATCH):
        part = items[at : at + BATCH]
        kept.upsert([str(at + one) for one in range(len(part))], np.asarray(part))
    where = f"/api/v2/tenants/default_tenant/databases/default_database/collections/{kept.id}/query"
    bodies = [{"query_embeddings": [short(v)], "n_results": K, "include": ["distances"]} for v in queries]
    return server(
        "chromadb", f"http://127.0.0.1:{port}", where, bodies, lambda reply: [int(name) for name in reply["ids"][0]]
    )


def short(vector: Any) -> list[float]:
    return [round(float(x), 7) for x in vector]


def vectors_of(texts: list[str]) -> Any:
    """txtai's own encoder here: a text is the number of a query."""
    return np.stack([queries[int(text)] for text in texts])


def txtai() -> Ask:
    from txtai.embeddings import Embeddings

    # its FAISS graphs are searched with a beam of 16 whatever is asked for, and find .90 of the ten nearest; this one's
    # beam can be set
    beam = {"m": BEAM["m"], "efconstruction": BEAM["ef_construct"], "efsearch": BEAM["ef"]}
    config = {"method": "external", "backend": "hnsw", "hnsw": beam}
    path = folder / "hnsw"
    if not path.exists():
        made = Embeddings(config)
        made.index((at, vector, None) for at, vector in enumerate(np.asarray(items)))
        stored = made.config
        stored["transform"] = "peer_programs.vectors_of"
        made.save(str(path))
    settings = "method: external\n  transform: peer_programs.vectors_of"
    (folder / "app.yml").write_text(f"path: {path}\nembeddings:\n  {settings}\n")
    port = free_port()
    start(
        [sys.executable, "-m", "uvicorn", "txtai.api:app", "--port", str(port), "--log-level", "warning"],
        f"http://127.0.0.1:{port}/count",
        CONFIG=str(folder / "app.yml"),
        PYTHONPATH=str(Path(__file__).parent),
        PEER_FOLDER=str(folder),
        ALLOW_RESOLVE_TRANSFORM="True",
    )
    bodies = [{"queries": [str(at)], "limit": K} for at in range(len(queries))]
    return server(
        "txtai", f"http://127.0.0.1:{port}", "/batchsearch", bodies, lambda reply: [int(hit["id"]) for hit in reply[0]]
    )


def milvus_lite() -> Ask:
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(str(folder / "milvus.db"))
    parameters = {"M": BEAM["m"], "efConstruction": BEAM["ef_construct"]}
    if not client.has_collection("items"):
        schema = client.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=items.shape[1])
        index = client.prepare_index_params()
        # twice: the client takes one layer off, and the library under it reads what is then still in "params"
        index.add_index("vector", index_type="HNSW", metric_type="IP", params={"params": parameters})
        client.create_collection("items", schema=schema, index_params=index)
        for at in range(0, len(items), BATCH):
            part = [{"id": at + one, "vector": vector} for one, vector in enumerate(np.asarray(items[at : at + BATCH]))]
            client.insert("items", part)
        client.flush("items")
    client.load_collection("items")
    if (made := client.describe_index("items", "vector")).get("params") != parameters:
        sys.exit(f"milvus-lite built another graph than it was asked for: {made}")
    print(json.dumps({"version": f"{version('milvus-lite')} with pymilvus {version('pymilvus')}"}), flush=True)

    def ask(at: int) -> list[int]:
        found = client.search("items", [queries[at]], limit=K, search_params={"params": {"ef": BEAM["ef"]}})
        return [int(hit["id"]) for hit in found[0]]

    return ask


def qdrant_edge() -> Ask:
    import qdrant_edge as q

    graph = q.HnswIndexConfig(BEAM["m"], BEAM["ef_construct"], 10)
    vectors = {"v": q.EdgeVectorParams(items.shape[1], q.Distance.Dot)}
    optimizers = q.EdgeOptimizersConfig(indexing_threshold=1000, default_segment_number=1)
    path = folder / "data"
    new = not path.exists()
    if new:
        path.mkdir()
        shard = q.EdgeShard.create(str(path), q.EdgeConfig(vectors=vectors, hnsw_config=graph, optimizers=optimizers))
        for at in range(0, len(items), BATCH):
            part = [q.Point(at + one, {"v": v.tolist()}) for one, v in enumerate(np.asarray(items[at : at + BATCH]))]
            shard.update(q.UpdateOperation.upsert_points(part))
        shard.optimize()
        shard.flush()
    else:
        shard = q.EdgeShard.load(str(path))
    print(json.dumps({"version": version("qdrant-edge-py")}), flush=True)
    parameters = q.SearchParams(hnsw_ef=BEAM["ef"])

    def ask(at: int) -> list[int]:
        nearest = q.Query.Nearest(queries[at].tolist(), using="v")
        return [int(hit.id) for hit in shard.query(q.QueryRequest(K, query=nearest, params=parameters))]

    return ask


def load(ask: Ask, clients: int, seconds: float) -> dict[str, float]:
    over = time.perf_counter() + seconds
    taken: list[float] = []

    def one(first: int) -> None:
        at = first
        while (began := time.perf_counter()) < over:
            ask(at % len(queries))
            taken.append(time.perf_counter() - began)
            at += clients

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(clients)))
    lasted = time.perf_counter() - began
    p50, p99 = np.percentile(taken, [50, 99]) * 1000
    return {"per_second": round(len(taken) / lasted, 1), "p50_ms": round(p50, 3), "p99_ms": round(p99, 3)}


def main() -> None:
    ask = {"chroma": chroma, "txtai": txtai, "milvus-lite": milvus_lite, "qdrant-edge": qdrant_edge}[sys.argv[1]]()
    for line in sys.stdin:
        what, *given = line.split()
        told = load(ask, int(given[0]), float(given[1])) if what == "load" else [ask(at) for at in range(int(given[0]))]
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
