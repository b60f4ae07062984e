"""Damaged snapshot files: each is refused by its name, something intact serves, and no answer is wrong.

A few mutations in the suite; `make test-damage` asks for more with SUREMATCH_MUTATIONS, and for
other ones with SUREMATCH_SEED.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index.collection import Collection, NewItem

MUTATIONS = int(os.environ.get("SUREMATCH_MUTATIONS", "60"))
SEED = int(os.environ.get("SUREMATCH_SEED", "11"))
Random = np.random.Generator


def flip(content: bytes, random: Random) -> bytes:
    at = int(random.integers(len(content)))
    return content[:at] + bytes([content[at] ^ int(random.integers(1, 256))]) + content[at + 1 :]


def truncate(content: bytes, random: Random) -> bytes:
    return content[: int(random.integers(len(content)))]


def append(content: bytes, random: Random) -> bytes:
    return content + random.bytes(int(random.integers(1, 64)))


def zero(content: bytes, random: Random) -> bytes:
    at = int(random.integers(len(content)))
    return content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :]


def swap(content: bytes, random: Random) -> bytes:
    at = int(random.integers(len(content)))
    return content[at:] + content[:at]


def insert(content: bytes, random: Random) -> bytes:
    at = int(random.integers(len(content)))
    return content[:at] + random.bytes(4) + content[at:]


KINDS: list[Callable[[bytes, Random], bytes]] = [flip, truncate, append, zero, swap, insert]


@pytest.mark.parametrize("older", [True, False], ids=["an older snapshot", "nothing else"])
def test_every_mutated_file_is_refused_by_name_and_no_answer_is_wrong(
    copied: Path, capsys: pytest.CaptureFixture[str], older: bool
) -> None:
    opened = Collection.open(copied, writable=True)
    opened.upsert([NewItem("late", "card", "bank card chip")])
    newest = copied / "snapshots" / opened.snapshot()
    opened.close()
    if not older:
        for folder in (copied / "snapshots").glob("[0-9]*"):
            if folder != newest:
                folder.rename(copied.parent / folder.name)
    queries = ["bank card chip", "lemon soup", "train to the airport"]
    whole = Collection.open(copied)
    now = whole._store.everything()
    items = whole._store.get(now.born.tolist())
    cosines = whole.encoder.encode(queries) @ now.vectors.T
    labels = {items[row].id: items[row].label for row in now.born.tolist()}
    truth = [dict(zip([items[row].id for row in now.born.tolist()], of_query, strict=True)) for of_query in cosines]
    whole.close()
    random = np.random.default_rng(SEED)
    files = sorted(newest.iterdir())
    served = {"older": 0, "rebuilt": 0}
    for number in range(MUTATIONS // 2):
        path = files[number % len(files)]
        good = path.read_bytes()
        bad = good
        while bad == good:
            bad = KINDS[number % len(KINDS)](good, random)
        path.write_bytes(bad)
        found = Collection.open(copied)
        assert found.snapshot_id != newest.name
        assert any(str(path) in warning for warning in found.warnings), found.warnings
        served["rebuilt" if found.snapshot_id.startswith("rebuilt") else "older"] += 1
        answers = found.search(queries, k=50)
        for answer, cosine in zip(answers, truth, strict=True):
            scores = [hit.score for hit in answer.hits]
            np.testing.assert_allclose(scores, sorted(cosine.values(), reverse=True)[:50], atol=1e-5)
            np.testing.assert_allclose(scores, [cosine[hit.id] for hit in answer.hits], atol=1e-5)
            assert all(hit.label == labels[hit.id] for hit in answer.hits)
        assert {answer.calibrated for answer in answers} == {older}
        found.close()
        path.write_bytes(good)
    assert served["older" if older else "rebuilt"] == MUTATIONS // 2
    with capsys.disabled():
        if MUTATIONS > 100:
            print(f"\n{MUTATIONS // 2} mutated files: all refused by name, no wrong answer; served {served}")  # noqa: T201
    again = Collection.open(copied)
    assert (again.snapshot_id, again.warnings) == (newest.name, [])
    again.close()
