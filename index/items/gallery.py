"""Which label each live item carries, and what is known of the labels; immutable, followed write by write.

The profile of a label that a write touches is computed again from the label's items. Two things wait for compaction:
the mean over all labels (`LabelProfile.neutral`), and labels of more than `LARGE` items, which one write hardly moves.
A gallery that had up to `SMALL` items when it was compacted is computed whole every time; by what it was then, so that
who follows many writes at once comes to the same as who follows each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from index.data.label import earlier_spellings, is_plain, plain_label
from index.errors import CollectionError
from index.items.profile import LabelProfile
from index.items.store import Changes

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]
SMALL = 2_000
LARGE = 20_000

VectorsOf = Callable[[Iterable[int]], tuple[Ints, Vectors]]
"""Rows and vectors of those of the rows asked for that the store holds, see `ItemStore.vectors_of`."""


@dataclass(frozen=True)
class Gallery:
    """Labels of the live rows. Codes below `len(names)` are labels; an unlabelled row has a code of its own.

    `names` are sorted in a gallery built whole; labels that came since stand behind them, in the order they came.
    `odd` are the names that would be spelled otherwise today (`index.data.label`): an earlier version wrote them.
    """

    rows: Ints
    codes: Ints
    names: list[str]
    profile: LabelProfile
    odd: frozenset[str] = frozenset()

    @classmethod
    def of(cls, rows: Ints, labels: Sequence[str | None], vectors: Vectors | bytes) -> Gallery:
        """From ascending row numbers, their labels, and their vectors (n, d) or the profile stored of them (bytes).

        Raises `CollectionError` for a stored profile that does not belong to these labels.
        """
        names = sorted({label for label in labels if label is not None})
        code = {name: at for at, name in enumerate(names)}
        found = [len(names) + at if label is None else code[label] for at, label in enumerate(labels)]
        codes = np.array(found, np.int64).reshape(-1)
        if isinstance(vectors, bytes):
            profile = LabelProfile.load(vectors, len(names))
        else:
            profile = LabelProfile.of(vectors, codes, len(names))
        return cls(rows, codes, names, profile, _odd(names))

    def after(self, changes: Changes, vectors_of: VectorsOf, compacted: int) -> Gallery:
        """The gallery after writes; it had so many items when it was `compacted`.

        Raises `CollectionError` when the store no longer holds a label's items.
        """
        kept = np.ones(len(self.rows), np.bool_)
        kept[self._at(changes.died)] = False
        code = {name: at for at, name in enumerate(self.names)}
        for label in changes.labels:
            if label is not None:
                code.setdefault(label, len(code))
        born = np.array([-1 if label is None else code[label] for label in changes.labels], np.int64).reshape(-1)
        before = np.where(self.codes < len(self.names), self.codes, -1)
        touched = np.union1d(before[~kept], born)
        rows, codes = np.concatenate([self.rows[kept], changes.born]), np.concatenate([before[kept], born])
        profile = self.profile.extended(len(code))
        profile = _followed(profile, rows, codes, touched[touched >= 0], vectors_of, whole=compacted <= SMALL)
        names, codes, profile = _without_empty(list(code), codes, profile)
        codes = np.where(codes < 0, len(names) + np.arange(len(codes)), codes)
        odd = self.odd | _odd(label for label in changes.labels if label is not None)
        return Gallery(rows, codes, names, profile, odd.intersection(names) if odd else odd)

    def _at(self, rows: Ints) -> Ints:
        """Positions of those of `rows` that are here."""
        at = np.searchsorted(self.rows, rows)
        at, rows = at[at < len(self.rows)], rows[at < len(self.rows)]
        found: Ints = at[self.rows[at] == rows]
        return found

    def codes_of(self, rows: Ints) -> Ints:
        """Label codes of row numbers, any shape."""
        if self._whole:  # nothing to search where no row is missing
            found: Ints = self.codes.take(rows - self.rows[0], mode="clip")  # -1: no row, as below
            return found
        return self.codes[np.searchsorted(self.rows, rows)]

    @cached_property
    def _whole(self) -> bool:
        return bool(len(self.rows)) and int(self.rows[-1] - self.rows[0]) == len(self.rows) - 1

    def encode_labels(self, labels: Sequence[str | None]) -> Ints:
        """Codes of labels, -1 for one that is not in the gallery under this or another spelling."""
        code = {name: at for at, name in enumerate(self.names)}
        codes = [
            -1 if label is None else code[label] if label in code else code.get(self.spelled(label), -1)
            for label in labels
        ]
        return np.array(codes, np.int64).reshape(-1)

    def spelled(self, label: str) -> str:
        """The label as this gallery has it, or would keep it."""
        plain = plain_label(label)
        return self._earlier.get(plain, plain)

    def has_label(self, label: str) -> bool:
        """Whether some item carries it, however it is spelled. Looks through all names once, at the first call."""
        return self.spelled(label) in self._known

    @cached_property
    def _earlier(self) -> dict[str, str]:
        return earlier_spellings(self._known, self.odd) if self.odd else {}

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def label_count(self) -> int:
        """Distinct identities: labels (each has an item), and unlabelled items."""
        return len(self.names) + int(np.count_nonzero(self.codes >= len(self.names)))

    @cached_property
    def largest(self) -> int:
        """Items of the most frequent label."""
        return int(np.bincount(self.codes).max(initial=0))


def _followed(
    profile: LabelProfile, rows: Ints, codes: Ints, touched: Ints, vectors_of: VectorsOf, *, whole: bool
) -> LabelProfile:
    sizes = np.bincount(codes[codes >= 0], minlength=len(profile.sizes))
    again = np.arange(len(sizes)) if whole else touched[sizes[touched] <= LARGE]
    items = np.flatnonzero(np.isin(codes, again))
    found, vectors = vectors_of(rows[items].tolist())
    if len(found) != len(items):
        raise CollectionError("Items of an older state are gone from the store. Open the collection again.")
    part = LabelProfile.of(
        vectors, np.searchsorted(again, codes[items]), len(again), neutral=None if whole else profile.neutral
    )
    if whole:
        return part
    profile = profile.replaced(again, part)
    return LabelProfile(profile.centroids, profile.cohesion, sizes, profile.neutral)


def _without_empty(names: list[str], codes: Ints, profile: LabelProfile) -> tuple[list[str], Ints, LabelProfile]:
    """Without the labels whose last item is gone."""
    alive = profile.sizes > 0
    if alive.all():
        return names, codes, profile
    names = [name for name, lives in zip(names, alive, strict=True) if lives]
    renumbered = np.where(codes < 0, -1, (np.cumsum(alive) - 1)[codes])
    return names, renumbered, profile.only(alive)


def _odd(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if not is_plain(name))
