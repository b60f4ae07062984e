"""Calibration queries from the gallery's own rows: those held out of training, or items left out one by one.

Rows the encoder was trained on are never used: they look better than life. Of the others a part asks and is hidden from
all; where that part is too small, as it always is without training, all of them ask, each left out in turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from index.calibration.conditional_logit import FEW_QUERIES, MIN_QUERIES
from index.calibration.distinct import OF_LABEL, SAME
from index.calibration.evidence import Ints
from index.calibration.examples import NEAR_COPY, Queries
from index.errors import CalibrationError
from index.items.gallery import Gallery
from index.items.store import NO_CONTENT

Keys = NDArray[np.uint64]
MAX_QUERIES = 4000
MAX_LEFT_OUT = 2000
MAX_COMPARISONS = 200_000_000
"""Queries times items, from which on queries are sampled: a minute or two of calibration, whatever the gallery."""
FEWEST = 400
"""Queries that are taken however large the gallery is."""
ASKING = 3
"""One of so many items of a label asks at most. Those that ask are hidden from all, and a label must show them about as
much as it will show in use."""
COPIES = 0.05
"""Share of the pairs of one label that may be near copies once an encoder was trained. Training brings a label's items
together, pictures nearer than `NEAR_COPY`: hidden from each other they would look harder to find than queries are."""
LABELS = 10_000
"""Labels whose pairs tell how near that is, at most twice as many: of a million labels not all are looked at."""


def own_rows(
    given: Queries, keys: Keys, vectors: NDArray[np.float32], gallery: Gallery, trained: Keys, seed: int
) -> Queries:
    """Queries from the gallery's own rows, and those `given` that are no items.

    Items (n,) have `keys` (`index.data.rows.text_key`) and `vectors` (n, d); `trained` are the keys of the rows the
    encoder was trained on, and without any `keys` are not needed. An item of which only the vector is known may have
    been trained on. Raises `CalibrationError` when no row can ask.
    """
    labelled = gallery.codes < len(gallery.names)
    random = np.random.default_rng(seed)
    picked, reserved = np.empty(0, np.int64), len(trained) > 0
    if reserved:
        labelled &= ~np.isin(keys, trained) & (keys != NO_CONTENT)
    fresh = np.flatnonzero(labelled)
    if reserved:
        picked = _held_out(keys, fresh, gallery, random, _affordable(len(vectors), MAX_QUERIES))
        reserved = not any(len(picked) < some <= len(fresh) for some in (FEW_QUERIES, MIN_QUERIES))
    if not reserved:
        picked = np.sort(random.permutation(fresh)[: _affordable(len(vectors), MAX_LEFT_OUT)])
    if not len(picked):
        raise CalibrationError(_none_of_its_own(len(trained) > 0, len(fresh) > 0, bool((keys == NO_CONTENT).any())))
    own = "rows held out of training" if reserved else "the gallery's own items, each left out with its near copies"
    return replace(
        given,
        vectors=np.concatenate([vectors[picked], given.vectors]),
        codes=np.concatenate([gallery.codes[picked], given.codes]),
        rows=np.concatenate([picked, given.rows]),
        source=f"{given.source} and {own}" if (given.codes >= 0).any() else own,
        leave_one_out=not reserved,
        near_copy=NEAR_COPY if reserved or not len(trained) else _near_copy(vectors[fresh], gallery.codes[fresh]),
        items_untrained=False,
    )


def _near_copy(vectors: NDArray[np.float32], codes: Ints) -> float:
    """The cosine from which an item (n, d) counts as a copy to a trained encoder: what `COPIES` of the pairs of one
    label (n,) reach, those of one text left aside, and at least `NEAR_COPY`."""
    order = np.argsort(codes, kind="stable")
    _, begins, counts = np.unique(codes[order], return_index=True, return_counts=True)
    several = np.flatnonzero(counts > 1)
    several = several[:: 1 + len(several) // LABELS]
    labels = [vectors[order[begins[at] : begins[at] + min(counts[at], OF_LABEL)]] for at in several]
    pairs = np.concatenate([np.empty(0, np.float32)] + [(of @ of.T)[np.triu_indices(len(of), 1)] for of in labels])
    pairs = pairs[pairs < 1 - SAME]
    return max(NEAR_COPY, float(np.quantile(pairs, 1 - COPIES))) if len(pairs) else NEAR_COPY


def _held_out(keys: Keys, fresh: Ints, gallery: Gallery, random: np.random.Generator, limit: int) -> Ints:
    """Positions of at most `limit` texts that are `fresh`, all copies of one together."""
    count = np.bincount(gallery.codes, minlength=len(gallery.names))
    room = np.where(count > 1, np.maximum(1, count // ASKING), 0)
    chosen: list[int] = []
    texts = 0
    for copies in _copies(keys, fresh, random):
        asking = Counter(gallery.codes[copies].tolist())
        if texts == limit:
            break
        if all(room[code] >= number for code, number in asking.items()):
            texts += 1
            chosen.extend(copies.tolist())
            for code, number in asking.items():
                room[code] -= number
    return np.array(sorted(chosen), np.int64)


def _copies(keys: Keys, fresh: Ints, random: np.random.Generator) -> Iterator[Ints]:
    """The positions of one text after the other, in random order."""
    at = fresh[np.argsort(keys[fresh], kind="stable")]
    _, begins = np.unique(keys[at], return_index=True)
    ends = np.append(begins[1:], len(at))
    for text in random.permutation(len(begins)):
        yield at[begins[text] : ends[text]]


def _affordable(size: int, limit: int) -> int:
    """Queries for a gallery of `size`: each is compared with every item, several times over."""
    return max(FEWEST, min(limit, MAX_COMPARISONS // size)) if size else limit


def _none_of_its_own(trained: bool, fresh: bool, unclear: bool) -> str:
    """Why the gallery has no row that could ask: by whether the encoder was trained, and rows are `fresh` to it."""
    if fresh:
        return (
            "Of the rows that the encoder was not trained on none can ask: their labels have no other item, or copies "
            "of one text. Give labelled queries with --calibrate FILE."
        )
    if not trained:
        return "No item has a label, so none can ask for its like. Give labelled queries with --calibrate FILE."
    used = (
        "Every row of the gallery was used to train the encoder, or may have been (of some only the vector is known)"
        if unclear
        else "Every row of the gallery was used to train the encoder"
    )
    return (
        f"{used}, so none can say how sure a match is. Give labelled queries with --calibrate FILE, or hold some rows "
        "out: surematch train --held-out 0.15, or --unseen-classes 0.2 where labels have two rows."
    )
