"""Keeps a process that runs for weeks from growing: glibc's allocator with few arenas.

Left alone it makes an arena for every thread that meets another in `malloc`, and each keeps what it freed for itself. A
service that compacts, reloads and answers in batches on several threads then holds a multiple of what it uses. (Mapping
large blocks one by one would give back more, and makes a batch of exact searches take up to twice as long: every call
would have its pages anew.)
"""

from __future__ import annotations

import ctypes
import sys

_ARENA_MAX = -8
"""The parameter of `mallopt` (malloc.h)."""
ARENAS = 2


def share_arenas() -> bool:
    """Sets the allocator up, before threads are started; whether it could be."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return int(mallopt(_ARENA_MAX, ARENAS)) == 1
