"""Installs and starts the peers of `bench_service.py`, each in an environment of its own under the cache folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.loads import Load, cpu_seconds

PACKAGES = {
    "chroma": ["chromadb==1.5.9"],
    "txtai": ["txtai[api]==9.14.0", "hnswlib==0.8.0"],
    "milvus-lite": ["pymilvus==3.0.2", "milvus-lite==3.2.2"],
    "qdrant-edge": ["qdrant-edge-py==0.9.0"],
}
"""The newest of each when they were last looked at (November 2026)."""
IDLE, LONGEST = 0.05, 300
"""Share of a core below which a peer has done what it does after it was filled, and seconds that it gets for that."""


class PeerError(Exception):
    """It could not be installed, did not start, or failed when it was asked."""


@contextmanager
def of_the_peer() -> Iterator[None]:
    """What goes wrong inside is the peer's doing, not ours: it ended, or says what cannot be understood."""
    try:
        yield
    except (OSError, ValueError, psutil.Error, subprocess.SubprocessError) as error:
        raise PeerError(str(error)[-500:]) from error


@dataclass(frozen=True)
class Peer:
    """One that runs: what it is, how to load it, the rows it finds for the first queries; may raise `PeerError`."""

    version: str
    load: Callable[[int], dict[str, Any]]
    rows: Callable[[int], list[list[int]]]


def environment(folder: Path, packages: list[str]) -> Path:
    """The Python of an environment with these packages, and with ours where theirs ask for nothing else."""
    python, ready, wanted = folder / "bin" / "python", folder / "ready", " ".join(packages)
    if not ready.exists() or ready.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        _see_ours(folder)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run(install, check=True, stdout=sys.stderr)
        ready.write_text(wanted)
    _see_ours(folder)  # which may be another clone's by now
    return python


def _see_ours(folder: Path) -> None:
    """Torch, above all, need not be downloaded again."""
    ours = dict.fromkeys([sysconfig.get_paths()["purelib"], *(path for path in sys.path if "site-packages" in path)])
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text("\n".join(ours) + "\n")


@contextmanager
def start(name: str, cache: Path, items: Any, queries: Any, seconds: float, wrk: Callable[..., Any]) -> Iterator[Peer]:
    """Raises `PeerError` when it cannot be installed or does not start."""
    with of_the_peer():
        python = environment(cache / "peers" / f"{name}-venv", PACKAGES[name])
    folder = cache / "peers" / name
    program = Path(__file__).with_name("peer_programs.py")
    made = hashlib.sha256(items.tobytes() + queries.tobytes() + program.read_bytes() + repr(PACKAGES[name]).encode())
    filled = folder / "filled"
    if not filled.exists() or filled.read_text() != made.hexdigest():  # of other vectors, or ended half-way
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        np.save(folder / "items.npy", items)
        np.save(folder / "queries.npy", queries)
    command = [python, program, name, folder]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout

    def ask(line: str) -> Any:
        assert process.stdin
        assert process.stdout
        with of_the_peer():
            process.stdin.write(line + "\n")
            process.stdin.flush()
            if not (answer := process.stdout.readline()):
                raise PeerError(f"{name} ended")
            return json.loads(answer)

    try:
        if not (told := process.stdout.readline()):
            raise PeerError(f"{name} did not start")
        with of_the_peer():
            about = json.loads(told)
            filled.write_text(made.hexdigest())
            _until_idle(process.pid)
        if "url" in about:
            asked = wrk(about["url"], about["path"], Path(about["bodies"]), 0, "application/json", seconds)
            load = partial(_guarded, asked)
        else:
            load = partial(_load, ask, seconds)
        yield Peer(about["version"], load, lambda some: ask(f"rows {some}"))
    finally:
        with suppress(OSError):  # it may have ended with a line unread
            process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()


def _until_idle(pid: int) -> None:
    """Some go on building their index after they have answered."""
    over = time.perf_counter() + LONGEST
    before = cpu_seconds(pid)
    while time.perf_counter() < over:
        time.sleep(3)
        if (now := cpu_seconds(pid)) - before < 3 * IDLE:
            return
        before = now


def _guarded(load: Load, clients: int) -> Any:
    with of_the_peer():
        return load(clients)


def _load(ask: Callable[[str], Any], seconds: float, clients: int) -> Any:
    return ask(f"load {clients} {seconds:g}")


Start = Callable[..., AbstractContextManager[Peer]]
PEERS: dict[str, Start] = {name: partial(start, name) for name in PACKAGES}
