"""An optional compiled path for sparsemax and entmax-1.5 on CPU tensors (kernel.c), several times faster than torch.

Nothing is built at install time. The first large enough call compiles kernel.c with the machine's C compiler (about a
second) into `$XDG_CACHE_HOME/surematch` (~/.cache/surematch); later processes load it from there. Without a compiler,
a safe cache folder or success, the pure torch path serves, with the same answers. SIMPLEX_KERNEL=0 switches it off.

A library is loaded only from a folder and file that belong to this user and nobody else may write, and if its SHA-256
is the one recorded when it was built. It is named after everything it depends on: source, flags, compiler, processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import torch

LEAST = 2048
"""Fewer scores than this do not pay for the call (nor for building it)."""

_team = 0
"""The process that has OpenMP threads; 0 while none has."""

_log = logging.getLogger(__name__)
_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
_TYPES = {torch.float32: "f32", torch.float64: "f64"}


def usable(x: torch.Tensor, alpha: float | torch.Tensor) -> bool:
    """Whether the kernel covers these scores: CPU, float32 or float64, alpha 2 or 1.5, and it can be had."""
    return (
        isinstance(alpha, float)
        and alpha in (1.5, 2.0)
        and x.numel() >= LEAST
        and x.device.type == "cpu"
        and x.dtype in _TYPES
        and type(x) in (torch.Tensor, torch.nn.Parameter)
        and library() is not None
    )


def forward(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """entmax of rows (..., n)."""
    x = x.contiguous()
    p = torch.empty_like(x)
    _run("forward", [x, p], alpha)
    return p


def backward(p: torch.Tensor, g: torch.Tensor, alpha: float) -> torch.Tensor:
    """The Jacobian of entmax at p (..., n) times g (..., n)."""
    p, g = p.contiguous(), g.contiguous()
    out = torch.empty_like(p)
    _run("backward", [p, g, out], alpha)
    return out


def _run(name: str, tensors: list[torch.Tensor], alpha: float) -> None:
    n = tensors[0].shape[-1]
    threads = _threads(tensors[0].numel())
    function = getattr(library(), f"{name}_{_TYPES[tensors[0].dtype]}")
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
    rows = ctypes.c_int64(tensors[0].numel() // n)
    if function(*pointers, rows, ctypes.c_int64(n), alpha == 1.5, threads):
        raise MemoryError(f"no memory for a row of {n} scores")


def _threads(size: int) -> int:
    global _team
    # Below, one thread is done before a second has woken up (which on a busy machine can take milliseconds).
    if size < 128 * LEAST or torch.get_num_threads() == 1:
        return 1
    # A forked child inherits the record of its parent's OpenMP threads but not the threads, and would wait for them.
    if _team not in (0, os.getpid()):
        return 1
    _team = os.getpid()
    return torch.get_num_threads()


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, built if need be; None where there can be none."""
    if os.environ.get("SIMPLEX_KERNEL", "1") == "0" or os.name != "posix":
        return None
    try:
        return _load()
    except (OSError, subprocess.SubprocessError, RuntimeError, ValueError, KeyError) as error:
        _log.info("no compiled kernel, torch serves: %s", error)
        return None


def _load() -> ctypes.CDLL:
    command = shlex.split(os.environ.get("CC") or "cc")  # CC may carry flags or a launcher
    compiler = shutil.which(command[0]) if command else None
    if compiler is None:
        raise RuntimeError("no C compiler found")
    command[0] = compiler
    source = Path(__file__).with_name("kernel.c")
    folder = _private_folder()
    key = hashlib.sha256(
        repr([source.read_bytes(), _FLAGS, command, Path(compiler).stat().st_mtime, _processor()]).encode()
    )
    path = folder / f"simplex-{key.hexdigest()[:32]}.so"
    record = path.with_suffix(".sha256")
    if not _intact(path, record):
        _build(command, source, path, record)
    return ctypes.CDLL(str(path))


def _build(compiler: list[str], source: Path, path: Path, record: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / "kernel.so"
        for threads in (["-fopenmp"], ["-fopenmp-simd"], []):
            command = [*compiler, *_FLAGS, *threads, "-o", str(built), str(source), "-lm"]
            result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if result.returncode == 0:
                break
        else:
            raise RuntimeError(f"{shlex.join(compiler)} failed: {result.stderr[-500:]}")
        built.chmod(0o700)
        digest = Path(folder) / "digest"
        digest.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
        # Each replacement is atomic; if another process comes between the two, the digest tells and it is built again.
        built.replace(path)
        digest.replace(record)
    if not _intact(path, record):
        raise RuntimeError(f"{path} changed while it was being built")


def _intact(path: Path, record: Path) -> bool:
    if not (path.exists() and record.exists() and _only_mine(path) and _only_mine(record)):
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest().encode() == record.read_bytes()


def _private_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (base if base.is_absolute() else Path.home() / ".cache") / "surematch"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _only_mine(folder):
        raise RuntimeError(f"{folder} may be written by others")
    for above in folder.resolve().parents:
        if not _keeps_its_entries(above):
            raise RuntimeError(f"{folder} could be replaced by others: they may write {above}")
    return folder


def _keeps_its_entries(folder: Path) -> bool:
    """Whether nobody but root and this user can rename what lies in `folder`: not theirs to write, or sticky."""
    status = folder.stat()
    # A group of one's own is the default on many systems, with an umask that lets it write.
    group = status.st_mode & stat.S_IWGRP and status.st_gid not in (0, os.getgid())
    shared = (group or status.st_mode & stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
    return status.st_uid in (0, os.getuid()) and not shared


def _only_mine(path: Path) -> bool:
    status = path.lstat()
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.getuid() and not shared and not stat.S_ISLNK(status.st_mode)


def _processor() -> str:
    """What -march=native looks at: a library must not travel to another processor with a shared home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")
