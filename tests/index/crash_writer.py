"""The process that the crash test kills: writes, deletes and compacts for ever, telling what it is about to do.

Every line of the journal is an intent ({"put": {id: version}} or {"gone": [ids]}), "done", or a stage of the compaction
that runs beside; a line is written at once
or not at all, and survives kill -9.
"""

from __future__ import annotations

import json
import os
import random
import threading
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.collection import Collection, NewItem

DIMENSION = 16


def vector_of(name: str, version: int) -> NDArray[np.float32]:
    """The vector that an item must have: nobody needs to remember it."""
    found = np.random.default_rng(zlib.crc32(f"{name}/{version}".encode())).standard_normal(DIMENSION)
    return (found / np.linalg.norm(found)).astype(np.float32)


def item_of(name: str, version: int) -> NewItem:
    return NewItem(
        name, f"label {version % 3}", f"text of {name}/{version}", vector_of(name, version), metadata={"v": version}
    )


def work(path: Path, journal: Path, seed: int) -> None:
    """Runs until it is killed."""
    choose = random.Random(seed)
    collection = Collection.open(path, writable=True)
    handle = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(line: object) -> None:
        os.write(handle, (json.dumps(line) + "\n").encode())

    def compact() -> None:
        while True:
            collection.snapshot(lambda what, done, of: note({"stage": what}))
            note({"stage": "swapped"})

    note("open")
    if seed % 2 or choose.random() < 0.5:
        threading.Thread(target=compact, daemon=True).start()
    version = seed * 1_000_000
    while True:
        names = [f"i{number}" for number in choose.sample(range(120), choose.randint(1, 8))]
        if choose.random() < 0.3:
            note({"gone": names})
            collection.delete(names)
        else:
            version += 1
            note({"put": dict.fromkeys(names, version)})
            collection.upsert([item_of(name, version) for name in names])
        note("done")
