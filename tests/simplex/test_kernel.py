"""The compiled path: same answers as torch, falls back always, loads nothing it cannot trust."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import simplex
from simplex import kernel

needs_compiler = pytest.mark.skipif(kernel.library() is None, reason="no C compiler on this machine")


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Fresh processes, one per task, two at a time, forked from one that has imported torch and nothing of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        yield pool


def serves(environment: dict[str, str]) -> str:
    """Who answers in this process under these variables; "" as a value unsets."""
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    kernel.library.cache_clear()
    p = simplex.sparsemax(torch.linspace(-1, 1, 4096))
    assert abs(float(p.sum()) - 1) < 1e-5
    return "torch" if kernel.library() is None else "compiled"


def started(pool: ProcessPoolExecutor, cache: Path, **environment: str) -> Future[str]:
    return pool.submit(serves, {"SIMPLEX_KERNEL": "", "XDG_CACHE_HOME": str(cache), **environment})


def probe(pool: ProcessPoolExecutor, cache: Path, **environment: str) -> str:
    return started(pool, cache, **environment).result(timeout=120)


def built(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.so"))


@needs_compiler
def test_builds_once_and_rebuilds_what_was_tampered_with(processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    assert probe(processes, tmp_path) == "compiled"
    (library,) = built(tmp_path)
    good, first = library.read_bytes(), library.stat().st_mtime_ns
    record = library.with_suffix(".sha256")
    assert probe(processes, tmp_path) == "compiled"
    assert library.stat().st_mtime_ns == first
    damaged = bytearray(good)
    damaged[len(damaged) // 2] ^= 0xFF
    for path, content in ((library, bytes(damaged)), (library, b""), (record, b"\xff\xfe"), (record, b"")):
        path.unlink()
        path.write_bytes(content)
        path.chmod(0o600)
        assert probe(processes, tmp_path) == "compiled"
        assert library.read_bytes() not in (bytes(damaged), b"")
    library.chmod(0o722)  # others could have written it
    assert probe(processes, tmp_path) == "compiled"
    assert library.stat().st_mode & 0o022 == 0


@needs_compiler
def test_two_processes_building_at_once_both_get_it(processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    both = [started(processes, tmp_path) for _ in range(2)]
    assert [future.result(timeout=120) for future in both] == ["compiled"] * 2
    assert len(built(tmp_path)) == 1
    assert len(list((tmp_path / "surematch").iterdir())) == 2  # the library and its digest, nothing left behind


@needs_compiler
def test_folders_others_may_write_are_not_trusted(processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    own, open_above, sticky = (tmp_path / name for name in ("own", "open", "sticky"))
    for folder in (own / "surematch", open_above / "cache", sticky / "cache"):
        folder.mkdir(parents=True)
    (own / "surematch").chmod(0o777)
    open_above.chmod(0o777)
    sticky.chmod(0o1777)
    assert probe(processes, own) == "torch"
    assert probe(processes, open_above / "cache") == "torch"
    assert not built(own) + built(open_above)
    assert probe(processes, sticky / "cache") == "compiled"
    link = tmp_path / "linked"
    link.mkdir()
    (link / "surematch").symlink_to(sticky / "cache" / "surematch")
    assert probe(processes, link) == "torch"


@needs_compiler
def test_a_relative_cache_folder_is_ignored(processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    """As the XDG specification asks: else the folder one happens to stand in would be trusted."""
    assert probe(processes, Path("cache"), HOME=str(tmp_path)) == "compiled"
    assert built(tmp_path / ".cache" / "surematch")
    assert not Path("cache").exists()


def test_falls_back_without_a_compiler_a_cache_or_when_switched_off(
    processes: ProcessPoolExecutor, tmp_path: Path
) -> None:
    assert probe(processes, tmp_path, CC="no-such-compiler") == "torch"
    assert probe(processes, tmp_path, CC="false") == "torch"
    assert probe(processes, tmp_path, CC="unbalanced '") == "torch"
    assert probe(processes, tmp_path, SIMPLEX_KERNEL="0") == "torch"
    assert probe(processes, Path("/proc")) == "torch"  # read-only, for root too
    file = tmp_path / "file"
    file.touch()
    assert probe(processes, file) == "torch"
    assert not built(tmp_path)


@needs_compiler
def test_the_compiler_may_carry_flags(processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    assert probe(processes, tmp_path, CC=f"{os.environ.get('CC') or 'cc'} -g0") == "compiled"


def forked() -> tuple[float, int]:
    """The sum of a large sparsemax in a child forked after its parent has used several threads, and its exit status."""
    torch.set_num_threads(2)
    x = torch.linspace(-1, 1, 300 * kernel.LEAST).reshape(2, -1)
    want = simplex.sparsemax(x)
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends a child that waits for threads it does not have
        os._exit(0 if np.array_equal(simplex.sparsemax(x).numpy(), want.numpy()) else 1)  # torch.equal would wait
    return float(want.sum()), os.waitpid(child, 0)[1]


@needs_compiler
def test_a_forked_child_does_not_wait_for_its_parents_threads(processes: ProcessPoolExecutor) -> None:
    assert processes.submit(forked).result(timeout=120) == (pytest.approx(2, abs=1e-4), 0)


@needs_compiler
@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_same_numbers_without_it(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, alpha: float) -> None:
    """Values, first and second derivatives, a batch through vmap, strided and huge scores."""
    x = torch.randn(4, 3000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    huge = (4 * x + (3e8 if dtype == torch.float32 else 3e17)).requires_grad_()
    strided = torch.randn(3000, 8, dtype=dtype, generator=torch.Generator().manual_seed(1)).T[::2].requires_grad_()
    g, v = x.flip(0), x.roll(1, -1)

    def everything() -> list[torch.Tensor]:
        found = [torch.func.vmap(lambda row: simplex.entmax(row, alpha))(x)]
        for scores in (x.clone().requires_grad_(), huge, strided):
            p = simplex.entmax(scores, alpha)
            (first,) = torch.autograd.grad((p * p * g).sum(), scores, create_graph=True)
            found += [p, first, torch.autograd.grad((first * v).sum(), scores)[0]]
        return [tensor.detach() for tensor in found]

    assert kernel.usable(x, alpha)
    compiled = everything()
    monkeypatch.setattr(kernel, "usable", lambda x, alpha: False)
    tolerance = 5e-7 if dtype == torch.float32 else 1e-12
    for got, want in zip(compiled, everything(), strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, want, rtol=tolerance, atol=10 * tolerance)


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
