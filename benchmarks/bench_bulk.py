"""A million short texts through `surematch index`: time, peak memory, that it serves, and resumption after kill -9.

    make bench-bulk                      # 1,000,000 texts with `static`
    make bench-bulk ARGS="--rows 50000"  # a quick look
    make bench-bulk ARGS="--no-resume"   # without the build that is killed and resumed

The texts are made by a grammar (seeded): short support messages, 200 labels, distinct. Peak memory is the largest sum
of resident sets over the command and its workers, sampled ten times a second. The collection is then served by
`surematch serve` and asked over HTTP: the time from start to first answer, the median of a hundred answers, and the
resident set.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from outcome import ended

_WORDS = {
    "subject": "card account transfer refund invoice order parcel password login subscription router phone battery "
    "screen ticket flight hotel seat booking voucher",
    "event": "late declined lost broken expired missing wrong blocked delayed damaged",
    "opening": "hello hi please urgent morning question sorry again",
    "place": "berlin airport monday update phone mother work abroad",
}


def texts(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """`count` distinct (text, label) pairs; a label is a subject with an event."""
    random = np.random.default_rng(seed)
    words = {kind: listed.split(" ") for kind, listed in _WORDS.items()}
    for at in range(count):
        subject, event, opening, place = (listed[random.integers(len(listed))] for listed in words.values())
        yield f"{opening}, my {subject} is {event}, {place}, reference {at}", f"{subject} {event}"


def write(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(texts(count))


def watch(command: list[str], kill_at: float | None = None, folder: Path | None = None) -> tuple[float, float, int]:
    """Runs `command`; returns seconds, peak GiB of it and its children, exit code. `kill_at`: kill -9 at that share."""
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, start_new_session=True)
    seen = psutil.Process(process.pid)
    try:
        while process.poll() is None:
            try:
                sizes = [member.memory_info().rss for member in [seen, *seen.children(recursive=True)]]
                peak = max(peak, sum(sizes))
            except psutil.Error:
                pass
            if kill_at is not None and folder is not None and _stored(folder) >= kill_at:
                os.kill(process.pid, signal.SIGKILL)  # the command alone: its workers must notice by themselves
            time.sleep(0.1)
    finally:
        if process.poll() is None:  # interrupted: in a session of its own it has not heard of that
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return time.perf_counter() - began, peak / 2**30, process.returncode


def _stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(".*-building/items.sqlite*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--model", default="static")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    surematch = str(Path(sys.executable).with_name("surematch"))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        data, out = folder / "texts.csv", folder / "collection"
        write(data, options.rows)
        command = [surematch, "index", options.model, str(data), "--label", "label", "--out", str(out)]
        command += ["--workers", str(options.workers)] if options.workers else []
        seconds, memory, code = watch(command)
        if code:
            sys.exit(f"surematch index ended with {code}")
        print(f"{options.rows:,} texts with {options.model}: {seconds:.0f} s, peak {memory:.2f} GiB")
        report: dict[str, object] = {
            "rows": options.rows,
            "model": options.model,
            "cores": os.cpu_count(),
            "seconds": round(seconds, 1),
            "peak_gib": round(memory, 2),
            "serve": _serve(surematch, out),
        }
        if options.json:
            options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
        if options.resume:
            report |= _resumed(surematch, command, out, folder)
            if options.json:
                options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
            if not report["same_answers"]:
                sys.exit("the resumed build is not the same collection")


def _resumed(surematch: str, command: list[str], out: Path, folder: Path) -> dict[str, object]:
    """Builds the collection `out` again, killed half-way and resumed; whether it then answers as before."""
    before = _asked(surematch, out)
    size = (out / "items.sqlite").stat().st_size
    killed, _, code = watch([*command, "--overwrite"], size // 2, folder)
    rest, _, ended = watch([*command, "--overwrite", "--resume"])
    print(f"killed -9 after {killed:.0f} s (exit {code}); resumed and finished in {rest:.0f} s more (exit {ended})")
    same = not ended and before == _asked(surematch, out)
    print(f"the resumed collection answers as the first one: {same}")
    return {"killed_after": round(killed, 1), "resumed_in": round(rest, 1), "same_answers": same}


def _serve(surematch: str, out: Path) -> dict[str, object]:
    """Serves the collection in a process of its own and searches it over HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.perf_counter()
    process = subprocess.Popen([surematch, "serve", str(out), "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        queries = [text for text, _ in texts(101, seed=7)]
        first = None
        while first is None:
            if process.poll() is not None or time.perf_counter() - began > 300:
                sys.exit(f"surematch serve does not answer (exit {process.poll()})")
            try:
                first = _get(port, queries[0])
            except OSError:
                time.sleep(0.1)
        answered, taken = time.perf_counter() - began, []
        for query in queries[1:]:
            at = time.perf_counter()
            _get(port, query)
            taken.append(time.perf_counter() - at)
        memory = psutil.Process(process.pid).memory_info().rss / 2**30
    finally:
        process.terminate()
        process.wait(60)
    hit = first["results"][0]["hits"][0]
    print(
        f"served: first answer after {answered:.1f} s, then {statistics.median(taken) * 1000:.1f} ms an answer "
        f"(median of {len(taken)}, one client), {memory:.2f} GiB resident; {queries[0]!r} -> {hit['text']!r}"
    )
    return {
        "first_answer_after": round(answered, 2),
        "answer_ms": round(statistics.median(taken) * 1000, 2),
        "resident_gib": round(memory, 2),
    }


def _get(port: int, text: str) -> Any:
    url = f"http://127.0.0.1:{port}/v1/search?{urllib.parse.urlencode({'text': text})}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def _asked(surematch: str, out: Path) -> object:
    """What the command answers to a hundred queries."""
    began = time.perf_counter()
    queries = [text for text, _ in texts(100, seed=7)]
    done = subprocess.run(
        [surematch, "search", str(out), *queries, "--json"], capture_output=True, text=True, check=True, timeout=600
    )
    print(f"asked {len(queries)} queries: answered after {time.perf_counter() - began:.1f} s, opening included")
    return json.loads(done.stdout)["answers"]


if __name__ == "__main__":
    ended(main)
