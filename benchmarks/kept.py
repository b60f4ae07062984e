"""Where a benchmark keeps what it need not make again: told apart by the code that made it, and by the machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("simplex", "index", "training")


def sources(*packages: str, script: str) -> str:
    """The modules of these packages and the benchmark's file `script`, in twelve letters."""
    files = [file for package in packages for file in sorted((ROOT / package).rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in [*files, Path(script)])).hexdigest()[:12]


def processor() -> str:
    """The processor's name as Linux tells it, "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def kept(folder: Path, script: str) -> Path:
    """The part of `folder` for what this code, called by the benchmark `script` (its file), trains on this machine:
    other figures, and times above all, are not today's."""
    machine = hashlib.sha256(processor().encode()).hexdigest()[:6]
    return folder / f"made-by-{sources(*PACKAGES, script=script)}-{machine}"
