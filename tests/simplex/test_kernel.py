"""The compiled path: same answers as torch, falls back always, loads nothing it cannot trust."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import simplex
from simplex import kernel

PROBE = (
    "import torch, simplex, simplex.kernel as k\n"
    "p = simplex.sparsemax(torch.linspace(-1, 1, 4096))\n"
    "assert abs(float(p.sum()) - 1) < 1e-5\n"
    "print('compiled' if k.library() is not None else 'torch')\n"
)
needs_compiler = pytest.mark.skipif(kernel.library() is None, reason="no C compiler on this machine")


def probe(cache: Path, **environment: str) -> str:
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache), **environment}
    result = subprocess.run([sys.executable, "-c", PROBE], env=variables, capture_output=True, text=True, check=True)
    return result.stdout.strip()


@needs_compiler
def test_builds_once_and_rebuilds_what_was_tampered_with(tmp_path: Path) -> None:
    assert probe(tmp_path) == "compiled"
    (built,) = (tmp_path / "surematch").glob("*.so")
    first = built.stat().st_mtime_ns
    assert probe(tmp_path) == "compiled"
    assert built.stat().st_mtime_ns == first
    damaged = bytearray(built.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    built.write_bytes(damaged)
    assert probe(tmp_path) == "compiled"
    assert built.read_bytes() != bytes(damaged)


@needs_compiler
def test_a_folder_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "surematch"
    folder.mkdir()
    folder.chmod(0o777)
    assert probe(tmp_path) == "torch"


def test_falls_back_without_a_compiler_and_when_switched_off(tmp_path: Path) -> None:
    assert probe(tmp_path, CC="no-such-compiler") == "torch"
    assert probe(tmp_path, CC="false") == "torch"
    assert probe(tmp_path, SIMPLEX_KERNEL="0") == "torch"
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_bad_rows_and_layouts(dtype: torch.dtype, threads: int) -> None:
    x = torch.randn(300, 1003, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x[0], x[1, 5], x[2, 6], x[3, :1000] = -torch.inf, torch.nan, torch.inf, -torch.inf
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for f in (simplex.sparsemax, simplex.entmax15):
            p = f(x)
            assert p[:3].isnan().all()
            torch.testing.assert_close(p[3:].sum(-1), torch.ones(297, dtype=dtype))
            assert (p[3, :1000] == 0).all()
            torch.testing.assert_close(f(x.T.contiguous(), dim=0), p.T, equal_nan=True)
            torch.testing.assert_close(f(x[:, ::2]), f(x[:, ::2].contiguous()), equal_nan=True)
    finally:
        torch.set_num_threads(before)
