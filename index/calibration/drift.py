"""Are the queries in use still like those the calibration was made with? Watched on two numbers, cheap and unlabelled.

Of each query the best cosine and the background (`index.calibration.evidence`) are remembered, the last `WINDOW` of
them, and compared with the calibration's own sample:
    PSI = sum over the sample's tenths of (now - then) log(now / then)      (0.1: look; 0.25: it has changed)
    KS  = the largest distance of the two distribution functions, against its 99 % bound for samples of these sizes
Neither says that the probabilities are wrong, only that the promise was made about other queries.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.calibration.evidence import Floats

WINDOW = 5000
LEAST = 100
"""Queries below which nothing is said."""
LOOK, CHANGED = 0.1, 0.25
_TENTHS = 10
_KEPT = 1001
_KS_99 = 1.628
"""Smirnov's factor at 1 %."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The calibration's sample: quantiles at equal steps of `best` and `background`, and how many
    equal queries it is worth: few unknown ones may weigh as much as many known ones."""

    best: Floats
    background: Floats
    queries: int

    @classmethod
    def of(cls, best: Floats, background: Floats, weight: Floats, queries: int) -> Reference:
        """From the calibration's examples (n,) and their weights."""
        return cls(_quantiles(best, weight), _quantiles(background, weight), queries)

    def to_json(self) -> dict[str, Any]:
        return {"best": self.best.tolist(), "background": self.background.tolist(), "queries": self.queries}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Reference:
        """Raises ValueError, KeyError or TypeError for a record that is none."""
        best, background = (np.array(value[name], np.float64) for name in ("best", "background"))
        found = cls(best, background, int(value["queries"]))
        for sample in (found.best, found.background):
            if sample.ndim != 1 or not len(sample) or not np.isfinite(sample).all() or (np.diff(sample) < 0).any():
                raise ValueError("the reference of the drift is no list of rising numbers")
        return found


class Drift:
    """Remembers the last queries asked under one calibration. Safe from several threads."""

    def __init__(self, window: int = WINDOW) -> None:
        self._seen = np.empty((window, 2))
        self._count = 0
        self._of: object = None
        self._lock = threading.Lock()

    def observe(self, best: NDArray[np.floating], background: Floats, calibration: object) -> None:
        """Best cosines and backgrounds of queries, (n,) each; another calibration begins anew."""
        size = len(self._seen)
        best, background = best[-size:], background[-size:]
        with self._lock:
            if calibration is not self._of:
                self._of, self._count = calibration, 0
            at = np.arange(self._count, self._count + len(best)) % size
            self._seen[at, 0], self._seen[at, 1] = best, background
            self._count += len(best)

    def forget(self) -> None:
        """Begins anew: what was asked until now was no user's query."""
        with self._lock:
            self._count = 0

    def report(self, reference: Reference | None, calibration: object) -> dict[str, Any]:
        """PSI and KS of both numbers against the sample of the calibration in use, and a verdict in words.

        `verdict`: "unknown" (too few queries, or a calibration without a sample), "none", "some" or "much".
        """
        with self._lock:
            seen = self._seen[: self._count if calibration is self._of else 0].copy()
        if reference is None or len(seen) < LEAST:
            return {"queries": len(seen), "verdict": "unknown"}
        found = {
            name: _compare(now, then, reference.queries)
            for name, now, then in (
                ("best_cosine", seen[:, 0], reference.best),
                ("background", seen[:, 1], reference.background),
            )
        }
        # in small samples PSI is large by chance, so the KS bound must be crossed as well
        worst = max((one["psi"] for one in found.values() if one["ks"] > one["ks_limit"]), default=0.0)
        verdict = "none" if worst < LOOK else "some" if worst < CHANGED else "much"
        return {"queries": len(seen), **found, "verdict": verdict}


def _compare(now: Floats, then: Floats, queries: int) -> dict[str, float]:
    edges = np.unique(np.quantile(then, np.arange(1, _TENTHS) / _TENTHS))
    shares = [
        (np.bincount(np.searchsorted(edges, sample, side="right"), minlength=len(edges) + 1) + 0.5)
        / (len(sample) + 0.5 * (len(edges) + 1))
        for sample in (now, then)
    ]
    at = np.sort(np.concatenate([now, then]))
    below = [np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (now, then)]
    return {
        "psi": float(np.sum((shares[0] - shares[1]) * np.log(shares[0] / shares[1]))),
        "ks": float(np.abs(below[0] - below[1]).max()),
        "ks_limit": float(_KS_99 * np.sqrt(1 / len(now) + 1 / max(queries, 1))),
    }


def _quantiles(values: Floats, weight: Floats) -> Floats:
    order = np.argsort(values, kind="stable")
    share = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
    found: Floats = np.interp((np.arange(_KEPT) + 0.5) / _KEPT, share, values[order])
    return found
