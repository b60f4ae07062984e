"""The life of a collection as a state machine: writes, feedback, calibrations, ways back, copies and damage, in any
order; a plain dict says what must be found, and a reader in its own right must say what the writer says.

`make test-life` looks at more lives.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from index.answer import Answer
from index.backup import copy_collection
from index.collection import Collection, NewItem
from index.errors import CalibrationError, CollectionError, Damaged, DataError
from tests.index.conftest import KNOWN, OTHER
from tests.index.helpers import sentences
from tests.lives import live, probabilities

LIVES = int(os.environ.get("LIVES", "6"))
STEPS = 15
ASKED = [text for text, _ in sentences(2, (*KNOWN, *OTHER), seed=901)]
LABELS = [*KNOWN, *OTHER, None]
IDS = [f"items.csv:{at}" for at in range(2, 40)] + [f"new-{at}" for at in range(12)]


class Life(RuleBasedStateMachine):
    """`items` holds id to (label, text, metadata) as they must be."""

    born: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="life-"))
        self.folder = Path(shutil.copytree(self.born, self.home / "collection"))
        self.words = 0
        self.gone: set[bytes] = set()
        self.chosen: str | None = None
        self.hurt_copies = self.hurt_versions = False

    @initialize()
    def open(self) -> None:
        self.writer = Collection.open(self.folder, writable=True, compacts=False)
        self.reader = Collection.open(self.folder)
        stored = self.writer._store.get(self.writer.gallery.rows.tolist()).values()
        self.items = {item.id: (item.label, item.text, item.metadata) for item in stored}

    def teardown(self) -> None:
        for name in ("writer", "reader"):
            with suppress(AttributeError):
                getattr(self, name).close()
        shutil.rmtree(self.home, ignore_errors=True)

    # what happens to it

    @rule(
        batch=st.lists(
            st.tuples(st.sampled_from(IDS), st.sampled_from(LABELS)),
            min_size=1,
            max_size=12,
            unique_by=lambda one: one[0],
        ),
        seed=st.integers(0, 50),
        consent=st.sampled_from(
            [{}, {}, {"consent": {"expires": "2020-01-31"}}, {"consent": {"expires": "2999-01-31"}}]
        ),
    )
    def put(self, batch: list[tuple[str, str | None]], seed: int, consent: dict[str, Any]) -> None:
        texts = {label: iter(sentences(12, (label or "music",), seed)) for label in LABELS}
        new = []
        for name, label in batch:
            self.words += 1
            text = f"{next(texts[label])[0]} secret{self.words:05d}x"
            new.append(NewItem(name, label, text, metadata={"seed": seed, **consent}))
        self._forget(name for name, _ in batch)
        receipt = self.writer.upsert(new)
        assert receipt.written == len(new)
        assert receipt.replaced == sum(item.id in self.items for item in new)
        self.items |= {item.id: (item.label, item.text, item.metadata) for item in new}

    @rule(names=st.lists(st.sampled_from(IDS), min_size=1, max_size=15, unique=True))
    def remove(self, names: list[str]) -> None:
        held = [name for name in names if name in self.items]
        self._forget(held)
        assert self.writer.delete(names).deleted == len(held)
        for name in held:
            del self.items[name]

    @rule(label=st.sampled_from(KNOWN), share=st.sampled_from([1, 2, 5]))
    def remove_some_of_a_label(self, label: str, share: int) -> None:
        held = [name for name, (own, _, _) in self.items.items() if own == label][::share]
        self._forget(held)
        assert self.writer.delete(held).deleted == len(held)
        for name in held:
            del self.items[name]

    @rule(seed=st.integers(0, 50))
    def remove_where(self, seed: int) -> None:
        held = [name for name, (_, _, metadata) in self.items.items() if metadata.get("seed") == seed]
        self._forget(held)
        assert self.writer.delete_where({"seed": seed}).deleted == len(held)
        for name in held:
            del self.items[name]

    @rule(seed=st.integers(100, 130), known=st.sampled_from([0, 5, 30]), unknown=st.sampled_from([0, 5, 30]))
    def tell(self, seed: int, known: int, unknown: int) -> None:
        here = {label for label, _, _ in self.items.values()}
        told = [*sentences(known, KNOWN, seed), *sentences(unknown, OTHER, seed)]
        for vector, (_, label) in zip(self._vectors([text for text, _ in told]), told, strict=True):
            self.writer.feedback(vector, label if label in here else None)

    @rule(feedback=st.booleans())
    def fit_again(self, feedback: bool) -> None:
        before = self.writer.state.calibration_id
        try:
            self.chosen = self.writer.recalibrate(feedback=feedback).id
        except CalibrationError:
            assert self.writer.state.calibration_id == before
        except CollectionError as error:
            if not self.hurt_copies or "no intact snapshot" not in str(error):
                raise

    @rule(at=st.integers(0, 20))
    def go_back(self, at: int) -> None:
        kept = self.writer.calibrations()
        if not kept:
            return
        version = kept[at % len(kept)].id
        stale = version in self.writer.stale_calibrations()
        try:
            self.writer.use_calibration(version)
        except CalibrationError:
            assert stale
        except CollectionError as error:
            if not self.hurt_versions or not re.search("is damaged|no intact snapshot", str(error)):
                raise
        else:
            assert not stale
            self.chosen = version

    @rule()
    def compact(self) -> None:
        self.writer.snapshot()
        self.chosen = self.writer.state.calibration_id
        self.hurt_copies = False
        content = b"".join(file.read_bytes() for file in self.folder.rglob("*") if file.is_file())
        assert not [secret for secret in self.gone if secret in content], "erased is erased"

    @rule()
    def open_again(self) -> None:
        before = self._answers(self.writer)
        self.writer.close()
        self.writer = Collection.open(self.folder, writable=True, compacts=False)
        self._say_the_same(self.writer, before)

    @rule()
    def restore_a_copy(self) -> None:
        copied = self.home / "copy"
        if self.hurt_copies:
            with suppress(Damaged):  # what was damaged may be of no use any more
                copy_collection(self.folder, copied, lambda what, done, of: None)
            shutil.rmtree(copied, ignore_errors=True)
            return
        copy_collection(self.folder, copied, lambda what, done, of: None)
        found = Collection.open(copied)
        try:
            self._say_the_same(found, self._answers(self.writer))
            assert found.state.calibration_id == self.writer.state.calibration_id
        finally:
            found.close()
            shutil.rmtree(copied)

    @rule(at=st.integers(0, 1000), place=st.floats(0, 1))
    def damage(self, at: int, place: float) -> None:
        """A byte of a snapshot or of a kept calibration turns over; items and what they say must not suffer."""
        files = sorted(file for folder in ("snapshots", "calibrations") for file in self.folder.glob(f"{folder}/**/*"))
        files = [file for file in files if file.is_file() and file.stat().st_size]
        if not files:
            return
        file = files[at % len(files)]
        content = bytearray(file.read_bytes())
        content[int(place * (len(content) - 1))] ^= 0x55
        file.write_bytes(content)
        self.chosen, self.hurt_copies, self.hurt_versions = None, True, True
        self.writer.close()
        self.reader.close()
        self.writer = Collection.open(self.folder, writable=True, compacts=False)
        self.reader = Collection.open(self.folder)

    # what holds at every moment

    @invariant()
    def what_was_written_is_there(self) -> None:
        assert self.writer.size == len(self.items)
        for name in IDS[::7]:
            item = self.writer.item(name)
            assert (None if item is None else (item.label, item.text, item.metadata)) == self.items.get(name)

    @invariant()
    def hits_are_those_of_an_exhaustive_search(self) -> None:
        if not self.items:
            return
        names = list(self._shown())
        scores = (
            self._vectors(ASKED) @ self._vectors([str(self.items[name][1]) for name in names]).T
            if names
            else np.zeros((len(ASKED), 0))
        )
        for answer, row in zip(self._answers(self.writer), scores, strict=True):
            assert len(answer.hits) == min(8, len(names))
            np.testing.assert_allclose(
                [hit.score for hit in answer.hits], np.sort(row)[::-1][: len(answer.hits)], atol=1e-5
            )
            for hit in answer.hits:
                assert (hit.label, hit.text, hit.metadata) == self.items[hit.id]
                assert hit.score == pytest.approx(row[names.index(hit.id)], abs=1e-5)

    @invariant()
    def filters_show_what_passes_and_no_more(self) -> None:
        if not self.items:
            return
        passing = {name for name in self._shown() if self.items[name][2].get("seed", 51) <= 25}
        found = self.writer.search(ASKED[:3], k=60, filter={"seed": {"lte": 25}})
        for answer in found:
            assert {hit.id for hit in answer.hits} == passing, "the pool of new ids is smaller than k"
            shown = {entry.label for entry in answer.labels or () if entry.id is None}
            assert shown <= {self.items[name][0] for name in passing}

    @invariant()
    def probabilities_are_whole_or_not_there(self) -> None:
        reason = self.writer.uncalibrated()
        shown = self._shown()
        here = {self.items[name][0] for name in shown}
        for answer in self._answers(self.writer):
            assert answer.calibrated is (reason is None)
            if not answer.calibrated:
                assert answer.reason
                assert (answer.labels, answer.no_match, answer.decision, answer.prediction_set) == (None,) * 4
                assert all(hit.probability is None for hit in answer.hits)
                continue
            assert answer.labels is not None
            assert answer.no_match is not None
            assert sum(entry.probability for entry in answer.labels) + answer.no_match == pytest.approx(1, abs=1e-6)
            assert all(entry.label in here if entry.id is None else entry.id in shown for entry in answer.labels)

    @invariant()
    def a_reader_says_what_the_writer_says(self) -> None:
        self.reader.refresh()
        self._say_the_same(self.reader, self._answers(self.writer))
        assert self.reader.state.calibration_id == self.writer.state.calibration_id

    @invariant()
    def the_choice_stands(self) -> None:
        if self.chosen is not None:
            assert self.writer.state.calibration_id == self.chosen

    # how that is looked at

    def _vectors(self, texts: list[str]) -> np.ndarray:
        return self.writer.encoder.encode(texts)

    def _answers(self, opened: Collection) -> list[Answer]:
        if not self.items:
            with pytest.raises(DataError, match="holds no items"):
                opened.search(ASKED)
            return []
        try:
            return opened.search(ASKED, k=8, coverage=0.9)
        except DataError as error:  # too few kinds of queries are left to promise it
            if "cannot be promised" not in str(error):
                raise
            return opened.search(ASKED, k=8)

    def _say_the_same(self, one: Collection, other: list[Answer]) -> None:
        """Up to rounding, and the order of items that are equally close."""
        for mine, given in zip(self._answers(one), other, strict=True):
            assert [hit.score for hit in mine.hits] == pytest.approx([hit.score for hit in given.hits], abs=1e-5)
            assert probabilities(mine.no_match, mine.labels) == pytest.approx(
                probabilities(given.no_match, given.labels), abs=1e-4
            )
            assert (mine.calibrated, mine.certified) == (given.calibrated, given.certified)
            assert len(mine.prediction_set or ()) == len(given.prediction_set or ())

    def _shown(self) -> set[str]:
        """Items whose consent has not ended."""
        return {
            name for name, (_, _, told) in self.items.items() if told.get("consent", {}).get("expires", "3") > "2026"
        }

    def _forget(self, names: Any) -> None:
        texts = [str(self.items[name][1]) for name in names if name in self.items]
        self.gone |= {text.split()[-1].encode() for text in texts if text.endswith("x") and "secret" in text}


@pytest.fixture
def life(built: Path) -> type[Life]:
    Life.born = built
    return Life


def test_whatever_happens_in_whatever_order(life: type[Life]) -> None:
    live(life, LIVES, STEPS)
