"""Where a benchmark keeps what an interrupted run need not make again: told apart by code, packages and machine."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("simplex", "index", "training", "benchmarks")
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
"""That multiply many numbers at once, which processors of one name may have or not; the last three are for integers."""
VERSIONS = ("torch", "sentence-transformers", "numpy")


def sources(*packages: str) -> str:
    """The modules of these packages, in twelve letters."""
    files = [file for package in packages for file in sorted((ROOT / package).rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def processor() -> str:
    """The processor's name as Linux tells it and which of `INSTRUCTIONS` it has, "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    has = [name for name in INSTRUCTIONS if name in told.get("flags", "").split()]
    return told.get("model name", "") + (f" ({' '.join(has)})" if has else "")


def kept(folder: Path, flags: argparse.Namespace) -> Path:
    """The folder in `folder` for what this code makes with these flags on this machine: other figures, and times above
    all, are not today's."""
    asked = sorted((name, str(value)) for name, value in vars(flags).items() if name not in ("json", "out", "work"))
    told = repr([asked, processor(), os.cpu_count(), *map(version, VERSIONS)])
    return folder / f"made-by-{sources(*PACKAGES)}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def built(cache: Path) -> Path:
    """The folder in `cache` for collections that this code builds; what other code has built there goes."""
    folder = cache / f"made-by-{sources('index', 'benchmarks')}"
    for old in cache.glob("made-by-*"):
        if old != folder:
            shutil.rmtree(old)
    return folder


def done(folder: Path) -> None:
    """Removes what was kept: the next run measures anew."""
    shutil.rmtree(folder, ignore_errors=True)
