"""What is known of each label before any query: where its items lie, and how close together.

    centroid(c)  = mean of the label's unit vectors, normalised
    cohesion(c)  = mean over the label's items of the cosine to their nearest fellow

A label of close wordings must be met closely; a broad one may be met from afar. One sharpness for all labels cannot
know that: with these two features the calibrator's likelihood gains more than from any other we tried (measured by
`make bench-calibration`). Labels with few items are pulled to the mean of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from index.errors import CollectionError

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_SAMPLE = 256
"""Items of one label whose cosines to one another are computed: the mean needs no more."""
_PRIOR = 5.0
"""Items that the mean over all labels counts for in a label's cohesion."""
_BLOCK = 1 << 15


@dataclass(frozen=True, slots=True)
class LabelProfile:
    """Centroids (L, d), unit or zero, and cohesion (L,) of the labels with codes 0 ... L-1."""

    centroids: Vectors
    cohesion: Floats
    sizes: Ints
    neutral: float

    @classmethod
    def of(cls, vectors: Vectors, codes: Ints, count: int, neutral: float | None = None) -> LabelProfile:
        """From unit vectors (n, d) and their codes (n,); codes from `count` up are unlabelled items and left out.

        `neutral` is the mean cohesion of all labels where these are only some of them.
        """
        labelled = np.flatnonzero(codes < count)
        sizes = np.bincount(codes[labelled], minlength=count)
        centroids = np.zeros((count, vectors.shape[1]), np.float32)
        order = labelled[np.argsort(codes[labelled], kind="stable")]
        ends = np.cumsum(sizes)
        mean = np.full(count, np.nan)
        for code in np.flatnonzero(sizes):
            own = vectors[order[ends[code] - sizes[code] : ends[code]]]
            total = own.sum(axis=0, dtype=np.float64)
            length = float(np.linalg.norm(total))
            centroids[code] = total / length if length > 0 else 0.0
            if len(own) > 1:
                some = _some(own)
                cosines = some @ some.T
                np.fill_diagonal(cosines, -np.inf)
                mean[code] = cosines.max(axis=1).mean()
        several = np.isfinite(mean)
        if neutral is None:
            neutral = float(mean[several].mean()) if several.any() else 0.0
        weight = np.where(several, sizes, 0)
        cohesion = (weight * np.where(several, mean, 0.0) + _PRIOR * neutral) / (weight + _PRIOR)
        return cls(centroids, cohesion, sizes, neutral)

    def features(self, queries: Vectors, query: Ints, codes: Ints, best: Floats) -> Floats:
        """(m, 2) for candidates with label `codes` (m,) of queries `query` (m,): cosine to the centroid, cohesion.

        An unlabelled item is its own centroid, so there the cosine is `best` (m,).
        """
        found = np.empty((len(codes), 2))
        found[:, 0], found[:, 1] = best, self.neutral
        labelled = (codes < len(self.cohesion)).nonzero()[0]
        found[labelled, 1] = self.cohesion[codes[labelled]]
        for start in range(0, len(labelled), _BLOCK):
            at = labelled[start : start + _BLOCK]
            asked = queries if len(queries) == 1 else queries[query[at]]
            found[at, 0] = np.einsum("ij,ij->i", asked, self.centroids[codes[at]])
        return found

    def extended(self, count: int) -> LabelProfile:
        """With labels that have no items yet after the others, `count` in all."""
        more = count - len(self.cohesion)
        return LabelProfile(
            np.concatenate([self.centroids, np.zeros((more, self.centroids.shape[1]), np.float32)]),
            np.concatenate([self.cohesion, np.full(more, self.neutral)]),
            np.concatenate([self.sizes, np.zeros(more, np.int64)]),
            self.neutral,
        )

    def replaced(self, codes: Ints, part: LabelProfile) -> LabelProfile:
        """With what `part` says of its labels, which are those with `codes` here."""
        centroids, cohesion, sizes = self.centroids.copy(), self.cohesion.copy(), self.sizes.copy()
        centroids[codes], cohesion[codes], sizes[codes] = part.centroids, part.cohesion, part.sizes
        return LabelProfile(centroids, cohesion, sizes, self.neutral)

    def only(self, kept: NDArray[np.bool_]) -> LabelProfile:
        """Of the labels `kept` (L,), in their order."""
        return LabelProfile(self.centroids[kept], self.cohesion[kept], self.sizes[kept], self.neutral)

    def dump(self) -> bytes:
        """As a safetensors file."""
        return save(
            {
                "centroids": self.centroids,
                "cohesion": self.cohesion,
                "sizes": self.sizes,
                "neutral": np.array([self.neutral]),
            }
        )

    @classmethod
    def load(cls, content: bytes, count: int) -> LabelProfile:
        """From `dump`'s bytes, whose checksum the caller has verified. Raises `CollectionError`."""
        try:
            stored = load(content)
            found = cls(stored["centroids"], stored["cohesion"], stored["sizes"], float(stored["neutral"][0]))
        except (SafetensorError, KeyError, IndexError, ValueError) as error:
            raise CollectionError(f"The label profile cannot be read ({error}).") from error
        if found.centroids.ndim != 2 or {len(found.centroids), len(found.cohesion), len(found.sizes)} != {count}:
            raise CollectionError(f"The label profile is of {len(found.cohesion)} labels, expected {count}.")
        if not (np.isfinite(found.centroids).all() and np.isfinite(found.cohesion).all()):
            raise CollectionError("The label profile holds NaN or infinity.")
        return found


def _some(vectors: Vectors) -> Vectors:
    """At most `_SAMPLE` of a label's vectors (n, d), those of the least hash.

    So every process takes the same of the same items, whichever writes it saw them come by, and a write exchanges few.
    """
    if len(vectors) <= _SAMPLE:
        return vectors
    multipliers = np.random.default_rng(0).integers(2**32, size=vectors.shape[1], dtype=np.uint32) | 1
    return vectors[np.argsort(vectors.view(np.uint32) @ multipliers, kind="stable")[:_SAMPLE]]
