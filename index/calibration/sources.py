"""Where calibration queries come from, in order of trust: given by the user, held out of training, or items left
out one by one.

Rows the encoder was trained on are recognised by `text_key` and never used: they look better than life.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.calibration.conditional_logit import FEW_QUERIES
from index.calibration.distinct import distinct, last_word
from index.calibration.evidence import exact_top
from index.calibration.examples import Queries, needed_unknown
from index.calibration.own_rows import own_rows
from index.data.label import plain_label
from index.data.rows import Row, text_key
from index.encoders.encode import BATCH, blame, encode_batch
from index.encoders.encoder import Encoder
from index.encoders.files import TRAINED_ROWS
from index.errors import CalibrationError, CollectionError, DataError
from index.items.gallery import Gallery
from index.items.store import NO_CONTENT, Changes, Feedback, ItemStore

_GIVEN = "queries given with --calibrate"
FEW_ALONE = 0.1
"""Share of labels with one item from which it is worth a warning that these could not ask."""
HIDDEN = "queries were imitated by hiding labels"
"""Said by a caveat of unknown queries that are not real."""
NEVER_SEEN = 0.15
"""Share of the labels hidden to imitate unknown queries that the encoder must never have seen for these to be as near
as real ones: on BANKING77 promises held with --unseen-classes 0.2, which rounds down (`make bench-calibration-static`).
"""
FEW_LABELS = 5
"""Labels that queries must carry, where the gallery has so many, to go without a warning."""

Progress = Callable[[str, int, int], None]
"""Called with (what, done, of)."""


@dataclass(frozen=True, slots=True)
class Held:
    """Calibration queries as the user gave them. Both empty: they are taken from the gallery's own rows."""

    known: Sequence[Row] = ()
    unknown: Sequence[Row] = ()


NO_QUERIES = Held()


def calibration_queries(
    encoder_folder: Path,
    encoder: Encoder,
    keys: NDArray[np.uint64],
    vectors: NDArray[np.float32],
    gallery: Gallery,
    held: Held,
    unknown_share: float,
    seed: int,
    progress: Progress,
) -> tuple[Queries, list[str]]:
    """The queries to calibrate a gallery with, and what was left out of them.

    Of the gallery's items the texts' `keys` (n,) and the `vectors` (n, d) are given, in the order of `gallery`.

    Raises `CalibrationError` when no honest query is left, `DataError` for labels in the wrong file.
    """
    trained = trained_rows(encoder_folder)
    check_labels(held.known, gallery.names, known=True)
    check_labels(held.unknown, gallery.names, known=False, known_as="with --calibrate")
    warnings: list[str] = []
    known, unknown = _agreeing(held, warnings)
    unknown = _without(unknown, keys, _ITEMS, warnings)
    unknown = _without(unknown, trained, f"unknown queries {_TRAINED}", warnings)
    known = _without(_no_items(known, keys, gallery, warnings), trained, f"calibration queries {_TRAINED}", warnings)
    given = _given(encoder, known, unknown, gallery, not len(trained), progress)
    given, left_out = distinct(given, vectors, gallery.codes)
    warnings += left_out
    if not (given.codes >= 0).any():  # too few are refused, and who gave them can give more
        with saying(warnings):
            given = own_rows(given, keys, vectors, gallery, trained, seed)
    return replace(given, caveats=_caveats(given, gallery, keys, trained, unknown_share)), warnings


@contextmanager
def saying(notes: list[str]) -> Iterator[None]:
    """What was left out is said with the reason why there is no calibration: it may be why."""
    try:
        yield
    except CalibrationError as error:
        raise CalibrationError(" ".join([str(error), *notes])) from error


def stored_queries(
    encoder_folder: Path,
    store: ItemStore,
    now: Changes,
    gallery: Gallery,
    unknown_share: float,
    seed: int,
    fed: Feedback | None = None,
) -> tuple[Queries, list[str]]:
    """The queries to calibrate a gallery with again: those the collection kept, else its own rows `now` as at first.

    `fed` are what users said was right, and join them; where there is nothing but items left out one by one, enough
    feedback takes their place, and they become its prior. Labels are looked up anew: an unknown query whose label has
    come into the gallery is a known one now, and the store remembers that for the time after it has left. Raises
    `CalibrationError` when no honest query is left.
    """
    trained = trained_rows(encoder_folder)
    store.note_queries_of_labels_that_came()
    kept = store.calibration_queries()
    labels, vectors, was_known = kept.labels, kept.vectors, kept.known
    if fed is not None:
        labels, vectors = [*labels, *fed.labels], np.concatenate([vectors, fed.vectors])
        was_known = np.concatenate([was_known, np.array([label is not None for label in fed.labels], np.bool_)])
    codes = gallery.encode_labels(labels)
    given = Queries(
        vectors,
        codes,
        np.full(len(codes), -1, np.int64),
        _GIVEN if kept.known.any() else "users' feedback",
        names=tuple(labels),
        items_untrained=not len(trained),
        feedback=np.empty(0, np.int64) if fed is None else fed.numbers,
    )
    given, notes = _of_labels_that_left(given, was_known)
    given = last_word(given)
    if fed is not None:
        given, answered = _told_before_their_label_came(given, fed, now.vectors, gallery, store.first_rows())
        notes += answered
    given, left_out = distinct(given, now.vectors, gallery.codes)
    notes += left_out
    usable = int((given.codes >= 0).sum()) >= FEW_QUERIES and (kept.known.any() or not len(trained))
    keys = store.keys(now.born) if len(trained) else np.empty(0, np.uint64)
    if not usable and (notes or not kept.known.any()):
        with saying(notes):
            given = own_rows(given, keys, now.vectors, gallery, trained, seed)
    return replace(given, caveats=_caveats(given, gallery, keys, trained, unknown_share)), notes


def _of_labels_that_left(queries: Queries, was_known: NDArray[np.bool_]) -> tuple[Queries, list[str]]:
    """Without queries whose label was in the gallery and no longer is, and what to say of them.

    It may have been renamed, and then they would be unknown queries beside their own items.
    """
    gone = was_known & (queries.codes < 0)
    if not gone.any():
        return queries, []
    return queries.only(~gone), [
        f"{gone.sum()} of {len(was_known)} calibration queries carry a label that is not in the gallery, or has "
        "another name there now: not used."
    ]


def _told_before_their_label_came(
    queries: Queries, fed: Feedback, vectors: NDArray[np.float32], gallery: Gallery, since: Mapping[str, int]
) -> tuple[Queries, list[str]]:
    """Without feedback that nothing matches whose nearest label has come since, and what to say of it.

    That label may be what was asked for. Of the gallery the `vectors` (size, d) are needed, and `since` are the first
    rows of labels where those are gone: items that were replaced make no new label.
    """
    before = len(queries.codes) - len(queries.feedback)
    nothing = before + np.flatnonzero(queries.codes[before:] < 0)
    if not len(nothing) or not len(vectors):
        return queries, []
    codes, first = np.unique(gallery.codes, return_index=True)
    nearest = gallery.codes[exact_top(queries.vectors[nothing], vectors, 1)[1][:, 0]]
    came = gallery.rows[first[np.searchsorted(codes, nearest)]]
    named = (gallery.names[code] if code < len(gallery.names) else "" for code in nearest)
    came = np.minimum(came, [since.get(name, row) for name, row in zip(named, came.tolist(), strict=True)])
    told = fed.last_rows[np.searchsorted(fed.numbers, queries.feedback[nothing - before])]
    kept = np.ones(len(queries.codes), np.bool_)
    kept[nothing[came > told]] = False
    if kept.all():
        return queries, []
    return queries.only(kept), [
        f"{(~kept).sum()} of {len(nothing)} notes that nothing matches are nearest to a label that has come since, and "
        "may be about it: not used."
    ]


def _caveats(
    queries: Queries, gallery: Gallery, keys: NDArray[np.uint64], trained: NDArray[np.uint64], unknown_share: float
) -> tuple[str, ...]:
    warnings: list[str] = []
    asked, labels = len(np.unique(queries.codes[queries.codes >= 0])), len(gallery.names)
    if 1 < asked < min(FEW_LABELS, labels):
        warnings.append(
            f"The calibration queries carry only {asked} of the gallery's {labels} labels; the others are taken to be "
            "like them."
        )
    if queries.leave_one_out:
        known = int(((queries.rows < 0) & (queries.codes >= 0)).sum())
        beside = f"Beside the {known} given," if known else "Without queries"
        warnings.append(
            f"{beside} the gallery's own items asked for their like, left out one by one, when the collection was "
            "calibrated. Real queries may differ: index again with some, `surematch index --calibrate FILE`."
        )
    count = np.bincount(gallery.codes[gallery.codes < labels], minlength=labels)
    alone = int((count == 1).sum())
    if queries.leave_one_out and alone > FEW_ALONE * labels:
        have = "has" if alone == 1 else "have"
        warnings.append(
            f"{alone} of the gallery's {labels} labels {have} one item, which cannot ask for its like: how such labels "
            "are found was not measured, and their probabilities may be too low or too high."
        )
    able = queries.codes >= 0
    if queries.leave_one_out:
        able &= count[np.minimum(queries.codes, labels - 1)] > 1
    real, needed = int((queries.codes < 0).sum()), needed_unknown(int(able.sum()), unknown_share)
    if labels > 1 and real < needed and count.max(initial=0) > count.sum() / 2:
        warnings.append(  # without the label's name: the calibration may be kept for longer than its items
            f"One label has {count.max() / count.sum():.0%} of the items. With it hidden, as an unknown query is "
            "imitated, little is left to be mistaken: real unknown queries may get in far more often. Index again "
            "with some: `surematch index --unknown FILE`."
        )
    if len(trained) and real < needed:
        beside = f"Beside the {real} given, unknown" if real else "Unknown"
        closer = (
            "Real ones may come closer"
            if _never_seen(queries, gallery, keys, trained) >= NEVER_SEEN
            else "The encoder was trained to tell these labels apart, so real ones come closer: lines and sets let in "
            "more of them than they promise"
        )
        warnings.append(
            f"{beside} {HIDDEN} when the collection was calibrated. {closer}. Index again with at least {needed}, "
            "`surematch index --unknown FILE`, or train with --unseen-classes 0.2."
        )
    return tuple(warnings)


def _never_seen(queries: Queries, gallery: Gallery, keys: NDArray[np.uint64], trained: NDArray[np.uint64]) -> float:
    """Of the labels that are hidden to imitate unknown queries the share of which the encoder was trained on no item.

    `keys` (n,) are those of the gallery's items.
    """
    asking = np.unique(queries.codes[queries.codes >= 0])
    seen = np.isin(asking, gallery.codes[np.isin(keys, trained) | (keys == NO_CONTENT)])
    return float(1 - seen.mean()) if len(asking) else 0.0


def trained_rows(encoder_folder: Path) -> NDArray[np.uint64]:
    """Sorted `text_key`s of the rows an encoder was trained on; empty for one that was not trained here."""
    path = encoder_folder / TRAINED_ROWS
    if not path.is_file():
        return np.empty(0, np.uint64)
    try:
        with path.open("rb") as file:
            return np.sort(np.load(file, allow_pickle=False).astype(np.uint64))
    except Exception as error:  # numpy raises many unrelated types for damaged files
        raise CollectionError(
            f"{path}: cannot be read ({error}), so rows the encoder was trained on cannot be kept out of the "
            "calibration. Train the encoder again."
        ) from error


_TRAINED = "were in the encoder's training data: not used."
_ITEMS = (
    "unknown queries have the text of an item, under another label: not used. Give queries that are not in the gallery "
    "with --unknown FILE."
)


def _agreeing(held: Held, warnings: list[str]) -> tuple[Sequence[Row], Sequence[Row]]:
    """Without the texts that were given as known and as unknown queries, for one of the two must be wrong."""
    of_known, of_unknown = ({text_key(row.text) for row in rows} for rows in (held.known, held.unknown))
    both = np.array(sorted(of_known & of_unknown), np.uint64)
    known = _without(held.known, both, "calibration queries stand among the unknown ones too: not used.", warnings)
    return known, _without(held.unknown, both, "unknown queries stand among the others too: not used.", warnings)


def _without(rows: Sequence[Row], texts: NDArray[np.uint64], said: str, warnings: list[str]) -> Sequence[Row]:
    """Without the rows whose text is one of `texts` (`text_key`s), which would look better than life, or are none."""
    there = np.isin(np.array([text_key(row.text) for row in rows], np.uint64), texts)
    if not there.any():
        return rows
    warnings.append(f"{there.sum()} of {len(rows)} {said}")
    return [row for row, left_out in zip(rows, there, strict=True) if not left_out]


def _no_items(rows: Sequence[Row], keys: NDArray[np.uint64], gallery: Gallery, warnings: list[str]) -> Sequence[Row]:
    """Without the rows that are items of the gallery, text and label: they find themselves, which shows nothing.

    By their texts, because an int8 encoder gives one text vectors .98 apart in different company
    (`index.calibration.distinct` would not know them).
    """
    codes = gallery.encode_labels([row.label for row in rows])
    items = set(zip(keys.tolist(), gallery.codes.tolist(), strict=True))
    others = [row for row, code in zip(rows, codes, strict=True) if (text_key(row.text), code) not in items]
    if found := len(rows) - len(others):
        are, find = ("is an item", "finds itself") if found == 1 else ("are items", "find themselves")
        warnings.append(
            f"{found} of {len(rows)} calibration queries {are} of the gallery and {find}: not used. Give queries "
            "that are no items with --calibrate FILE."
        )
    return others


def check_labels(rows: Sequence[Row], names: Sequence[str], *, known: bool, known_as: str = "") -> None:
    """Raises `DataError` for the first row whose label is not where it should be: in the gallery, or outside it.

    `known_as` says how the verb takes queries whose label is in the gallery.
    """
    inside = {*names, *map(plain_label, names)}
    for row in rows:
        if (row.label in inside) != known:
            place = f"{row.file}: line {row.line}: the label {row.label!r}"
            if known:
                raise DataError(
                    f"{place} is not in the gallery. If it is meant to be outside, put its rows into a file of their "
                    "own and give that with --unknown FILE; otherwise correct the label or index its items."
                )
            raise DataError(
                f"{place} is in the gallery, but the file was given as unknown queries with --unknown. Remove the row, "
                f"or give the file {known_as} instead."
            )


def _given(
    encoder: Encoder,
    known: Sequence[Row],
    unknown: Sequence[Row],
    gallery: Gallery,
    untrained: bool,
    progress: Progress,
) -> Queries:
    asked = [*known, *unknown]
    vectors = encode_rows(encoder, asked, progress, "encoding calibration queries")
    labels = [row.label for row in asked]
    codes = gallery.encode_labels(labels)
    rows = np.full(len(asked), -1, np.int64)
    return Queries(vectors, codes, rows, _GIVEN, names=tuple(labels), items_untrained=untrained)


def encode_rows(
    encoder: Encoder, rows: Sequence[Row], progress: Progress, what: str = "encoding"
) -> NDArray[np.float32]:
    vectors = np.empty((len(rows), encoder.dimension), np.float32)
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        try:
            vectors[start : start + len(part)] = encode_batch(encoder, part)
        except DataError:
            blame(encoder, part)
            raise
        progress(what, start + len(part), len(rows))
    return vectors
