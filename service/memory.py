"""Keeps a process that runs for weeks from growing: glibc's allocator, told to give back what was freed.

Left alone it makes an arena for every thread that meets another in `malloc`, and once a large block was freed it takes
blocks of up to 32 MiB from those arenas, where what lives longest keeps all around it from being given back. A service
that compacts, reloads and answers in batches then grows for as long as it runs.
"""

from __future__ import annotations

import ctypes
import sys

_ARENAS, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
"""Parameters of `mallopt` (malloc.h)."""
ARENAS, LARGE = 2, 1 << 20
"""At most so many arenas; blocks from so many bytes on are mapped one by one, and unmapped when they are freed."""


def give_back_memory() -> bool:
    """Sets the allocator up, before threads are started; whether there was one to set up."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    settings = {_ARENAS: ARENAS, _MMAP_THRESHOLD: LARGE, _TRIM_THRESHOLD: LARGE}
    taken = [mallopt(name, value) == 1 for name, value in settings.items()]
    return all(taken)
