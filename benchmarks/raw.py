"""Outcomes of benchmarks whose JSON is their own, because they continue from it: index, images, bulk, service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outcome import Against, Cell, Outcome, Table


def index(raw: dict[str, Any]) -> Outcome:
    """Every engine beside raw FAISS of the same kind."""
    batches = [name for name in next(iter(raw["engines"].values())) if name.startswith("batch")]
    rows: list[list[Cell]] = []
    against = []
    for asked, one in raw["engines"].items():
        speeds = [one[batch] for batch in batches]
        ratios = [speed["times raw FAISS"] for speed in speeds]
        recalls = [one["recall@10 measured when built"], one["recall@10 of new queries"]]
        rows.append(
            [
                asked if asked == one["engine"] else f"{asked} ({one['engine']})",
                one["build and tune, s"],
                one["memory, MB"],
                *recalls,
                *(cell for speed, ratio in zip(speeds, ratios, strict=True) for cell in (speed["ours"], ratio)),
            ]
        )
        against += [
            Against(f"{asked}, {raw['size']:,} vectors, {batch}", speed["ours"], name, speed[name])
            for batch, speed in zip(batches, speeds, strict=True)
            for name in speed
            if name.startswith("raw")
        ]
    columns = ["engine", "build and tune, s", "memory, MB", "recall@10 when built", "recall@10, new queries"]
    columns += [name for batch in batches for name in (batch, "times raw FAISS")]
    title = f"{raw['size']:,} vectors of {raw['dimension']} dimensions"
    note = "Clustered vectors; our searches and FAISS's take turns; medians."
    tables = [Table(title, columns, rows, note, "batch 64, queries/s")]
    versions = {"faiss-cpu": raw["faiss"]}
    peers = {name: one for name, one in raw["engines"].get("hnsw", {}).get("peers", {}).items() if "beam" in one}
    if peers:
        tables.append(_graphs(raw, peers))
        versions |= {name: one["version"] for name, one in peers.items()}
    tables += _not_measured(raw["engines"].get("hnsw", {}).get("peers", {}))
    for name, one in peers.items():
        for batch in ("batch 1", "batch 64"):
            ours, theirs = (one[f"{batch}, {who}"][1] for who in ("ours", name))
            against.append(Against(f"hnsw, {raw['size']:,} vectors, {batch}, queries/s", ours, name, theirs))
    return Outcome("index", "Vector engines", tables, against, versions, raw)


def _graphs(raw: dict[str, Any], peers: dict[str, Any]) -> Table:
    """Our `hnsw` and its peers: medians of rounds taken in turns, and their range."""
    ours = raw["engines"]["hnsw"]
    rows: list[list[Cell]] = []
    for name, one in peers.items():
        for who, built, beam, recall in (
            (f"surematch, beside {name}", ours["build and tune, s"], ours["parameters"]["ef_search"], ours[_NEW]),
            (name, one["build, s"], one["beam"], one["recall@10"]),
        ):
            speeds = [one[f"batch {batch}, {'ours' if who != name else name}"] for batch in (1, 64)]
            rows.append(
                [who, built, beam, recall, *(f"{mid:,.0f} ({low:,.0f} to {top:,.0f})" for low, mid, top in speeds)]
            )
    columns = ["graph", "build, s", "beam", "recall@10, new queries", "batch 1, queries/s", "batch 64, queries/s"]
    note = "Equal links and building beam; each peer searches with the narrowest beam that finds as much as ours. Ours "
    return Table(
        "Graphs of other libraries", columns, rows, note + "also tunes its beam while it builds.", "batch 1, queries/s"
    )


_NEW = "recall@10 of new queries"


def _not_measured(peers: dict[str, Any]) -> list[Table]:
    rows: list[list[Cell]] = [
        [name, str(one["not measured"])]
        for name, one in peers.items()
        if isinstance(one, dict) and "not measured" in one
    ]
    return [Table("Not measured", ["peer", "why"], rows)] if rows else []


def images(raw: dict[str, Any]) -> Outcome:
    """Pictures of identities never seen: our losses, PCA and raw pixels."""
    tables, against = [], []
    for name, results in raw.items():
        columns = list(next(iter(results.values()))["mean"])
        rows: list[list[Cell]] = []
        for method, found in results.items():
            spread = [[run[column] for run in found["runs"]] for column in columns]
            means = [found["mean"][column] for column in columns]
            cells = [
                f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else f"{mean:.3f}"
                for mean, values in zip(means, spread, strict=True)
            ]
            rows.append([method, *cells])
            if method.startswith(("PCA", "raw")) and "am-softmax" in results:
                ours = results["am-softmax"]["mean"]
                against += [Against(f"{name}: {c}", ours[c], method, found["mean"][c]) for c in columns]
        seeds = max(len(found["runs"]) for found in results.values())
        tables.append(Table(name, ["method", *columns], rows, f"Mean of {seeds} seeds, lowest to highest.", columns[0]))
    return Outcome("images", "Pictures of identities never seen", tables, against, figures=raw)


def bulk(raw: dict[str, Any]) -> Outcome:
    """A million texts through `surematch index`."""
    rows: list[list[Cell]] = [[name.replace("_", " "), str(value)] for name, value in raw.items()]
    return Outcome("bulk", "A million texts", [Table("surematch index", ["", "measured"], rows)], figures=raw)


def service(raw: dict[str, Any]) -> Outcome:
    """Requests a second over HTTP: ours, raw FAISS in process, and the peers."""
    tables, against, versions = [], [], {"faiss-cpu": raw["machine"]["faiss"]}
    loads = {part: raw[part]["loads"] for part in ("flat", "hnsw") if part in raw}
    if "text" in raw:
        loads["text"] = raw["text"]["static"]
    for name, found in raw.get("peers", {}).items():
        if isinstance(found, dict) and "loads" in found:
            loads[name] = found["loads"]
            versions[name] = found["version"]
    for part, found in loads.items():
        clients = list(next(iter(found.values())))
        rows: list[list[Cell]] = [
            [name, *(by[count][key] for count in clients for key in ("per_second", "p50_ms"))]
            for name, by in found.items()
        ]
        columns = ["", *(f"{what}, {count} clients" for count in clients for what in ("requests/s", "p50 ms"))]
        tables.append(Table(part, columns, rows, f"{NOTES.get(part, PEER)} {_recalls(raw, part)}", columns[-2]))
        ours = next(name for name in found if name.startswith("surematch"))
        for name, by in found.items():
            if not name.startswith("surematch"):
                for count in clients:
                    what = f"{part}: requests a second, {count} clients"
                    against.append(Against(what, found[ours][count]["per_second"], name, by[count]["per_second"]))
    tables += _not_measured(raw.get("peers", {}))
    if "minilm" in raw.get("text", {}):
        told = raw["text"]["minilm"]
        encoding: list[list[Cell]] = [
            ["surematch, int8, search over HTTP", told["ours_p50_ms"], told["32 clients"]["per_second"]],
            ["sentence-transformers, encode alone", told["theirs_p50_ms"], None],
        ]
        columns = ["", "p50 ms, one at a time", "requests/s, 32 clients"]
        note = f"`minilm`, {told['texts']}; measured in turns."
        tables.append(Table("Texts through MiniLM", columns, encoding, note))
        what, theirs = "minilm int8: p50 ms of a search", "sentence-transformers, encode alone"
        against.append(Against(what, told["ours_p50_ms"], theirs, told["theirs_p50_ms"], False))
    return Outcome("service", "The service over HTTP", tables, against, versions, raw)


PEER = (
    "Medians of rounds in turns. Ours over HTTP by two processes, the peer as its own command starts it: one process, "
    "in threads without HTTP where it has no server."
)
NOTES = {
    "flat": "100,000 vectors of 384 dimensions; medians of rounds in turns. Ours over HTTP, by one process, with the "
    "100 nearest and probabilities; FAISS in this process, ten hits, the queries of all clients in one call.",
    "hnsw": "100,000 vectors of 384 dimensions; medians of rounds in turns. Ours over HTTP, by two processes, with the "
    "100 nearest and probabilities; FAISS in threads of this process, whose p50 counts only the time within a call.",
    "text": "Medians of rounds in turns. Our static encoder and `hnsw`, two processes, without a cache.",
}


def _recalls(raw: dict[str, Any], part: str) -> str:
    """What share of the ten nearest each finds."""
    if part in raw.get("peers", {}):
        peer = raw["peers"][part]
        return f"Recall@10: ours {peer['ours']['recall_at_10']}, {part} {peer['recall_at_10']}."
    found = raw.get(part, {}).get("recall_at_10")
    return "" if found is None else f"Recall@10: ours {found}."


READERS: dict[str, Callable[[dict[str, Any]], Outcome]] = {
    "index": index,
    "images": images,
    "bulk": bulk,
    "service": service,
}


def read(name: str, path: Path) -> Outcome:
    """The outcome that the benchmark `name` left in `path`."""
    if name.partition("-")[0] in READERS:
        return READERS[name.partition("-")[0]](json.loads(path.read_text(encoding="utf-8")))
    return Outcome.read(path)
