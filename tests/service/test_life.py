"""The life of a service that writes, beside one that only reads the same folder: whatever is asked of the first in
whatever order, and though it is killed, what it acknowledged is there, and both say the same of it.

`make test-life` looks at more lives.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.client import Client, ServiceProblem
from service.schemas.search import SearchReply
from tests.lives import live, probabilities
from tests.service.conftest import Server, serving, until
from tests.service.gallery import KNOWN, TOPICS, UNKNOWN

LIVES = int(os.environ.get("LIVES", "3")) // 10 or 2
STEPS = 12
ASKED = [text for text, _ in KNOWN[::9]][:6] + list(UNKNOWN[:4])
LABELS = [*list(TOPICS)[:4], "football", None]
IDS = [f"n{at}" for at in range(15)]


class Life(RuleBasedStateMachine):
    """`items` holds the written ids to (label, text, metadata); those of the build stay as they are."""

    born: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="life-"))
        self.folder = Path(shutil.copytree(self.born, self.home / "collection"))
        self.items: dict[str, tuple[str | None, str, dict[str, Any]]] = {}
        self.words = 0
        self.ends = ExitStack()

    @initialize()
    def start(self) -> None:
        self._write()
        server = self.ends.enter_context(serving(self.folder, "--refresh-seconds", "0.05", "--workers", "2"))
        self.reader = self.ends.enter_context(Client(server.url))
        self.built = self.writer.collection().items

    def _write(self) -> None:
        self.stop = ExitStack()
        self.server: Server = self.stop.enter_context(serving(self.folder, "--writable"))
        self.writer = self.stop.enter_context(Client(self.server.url))

    def teardown(self) -> None:
        if hasattr(self, "stop"):
            self.stop.close()
        self.ends.close()
        shutil.rmtree(self.home, ignore_errors=True)

    @rule(names=st.lists(st.sampled_from(IDS), min_size=1, max_size=8, unique=True), label=st.sampled_from(LABELS))
    def put(self, names: list[str], label: str | None) -> None:
        verb, noun = (words.split()[0] for words in TOPICS.get(label or "", ("score won", "football league")))
        new = {}
        for name in names:
            self.words += 1
            new[name] = (label, f"{verb} {noun} word{self.words}", {"n": self.words % 5})
        bodies = [{"id": id, "label": own, "text": text, "metadata": told} for id, (own, text, told) in new.items()]
        reply = self.writer.put_items(bodies)
        assert (reply.written, reply.replaced) == (len(names), sum(name in self.items for name in names))
        self.items |= new

    @rule(names=st.lists(st.sampled_from(IDS), min_size=1, max_size=8, unique=True))
    def remove(self, names: list[str]) -> None:
        held = [name for name in names if name in self.items]
        assert self.writer.delete_items(names).deleted == len(held)
        for name in held:
            del self.items[name]

    @rule(rest=st.integers(0, 4))
    def remove_where(self, rest: int) -> None:
        held = [name for name, (_, _, told) in self.items.items() if told == {"n": rest}]
        assert self.writer.delete_where({"n": rest}).deleted == len(held)
        for name in held:
            del self.items[name]

    @rule(known=st.sampled_from([4, 40]), unknown=st.sampled_from([4, 40]))
    def tell(self, known: int, unknown: int) -> None:
        told = [*KNOWN[:known], *((text, None) for text in UNKNOWN[:unknown])]
        ids = self.writer.search([text for text, _ in told], k=1).query_ids
        assert ids is not None
        for id, (_, label) in zip(ids, told, strict=True):
            self.writer.feedback(id, label)

    @rule()
    def fit_again(self) -> None:
        self._served_after(lambda: self.writer.recalibrate().id, refused=409)  # with too little feedback

    @rule(at=st.integers(0, 9))
    def go_back(self, at: int) -> None:
        kept = self.writer.calibrations().calibrations
        version = kept[at % len(kept)].id
        self._served_after(lambda: self.writer.use_calibration(version).in_use, refused=409)  # a stale one

    def _served_after(self, change: Callable[[], str | None], refused: int) -> None:
        """The calibration that a change made serves, or where it is refused the one before; unless the writer
        compacted meanwhile, by itself."""
        before, snapshot = self.writer.calibration().version, self.writer.ready().snapshot
        try:
            expected = change()
        except ServiceProblem as problem:
            if problem.status != refused:
                raise
            expected = before
        served = self.writer.search(ASKED[:1])
        assert served.calibration_id == expected or served.snapshot != snapshot

    @rule()
    def compact(self) -> None:
        assert self.writer.snapshot().snapshot == self.writer.ready().snapshot

    @rule()
    def kill(self) -> None:
        self.server.process.send_signal(signal.SIGKILL)
        self.stop.close()
        self._write()

    @invariant()
    def what_was_acknowledged_is_there(self) -> None:
        assert self.writer.collection().items == self.built + len(self.items)
        for name in IDS[::4]:
            if name in self.items:
                item = self.writer.item(name)
                assert (item.label, item.text, item.metadata) == self.items[name]
            else:
                with pytest.raises(ServiceProblem, match="404"):
                    self.writer.item(name)
        labels = set(self.writer.labels().labels)
        assert {label for label, _, _ in self.items.values() if label} <= labels
        assert ("football" in labels) == any(label == "football" for label, _, _ in self.items.values())

    @invariant()
    def who_reads_says_what_who_writes_says(self) -> None:
        for _ in range(4):  # whichever process answers
            until(self._agree, seconds=20)

    def _agree(self) -> bool:
        """Whether both are at the same state: the writer may compact by itself at any time."""
        said, mine = self.writer.search(ASKED, k=8), self.reader.search(ASKED, k=8)
        if (mine.sequence, mine.calibration_id) != (said.sequence, said.calibration_id):
            return False
        self._same(mine, said)
        return True

    def _same(self, mine: SearchReply, said: SearchReply) -> None:
        for one, other in zip(mine.results, said.results, strict=True):
            assert [hit.score for hit in one.hits] == pytest.approx([hit.score for hit in other.hits], abs=1e-5)
            assert probabilities(one.no_match, one.labels) == pytest.approx(
                probabilities(other.no_match, other.labels), abs=1e-4
            )
            assert one.calibrated == other.calibrated
            if one.calibrated:
                assert sum(entry.probability for entry in one.labels or ()) + (one.no_match or 0) == pytest.approx(1)


def test_whatever_is_asked_in_whatever_order(collection: Path) -> None:
    Life.born = collection
    live(Life, LIVES, STEPS)
