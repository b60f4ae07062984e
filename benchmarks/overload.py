"""Four times what the service can do, for a minute: who is accepted waits little longer, the rest hear so at once.

    make test-overload                            # 60 seconds at 4 times the capacity
    make test-overload ARGS="--seconds 10"

A request is 64 vectors (little-endian float32) on the gallery of `make bench-service`. First the capacity (two clients
that never pause: as much as the queue holds by default), then the unloaded service: requests at half that rate. Then
they come at four times the capacity whether answered or not, on as many connections as that takes, timed from the
moment they were due. Ends with status 1 unless: every answer is 200, or 503 with Retry-After; p99 of the accepted is
within 3 times the unloaded p99; goodput is at least 0.7 of the capacity; and right afterwards nothing is refused at
half the rate and p50 is within twice what it was.

Then texts for MiniLM (int8, nothing cached), from 16 and from 128 clients that never pause: 128 must get at least 0.9
of the answers a second that 16 get, 99 of 100 within 600 ms, and nothing but 200 and 503.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, repeat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from outcome import ended

from benchmarks.bench_service import DIMENSION, SIZE, serving
from benchmarks.service_gallery import build
from benchmarks.service_text import minilm_collection

QUERIES = 64
HEAD = "POST /v1/search HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
KEPT = 3.0
"""Seconds after which an idle connection is not used again: the service may be closing it."""


@dataclass
class Clients:
    """Connections to one address, each busy with one request at a time, and what came of the requests."""

    url: str
    bodies: Iterator[bytes]
    kind: str
    seen: Counter[str] = field(default_factory=Counter)
    accepted: list[float] = field(default_factory=list)
    idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def ask(self, due: float) -> None:
        """One request, timed in seconds from when it was due."""
        try:
            reader, writer = await self._connection()
            body = next(self.bodies)
            writer.write(HEAD.format(host=urlsplit(self.url).netloc, kind=self.kind, size=len(body)).encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            await reader.readexactly(length)
            self.idle.append((time.perf_counter(), reader, writer))
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            self.seen[type(error).__name__] += 1
            return
        status = head.split()[1]
        self.seen[status if status != "503" or "retry-after: " in head else "503 without Retry-After"] += 1
        if status == "200":
            self.accepted.append(time.perf_counter() - due)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self.idle:
            since, reader, writer = self.idle.pop()
            if time.perf_counter() - since < KEPT:
                return reader, writer
            writer.close()
        parts = urlsplit(self.url)
        return await asyncio.open_connection(parts.hostname, parts.port)

    async def one_by_one(self, seconds: float, clients: int = 1) -> float:
        """So many clients that never pause; returns answers a second."""
        self.seen, self.accepted = Counter(), []
        began = time.perf_counter()

        async def client() -> None:
            while time.perf_counter() < began + seconds:
                await self.ask(time.perf_counter())

        await asyncio.gather(*(client() for _ in range(clients)))
        return len(self.accepted) / (time.perf_counter() - began)

    async def at_rate(self, rate: float, seconds: float) -> float:
        """Requests at a fixed rate, whatever becomes of them; returns accepted ones a second."""
        self.seen, self.accepted = Counter(), []
        began = time.perf_counter()
        asked = []
        for at in range(int(rate * seconds)):
            due = began + at / rate
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            asked.append(asyncio.create_task(self.ask(due)))
        await asyncio.gather(*asked)
        return len(self.accepted) / (time.perf_counter() - began)

    def percentile(self, percent: float) -> float:
        """Milliseconds."""
        return round(float(np.percentile(self.accepted, percent)) * 1000, 2)


async def at_four_times(url: str, body: bytes, times: float, seconds: float) -> dict[str, Any]:
    clients = Clients(url, repeat(body), "application/octet-stream")
    await clients.one_by_one(2)
    capacity = await clients.one_by_one(10, clients=2)
    told: dict[str, Any] = {
        "capacity": {"per_second": round(capacity, 1), "answers": dict(clients.seen), "p99_ms": clients.percentile(99)}
    }
    await clients.at_rate(capacity / 2, 15)
    told["unloaded"] = {
        "answers": dict(clients.seen),
        "p50_ms": clients.percentile(50),
        "p99_ms": clients.percentile(99),
    }
    goodput = await clients.at_rate(times * capacity, seconds)
    told["overload"] = {
        "times": times,
        "seconds": seconds,
        "answers": dict(clients.seen),
        "accepted_per_second": round(goodput, 1),
        "p50_ms": clients.percentile(50),
        "p99_ms": clients.percentile(99),
    }
    await clients.at_rate(capacity / 2, 5)
    told["afterwards"] = {"answers": dict(clients.seen), "p50_ms": clients.percentile(50)}
    return told


async def without_pause(url: str, texts: list[str], seconds: float) -> dict[str, Any]:
    clients = Clients(
        url, cycle([json.dumps({"queries": [{"text": text}]}).encode() for text in texts]), "application/json"
    )
    await clients.one_by_one(2)
    told = {}
    for count in (16, 128):
        per_second = await clients.one_by_one(seconds, count)
        told[str(count)] = {
            "answers": dict(clients.seen),
            "accepted_per_second": round(per_second, 1),
            "p50_ms": clients.percentile(50),
            "p99_ms": clients.percentile(99),
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "surematch-bench-service")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    collection, _, queries = build(args.cache, "hnsw", SIZE, DIMENSION)
    body = queries[:QUERIES].astype("<f4").tobytes()
    with serving(collection, "--workers", str(args.workers)) as (url, _):
        told = asyncio.run(at_four_times(url, body, args.times, args.seconds))
    minilm, texts = minilm_collection(args.cache)
    with serving(minilm, "--cache-bytes", "0", "--workers", str(args.workers)) as (url, _):
        told["minilm"] = asyncio.run(without_pause(url, texts, args.seconds / 4))
    told["load_average"] = round(os.getloadavg()[0], 1)
    over, alone, few, many = told["overload"], told["unloaded"], told["minilm"]["16"], told["minilm"]["128"]
    checks = {
        "nothing but 200, and 503 with Retry-After": set(over["answers"]) <= {"200", "503"},
        "some were refused": over["answers"].get("503", 0) > 0,
        "p99 of the accepted within 3 times the unloaded": over["p99_ms"] <= 3 * alone["p99_ms"],
        "goodput at least 0.7 of the capacity": over["accepted_per_second"] >= 0.7 * told["capacity"]["per_second"],
        "recovers at once": set(told["afterwards"]["answers"]) == {"200"}
        and told["afterwards"]["p50_ms"] <= 2 * alone["p50_ms"],
        "128 clients of MiniLM get at least 0.9 of what 16 get": many["accepted_per_second"]
        >= 0.9 * few["accepted_per_second"],
        "and 99 of 100 answers within 600 ms": many["p99_ms"] <= 600 and set(many["answers"]) <= {"200", "503"},
    }
    told["checks"] = checks
    print(json.dumps(told, indent=2))
    if args.json:
        args.json.write_text(json.dumps(told, indent=2))
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    ended(main)
