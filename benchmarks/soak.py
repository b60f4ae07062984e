"""Searches, writes, feedback, snapshots and reloads for twenty minutes: nothing fails, and memory stays where it was.

    make test-soak                    # 20 minutes
    make test-soak SOAK_MINUTES=5

Two services on one collection: a writable one that takes everything, and a read-only one with two workers that follows
its writes and is told to reload again and again. The number of items stays the same. Resident memory (of the process,
or of all of them) is sampled every second; compared are the medians of the second and of the last tenth of the time.
Ends with status 1 when a request failed or memory grew by 5 % or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
from outcome import ended

from benchmarks.bench_service import serving
from benchmarks.service_gallery import build

SIZE, DIMENSION = 5_000, 64
LIMIT = 1.05


class Soak:
    """What runs, what it counted, and what memory the services held."""

    def __init__(self, until: float, queries: Any) -> None:
        self.until = until
        self.queries = queries
        self.seen: Counter[str] = Counter()
        self.memory: dict[str, list[float]] = {}

    async def again_and_again(self, what: str, ask: Callable[[int], Awaitable[httpx2.Response]], pause: float) -> None:
        at = 0
        while time.monotonic() < self.until:
            try:
                reply = await ask(at)
                self.seen[f"{what} {reply.status_code}"] += 1
            except httpx2.HTTPError as error:
                self.seen[f"{what} {type(error).__name__}"] += 1
            at += 1
            await asyncio.sleep(pause)

    async def watch(self, name: str, pid: int) -> None:
        held = self.memory.setdefault(name, [])
        while time.monotonic() < self.until:
            members = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            held.append(sum(member.memory_info().rss for member in members) / 2**20)
            await asyncio.sleep(1)

    def vectors(self, at: int) -> bytes:
        start = 8 * at % (len(self.queries) - 8)
        return bytes(self.queries[start : start + 8].astype("<f4").tobytes())


async def soak(writable: tuple[str, int], readers: tuple[str, int], minutes: float, queries: Any) -> Soak:
    run = Soak(time.monotonic() + 60 * minutes, queries)
    octets = {"Content-Type": "application/octet-stream"}
    async with (
        httpx2.AsyncClient(base_url=writable[0], timeout=300) as writes,
        httpx2.AsyncClient(base_url=readers[0], timeout=300) as reads,
    ):
        asked: list[str] = []

        async def search(at: int) -> httpx2.Response:
            body = {"queries": [{"text": f"v{at % SIZE} v{(7 * at) % SIZE}"}], "coverage": 0.9}
            reply = await writes.post("/v1/search", json=body)
            asked[:] = [*asked, *(reply.json().get("query_ids") or [])][-100:]
            return reply

        async def put(at: int) -> httpx2.Response:
            items = [
                {"id": f"extra {one}", "label": f"label {one}", "text": f"v{(at + one) % SIZE}", "metadata": {"at": at}}
                for one in range(10)
            ]
            return await writes.put("/v1/items", json={"items": items})

        async def feedback(at: int) -> httpx2.Response:
            return await writes.post("/v1/feedback", json={"query_id": asked[-1] if asked else "0-0", "label": None})

        await search(0)
        await asyncio.gather(
            run.watch("the writable service", writable[1]),
            run.watch("two readers and their supervisor", readers[1]),
            run.again_and_again("search", search, 0.01),
            run.again_and_again(
                "follow", lambda at: reads.post("/v1/search", content=run.vectors(at), headers=octets), 0.01
            ),
            run.again_and_again("write", put, 0.2),
            run.again_and_again("delete", lambda at: writes.delete(f"/v1/items/extra%20{at % 10}"), 0.5),
            run.again_and_again("feedback", feedback, 0.5),
            run.again_and_again("snapshot", lambda at: writes.post("/v1/admin/snapshot"), 20),
            run.again_and_again("reload", lambda at: reads.post("/v1/admin/reload"), 5),
            run.again_and_again("metrics", lambda at: reads.get("/metrics"), 2),
        )
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", "20")))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        collection, _, queries = build(Path(made), "flat", SIZE, DIMENSION)
        with serving(collection, "--writable") as writable, serving(collection, "--workers", "2") as readers:
            run = asyncio.run(soak(writable, readers, args.minutes, np.asarray(queries)))
    grown = {}
    for name, held in run.memory.items():
        tenth = max(1, len(held) // 10)
        medians = [statistics.median(held[at : at + tenth]) for at in range(0, len(held), tenth)]
        times = statistics.median(held[-tenth:]) / medians[min(1, len(medians) - 1)]
        grown[name] = {"mib_by_tenth": [round(held_then, 1) for held_then in medians], "times": round(times, 4)}
    # a deletion of what is already deleted, and feedback to a query that was forgotten, are 404 as they should be
    failed = {what: count for what, count in run.seen.items() if not what.endswith(" 200") and what != "delete 404"}
    told = {"minutes": args.minutes, "answers": dict(run.seen), "failed": failed, "memory": grown}
    print(json.dumps(told, indent=2))
    if args.json:
        args.json.write_text(json.dumps(told, indent=2))
    sys.exit(bool(failed) or any(of["times"] >= LIMIT for of in grown.values()))


if __name__ == "__main__":
    ended(main)
