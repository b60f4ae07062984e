"""Loads to compare: wrk over HTTP, threads in this process, and how they take turns."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HERE = Path(__file__).parent
CLIENTS = (1, 8, 32)
RANGES = ("per_second", "p50_ms")
Load = Callable[[int], dict[str, Any]]
"""From a number of clients to requests a second and milliseconds."""
DEBIAN = ("wrk", "libluajit-5.1-2", "libluajit-5.1-common")


def find_wrk(cache: Path) -> None:
    """Puts wrk on the PATH; where it is not installed, Debian's package is unpacked into `cache`, no root needed."""
    if shutil.which("wrk"):
        return
    folder = cache / "wrk"
    if not (folder / "usr/bin/wrk").is_file() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        lists = folder / "lists"  # a machine may have none, and only root may change its own
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        apt = ["apt-get", "-o", f"Dir::State::Lists={lists.resolve()}", "-o", f"Dir::Cache={folder.resolve()}"]
        for words in (["update"], ["download", *DEBIAN]):
            subprocess.run([*apt, *words], cwd=folder, stdout=subprocess.DEVNULL, check=False)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
    libraries = [str(path.parent) for path in folder.glob("usr/lib/*/libluajit*.so*")]
    os.environ["PATH"] += os.pathsep + str(folder / "usr/bin")
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries[:1], os.environ.get("LD_LIBRARY_PATH", "")])
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed. On Debian or Ubuntu: apt-get install -y wrk; on macOS: brew install wrk")


def wrk(url: str, path: str, bodies: Path, size: int, kind: str, seconds: float) -> Load:
    """A load that posts the bodies in turn; answers other than 2xx stop the benchmark."""
    where = {"BODIES": str(bodies), "SIZE": str(size), "PATH_": path, "TYPE": kind}
    command = ["wrk", "-t1", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(HERE / "rotate.lua"), url]

    def run(clients: int) -> dict[str, Any]:
        done = subprocess.run(
            [*command, f"-c{clients}"], env=os.environ | where, capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        if found["bad_status"] or found["broken"]:
            raise subprocess.SubprocessError(f"{url}{path}: {found}")
        return {
            "requests": found["requests"],
            "per_second": round(found["requests"] / found["seconds"], 1),
            "p50_ms": found["p50_ms"],
            "p99_ms": found["p99_ms"],
        }

    return run


def in_process(call: Callable[[int], Any], seconds: float) -> Load:
    """A load of threads that call with the number of a query each."""

    def run(clients: int) -> dict[str, Any]:
        over = time.perf_counter() + seconds
        taken: list[float] = []

        def ask(first: int) -> None:
            at = first
            while (began := time.perf_counter()) < over:
                call(at)
                taken.append(time.perf_counter() - began)
                at += clients

        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, range(clients)))
        return _figures(taken, time.perf_counter() - began)

    return run


def _figures(taken: list[float], seconds: float) -> dict[str, Any]:
    p50, p99 = np.percentile(taken, [50, 99]) * 1000
    return {
        "requests": len(taken),
        "per_second": round(len(taken) / seconds, 1),
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
    }


def cpu_seconds(pid: int) -> float:
    """Seconds of processor time that a process and its children have taken."""
    members = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in members)


def costing(load: Load, pid: int) -> Load:
    """The load, and the processor time that a request takes: it tells less of what else the machine does."""

    def run(clients: int) -> dict[str, Any]:
        before = cpu_seconds(pid)
        found = load(clients)
        return {**found, "cpu_ms": round(1000 * (cpu_seconds(pid) - before) / found["requests"], 3)}

    return run


def alternate(loads: dict[str, Load], rounds: int) -> dict[str, Any]:
    """{name: {clients: figures}}, medians over rounds, and the ranges of `RANGES`; in a round each is asked once."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = {name: {n: [] for n in CLIENTS} for name in loads}
    for clients in CLIENTS:
        for _ in range(rounds):
            for name, load in loads.items():
                found[name][clients].append(load(clients))
    medians = {
        name: {
            str(clients): {
                **{key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]},
                **{f"{key}_range": [pick(run[key] for run in runs) for pick in (min, max)] for key in RANGES},
            }
            for clients, runs in by.items()
        }
        for name, by in found.items()
    }
    for name, by in medians.items():
        figures = "   ".join(f"{n}: {f['per_second']:8.1f}/s {f['p50_ms']:8.2f} ms" for n, f in by.items())
        cost = f"   ({by['32']['cpu_ms']} ms of processor each)" if "cpu_ms" in by["32"] else ""
        print(f"  {name:<34}{figures}{cost}", flush=True)
    return medians
