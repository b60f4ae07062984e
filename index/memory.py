"""Gives memory that was freed back to the system, which glibc's allocator keeps.

Threads that run beside each other allocate in arenas of their own, and a few blocks that stay hold what was freed
around them: a service that compacts or reloads again and again would grow.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
ARENAS = 2
M_ARENA_MAX = -8
"""Its number in glibc's malloc.h."""


def share_arenas() -> None:
    """Lets all threads of this process allocate in `ARENAS` arenas, unless MALLOC_ARENA_MAX says how many.

    By itself glibc takes eight for each core, and what one has freed no other uses. Call it before there are threads.
    """
    if "MALLOC_ARENA_MAX" not in os.environ and (mallopt := _of_libc("mallopt")) is not None:
        mallopt(M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Does nothing where the allocator is another one. Call it after much was freed: it looks through all that is."""
    if (trim := _of_libc("malloc_trim")) is not None:
        trim(0)


def given_back_after(work: Callable[P, R]) -> Callable[P, R]:
    """The function, after which what it allocated for itself is given back."""

    @wraps(work)
    def working(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return work(*args, **kwargs)
        finally:
            give_back()

    return working


@cache
def _of_libc(name: str) -> Callable[..., Any] | None:
    try:
        return getattr(ctypes.CDLL(None), name)  # type: ignore[no-any-return]
    except (AttributeError, OSError, TypeError):  # musl and macOS have none, and Windows no library of that name
        return None
