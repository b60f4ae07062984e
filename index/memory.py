"""Gives memory that was freed back to the system, which glibc's allocator keeps.

Threads that run beside each other allocate in arenas of their own, and a few blocks that stay hold what was freed
around them: a service that compacts or reloads again and again would grow.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def give_back() -> None:
    """Does nothing where the allocator is another one. Call it after much was freed: it looks through all that is."""
    if (trim := _trim()) is not None:
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
def _trim() -> Callable[[int], Any] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl and macOS have none, and Windows no library of that name
        return None
