"""How long the parts of a search take, for those who ask: `with measured() as seconds`, then `seconds["calibrate"]`.

Nothing is measured for anybody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter

_ASKED: ContextVar[dict[str, float] | None] = ContextVar("seconds of stages", default=None)


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Collects what `stage` measures within, summed by name."""
    seconds: dict[str, float] = {}
    token = _ASKED.set(seconds)
    try:
        yield seconds
    finally:
        _ASKED.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Measures what is done within, if somebody asked."""
    seconds = _ASKED.get()
    if seconds is None:
        yield
        return
    began = perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + perf_counter() - began
