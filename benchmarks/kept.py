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
VERSIONS = ("torch", "sentence-transformers", "numpy")


def sources(*packages: str) -> str:
    """The modules of these packages, in twelve letters."""
    files = [file for package in packages for file in sorted((ROOT / package).rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def processor() -> str:
    """The processor's name as Linux tells it, "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


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
