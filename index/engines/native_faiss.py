"""FAISS, loaded with BLAS kernels for this processor.

The OpenBLAS 0.3.15 inside the wheel of faiss-cpu takes newer processors for the first with SSE3 (`threadpoolctl` shows
"Prescott"), which makes training and batches several times slower. OpenBLAS reads its variable once, when it is loaded;
numpy is imported first, so that its own newer copy goes on to choose for itself. And FAISS takes BLAS only from 128,000
numbers (queries times dimensions) on, where small batches had gained from it long before.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np  # noqa: F401

_VARIABLE = "OPENBLAS_CORETYPE"


def _core() -> str | None:
    """The newest kernels that OpenBLAS 0.3.15 has and this processor can run; None: let it choose."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("flags")[2]
    except OSError:
        return None
    having = set(flags.partition("\n")[0].split())
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"} <= having:
        return "SkylakeX"
    return "Haswell" if {"avx2", "fma"} <= having else None


def _load() -> Any:
    core = _core()
    if core is None or _VARIABLE in os.environ:
        return importlib.import_module("faiss")
    os.environ[_VARIABLE] = core
    try:
        return importlib.import_module("faiss")
    finally:
        del os.environ[_VARIABLE]


BLAS_FROM = 512
"""Numbers in a batch of queries from which FAISS multiplies matrices: two queries of 256 dimensions, and none of fewer
than 512 alone, which is faster without."""

faiss = _load()
faiss.cvar.distance_compute_blas_threshold = BLAS_FROM
