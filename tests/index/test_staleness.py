"""A calibration is for one gallery: what may change of it, and what is left alone when nothing does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index.calibration.staleness import Seen
from index.collection import Collection, NewItem
from index.items.gallery import Gallery
from tests.index.conftest import World
from tests.index.helpers import sentences, unit

LABELS = [f"l{at:02d}" for at in range(20)]


@pytest.fixture
def live(copied: Path) -> Iterator[Collection]:
    opened = Collection.open(copied, writable=True)
    opened.maintenance.close()  # so that nothing is calibrated again in between
    yield opened
    opened.close()


def gallery(rows: np.ndarray, labels: list[str | None]) -> Gallery:
    return Gallery.of(rows.astype(np.int64), labels, unit(len(rows), 8, seed=1))


def three_each(names: list[str | None]) -> list[str | None]:
    return [name for name in names for _ in range(3)]


@pytest.mark.parametrize(
    ("replaced", "said"),
    [(0, None), (19, None), (21, "for 60 items, of which 39 are left"), (60, "of which 0 are left")],
)
def test_replaced_items_count_though_their_number_stays(replaced: int, said: str | None) -> None:
    """One item of each label is replaced after the other, so that the labels stay as long as they can."""
    then = gallery(np.arange(60), three_each([*LABELS]))
    order = np.arange(60).reshape(20, 3).T.ravel()
    rows = np.arange(60)
    rows[order[:replaced]] = 60 + np.arange(replaced)
    of_row = np.argsort(rows)
    now = gallery(rows[of_row], [three_each([*LABELS])[at] for at in of_row])
    found = Seen.of(then).stale_for(now)
    assert (said is None and found is None) or (said is not None and said in str(found))


@pytest.mark.parametrize(("others", "stale"), [(2, False), (3, True)])
def test_other_labels_count_though_their_number_stays(others: int, stale: bool) -> None:
    then = Seen.of(gallery(np.arange(60), three_each([*LABELS])))
    names = [*LABELS[others:], *(f"new{at}" for at in range(others))]
    now = gallery(3 * others + np.arange(60), three_each([*names]))
    found = then.stale_for(now)
    assert (found is not None) is stale
    assert not stale or f"{20 - others} still have a third of their items of then" in str(found)


@pytest.mark.parametrize(("thinned", "left", "stale"), [(3, 1, True), (2, 1, False), (3, 5, False)])
def test_a_label_counts_as_gone_before_its_last_item_is(thinned: int, left: int, stale: bool) -> None:
    """20 labels of 5 to 24 items; of those of 12 and more some keep so few of these."""
    sizes = range(5, 25)
    names = [name for name, size in zip(LABELS, sizes, strict=True) for _ in range(size)]
    then = Seen.from_json(json.loads(json.dumps(Seen.of(gallery(np.arange(len(names)), [*names])).to_json())))
    thin = LABELS[7 : 7 + thinned]
    kept = [at for at, name in enumerate(names) if name not in thin or at < names.index(name) + left]
    found = then.stale_for(gallery(np.array(kept), [names[at] for at in kept]))
    assert (found is not None) is stale
    assert not stale or f"{20 - thinned} still have a third of their items of then" in str(found)


@pytest.mark.parametrize("each", [1, 2, 3, 4, 5, 10])
def test_a_third_of_the_items_may_go_wherever_they_are(each: int) -> None:
    names = [f"l{at // each:03d}" for at in range(200 * each)]
    then = Seen.of(gallery(np.arange(len(names)), [*names]))
    kept = np.sort(np.random.default_rng(each).permutation(len(names))[: int(len(names) * 0.7)])
    if each == 1:  # every item that goes is a label
        kept = np.arange(20, 200)
    assert then.stale_for(gallery(kept, [names[at] for at in kept])) is None


def test_labels_that_are_whole_are_there_whatever_went_beside_them() -> None:
    names = [f"l{at // 10:03d}" for at in range(940)] + [f"large{at // 50}" for at in range(300)]
    then = Seen.of(gallery(np.arange(len(names)), [*names]))
    assert then.stale_for(gallery(np.arange(940), names[:940])) is None, "6 of 100 labels have gone"
    kept = [at for at in range(940) if at % 10 == 0 or at >= 50]
    assert "of which 89 still have" in str(then.stale_for(gallery(np.array(kept), [names[at] for at in kept])))


def test_items_without_a_label_are_each_a_label_of_their_own() -> None:
    then = Seen.of(gallery(np.arange(40), [None] * 40))
    assert then.stale_for(gallery(np.arange(4, 44), [None] * 40)) is None
    assert then.stale_for(gallery(np.arange(5, 45), [None] * 40)) is not None


def test_without_a_row_only_numbers_are_compared() -> None:
    old = Seen.from_json({"items": 60, "labels": 20})
    assert old.last_row is None
    assert old.stale_for(gallery(900 + np.arange(60), three_each([*LABELS]))) is None
    assert "20 labels; it has 30 now" in str(old.stale_for(gallery(np.arange(60), [f"{at % 30}" for at in range(60)])))


def everything(live: Collection, world: World, rename: str = "") -> list[NewItem]:
    hits = live.search([row.text for row in world.rows(world.items)], k=100)
    found = {hit.id: hit for answer in hits for hit in answer.hits}
    assert len(found) == live.size
    return [NewItem(id, f"{hit.label}{rename}", hit.text, metadata=hit.metadata) for id, hit in found.items()]


def test_writing_everything_again_as_it_stands_changes_nothing(live: Collection, world: World) -> None:
    items, rows = everything(live, world), live.gallery.rows
    receipt = live.upsert(items)
    assert receipt.replaced == receipt.written == len(items)
    assert receipt.sequence == live.sequence, "it was written, and is said to be searchable"
    np.testing.assert_array_equal(live.gallery.rows, rows)
    assert live.state.pending == 0
    assert live.uncalibrated() is None


def test_renamed_labels_end_the_calibration_and_the_next_one_says_what_it_rests_on(
    live: Collection, world: World
) -> None:
    live.upsert(everything(live, world, rename=" (new)"))
    assert live.size == len(world.rows(world.items))
    (answer,) = live.search(["bank card"])
    assert not answer.calibrated
    assert "of which 0 are left" in str(answer.reason)
    assert live.describe()["stale"]
    live.snapshot()
    assert not live.describe()["stale"]
    assert live.calibration is not None
    said = " ".join(live.calibration.warnings)
    assert "has another name there now: not used" in said
    assert "items asked for their like, left out one by one" in said, "there is nothing else to ask with"


@pytest.mark.parametrize("compacted", [False, True])
def test_queries_of_a_label_that_came_and_was_renamed_are_not_unknown_again(live: Collection, compacted: bool) -> None:
    """It came after the calibration, for which its queries were unknown ones."""
    assert live.calibration is not None
    before = live.calibration.report["queries"]["known"]
    texts = [text for text, _ in sentences(20, ["music"], seed=8)]
    live.upsert([NewItem(f"m{at}", "music", text) for at, text in enumerate(texts)])
    if compacted:
        live.snapshot()
    live.upsert([NewItem(f"m{at}", "songs", text) for at, text in enumerate(texts)])
    for _ in range(2):
        live.snapshot()
        assert live.calibration.report["queries"]["known"] == before
        assert "has another name there now: not used" in " ".join(live.calibration.warnings)


def test_replaced_texts_end_the_calibration_until_it_is_made_again(live: Collection, world: World) -> None:
    before = everything(live, world)
    others = sentences(60, ["card", "travel", "food"], seed=77)
    live.upsert([NewItem(old.id, label, text) for old, (text, label) in zip(before, others, strict=True)])
    assert "of which 0 are left" in str(live.uncalibrated())
    live.snapshot()
    assert live.uncalibrated() is None
