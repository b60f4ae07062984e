"""Verification: are two items of one class? ROC, equal error rate and TAR at fixed FAR over all pairs of vectors.

Every pair is compared, but none is kept: cosines are counted in bins of 1/16384, so memory does not grow with the
number of pairs, and every rate is that of the cosines rounded down to a bin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.metrics import LEAST_ERRORS, RATES
from training.measures.retrieval import Classes, Vectors, blocks

BINS = 2**15
"""Bins of the cosines from -1 to 1."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Counts of pairs by cosine, from which every rate follows.

    Attributes:
        genuine, impostor: (BINS,) pairs of one class and of two, by bin of their cosine, ascending.
    """

    genuine: NDArray[np.int64]
    impostor: NDArray[np.int64]

    @property
    def pairs(self) -> tuple[int, int]:
        """How many genuine and impostor pairs."""
        return int(self.genuine.sum()), int(self.impostor.sum())

    def roc(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(BINS + 1,) thresholds, descending, with the FAR and the TAR of accepting cosines at or above each."""
        thresholds = np.linspace(1, -1, BINS + 1)
        genuine, impostor = self.pairs
        accepted = [np.concatenate([[0], np.cumsum(counts[::-1])]) for counts in (self.impostor, self.genuine)]
        return thresholds, accepted[0] / max(impostor, 1), accepted[1] / max(genuine, 1)

    def eer(self) -> float:
        """The error rate where as many impostors are accepted as genuine pairs are refused, by linear interpolation."""
        _, far, tar = self.roc()
        gap = far - (1 - tar)
        after = int(np.argmax(gap >= 0))
        before = max(after - 1, 0)
        span = gap[after] - gap[before]
        part = -gap[before] / span if span > 0 else 0.0
        return float(far[before] + part * (far[after] - far[before]))

    def tar_at(self, far: float) -> dict[str, Any]:
        """The largest true accept rate whose false accept rate is at most `far`, its threshold, and its support.

        `supported` is False where `far` of the impostor pairs would be fewer than `LEAST_ERRORS` errors; then `tar` and
        `threshold` are None: so few pairs cannot tell.
        """
        impostors = self.pairs[1]
        supported = far * impostors >= LEAST_ERRORS * (1 - 1e-9)
        if not supported:
            needed = int(np.ceil(LEAST_ERRORS / far))
            return {"far": far, "tar": None, "threshold": None, "supported": False, "pairs_needed": needed}
        thresholds, rates, tar = self.roc()
        at = int(np.flatnonzero(rates <= far)[-1])
        return {"far": far, "tar": float(tar[at]), "threshold": float(thresholds[at]), "supported": True}

    def curve(self, points: int = 80) -> list[tuple[float, float]]:
        """(FAR, TAR) at rates spread evenly over the logarithm, from the least that `tar_at` supports up to 1.

        None of it where that is no rate below 1: of fewer impostor pairs than `LEAST_ERRORS` there is no curve.
        """
        _, far, tar = self.roc()
        least = max(1e-6, LEAST_ERRORS / max(self.pairs[1], 1))
        if least >= 1:
            return []
        wanted = np.geomspace(least, 1, points)
        return [(float(rate), float(tar[int(np.flatnonzero(far <= rate)[-1])])) for rate in wanted]

    def as_json(self) -> dict[str, Any]:
        genuine, impostor = self.pairs
        return {
            "genuine_pairs": genuine,
            "impostor_pairs": impostor,
            "eer": self.eer(),
            "tar_at_far": [self.tar_at(far) for far in RATES],
            "roc": self.curve(),
        }


def verification(vectors: Vectors, classes: Classes) -> Verification | None:
    """All pairs of `vectors`, each once; None unless there are pairs of one class and of two."""
    counts = np.zeros((2, BINS), dtype=np.int64)
    for block in blocks(len(vectors), len(vectors)):
        scores = vectors[block] @ vectors[block.start :].T
        later = np.arange(scores.shape[1]) > np.arange(len(scores))[:, None]
        bins = np.clip(((scores[later] + 1) * (BINS / 2)).astype(np.int64), 0, BINS - 1)
        same = (classes[block, None] == classes[None, block.start :])[later]
        counts[1] += np.bincount(bins[same], minlength=BINS)
        counts[0] += np.bincount(bins[~same], minlength=BINS)
    if not counts.sum(axis=1).all():
        return None
    return Verification(genuine=counts[1], impostor=counts[0])
