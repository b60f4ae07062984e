"""Which engine, and how well it finds: the registry, the choice `auto`, and recall measured against exact search."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from index.engines import exact
from index.engines.engine import Engine, Rows, Vectors, check_vectors
from index.engines.faiss_approximate import FaissHNSW, FaissIVF, FaissIVFPQ, FaissSQ8
from index.engines.faiss_engine import FaissEngine
from index.engines.faiss_flat import FaissFlat
from index.engines.milvus_engine import MilvusEngine, address
from index.errors import CollectionError, SettingsError

FAISS: dict[str, type[FaissEngine]] = {
    engine.kind: engine for engine in (FaissFlat, FaissHNSW, FaissIVF, FaissIVFPQ, FaissSQ8)
}
ENGINES: dict[str, type[Engine]] = {**FAISS, MilvusEngine.kind: MilvusEngine}
"""Every engine by its name, which a snapshot's manifest carries."""
NAMES = ("auto", *ENGINES)
AUTO_FLAT = 50_000
"""Up to this many items `auto` searches exactly."""
TARGET = 0.99
"""Recall@10 below which an engine is tuned to look further, and `auto` takes another."""
_NEIGHBOURS = 10
_SAMPLE = 1_024
_ROUNDING = 1e-6
_ONE_SIDED_99 = 2.326


def engine_class(name: str) -> type[Engine]:
    """The engine a manifest names. Raises `CollectionError` for one that is not known here."""
    found = ENGINES.get(name.removeprefix("faiss-"))  # as the first snapshots called it
    if found is None:
        raise CollectionError(f"manifest.json: names the engine {name!r}, which is none of: {', '.join(ENGINES)}.")
    return found


def recall_warning(engine: Engine) -> list[str]:
    """What an answer of an engine that may miss items must say, or nothing: certificates do not hold for it."""
    if engine.exact:
        return []
    recall = engine.describe()["recall_at_10"]
    measured = "how many was not measured" if recall is None else f"it finds {recall:.1%} of the ten nearest (measured)"
    return [f"The engine {engine.kind} may miss items: {measured}. Answers are exact given what it found."]


def check_name(name: str) -> None:
    """Raises `SettingsError` for an engine that cannot be asked for."""
    if name not in NAMES:
        raise SettingsError(f"--engine {name}: there is none of this name. Use one of: {', '.join(NAMES)}.")
    if name == "milvus":
        address()


def make_engine(
    name: str,
    vectors: Vectors,
    rows: Rows,
    *,
    memory_budget: int | None = None,
    queries: Vectors | None = None,
    seed: int = 0,
) -> Engine:
    """Builds engine `name` of unit vectors (n, d) with ascending row numbers (n,), tuned until recall@10 >= `TARGET`.

    Recall is measured on `queries` (m, d), or on items of the gallery that look for the others; what counts is a lower
    99 % bound on either half of them. `auto` is exact up to `AUTO_FLAT` items; beyond, the first of ivf-pq, ivf, hnsw
    and sq8 that fits `memory_budget` bytes (half of this machine's memory unless given) and reaches the target; flat,
    or else the best of those measured, if none does. Raises `SettingsError` for an unknown name, or a budget that
    nothing fits.
    """
    check_name(name)
    if name == "flat" or (name == "auto" and not len(vectors)):
        return FaissFlat.build(vectors, rows)
    vectors = check_vectors(vectors, rows)
    sample = _Sample(vectors, queries, seed)
    if name != "auto":
        if name == MilvusEngine.kind:
            return _tuned(MilvusEngine.build(vectors, rows), sample)
        return _tuned(FAISS[name].build(vectors, rows), sample)
    return _auto(vectors, rows, _half_of_memory() if memory_budget is None else memory_budget, sample)


def _auto(vectors: Vectors, rows: Rows, budget: int, sample: _Sample) -> Engine:
    size, dimension = vectors.shape
    fits = [kind for kind in FAISS if FAISS[kind].memory(size, dimension) <= budget]
    if "flat" in fits and size <= AUTO_FLAT:
        return FaissFlat.build(vectors, rows)
    built: list[FaissEngine] = []
    for kind in ("ivf-pq", "ivf", "hnsw", "sq8", "flat"):
        if kind in fits:
            built.append(_tuned(FAISS[kind].build(vectors, rows), sample))
            found = sample.recall(built[-1])
            if found is not None and found.reached:
                return built[-1]
    if not built:
        least = min(engine.memory(size, dimension) for engine in FAISS.values())
        raise SettingsError(
            f"No engine holds {size} vectors of {dimension} dimensions in {budget / 1e6:,g} MB; the smallest needs "
            f"{least / 1e6:,g} MB. Give more memory, or use the engine milvus."
        )
    return max(built, key=lambda engine: engine.recall or 0.0)


Measured = TypeVar("Measured", FaissEngine, MilvusEngine)


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall measured on one half of the queries, and the lower of the 99 % bounds that the two halves give.

    The fastest of several parameters that seem to reach a target have been lucky; on new queries they fall short of it.
    """

    held_out: float
    bound: float

    @classmethod
    def of(cls, shares: NDArray[np.float64]) -> Recall:
        """From the share found for each of the queries, in any order that does not depend on it."""
        halves = (shares[::2], shares[1::2]) if len(shares) > 1 else (shares, shares)
        return cls(float(halves[1].mean()), min(map(_lower_bound, halves)))

    @property
    def reached(self) -> bool:
        return self.bound >= TARGET


def _lower_bound(shares: NDArray[np.float64]) -> float:
    error = shares.std(ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else 0.0
    return float(shares.mean() - _ONE_SIDED_99 * error)


class _Sample:
    """Queries whose true nearest neighbours are known: given ones, or items of the gallery that look for the others."""

    def __init__(self, vectors: Vectors, queries: Vectors | None, seed: int) -> None:
        random = np.random.default_rng(seed)
        self._vectors = vectors
        if queries is not None and len(queries):
            self._queries = queries[random.permutation(len(queries))[:_SAMPLE]]
            self._itself = np.full(len(self._queries), -1)
        else:
            self._itself = random.permutation(len(vectors))[:_SAMPLE]
            self._queries = vectors[self._itself]
        # also where one of the ten is the item itself: an engine that looks again at a multiple of k candidates would
        # look at more of them for eleven than a query of ten gets. Nine others are wanted then, whether or not the item
        # is among the first ten: of many copies it need not be
        self._k = _NEIGHBOURS
        self._most = _NEIGHBOURS - int(queries is None or not len(queries))
        scores, positions = exact.top(self._queries, vectors, self._k)
        others = self._others(positions)
        self._wanted = others.sum(axis=1)
        self._worst = np.where(others, scores, np.inf).min(axis=1, initial=np.inf)

    def recall(self, engine: Engine) -> Recall | None:
        """Share of the true neighbours found, those as near as the last of them included; None: nothing to find."""
        if not self._wanted.sum():
            return None
        _, rows = engine.search(self._queries, self._k)
        positions = np.searchsorted(engine.rows, rows)
        cosines = np.einsum("nd,nkd->nk", self._queries, self._vectors[positions])
        found = (self._others(positions) & (cosines >= self._worst[:, None] - _ROUNDING)).sum(axis=1)
        return Recall.of(np.minimum(found, self._wanted) / np.maximum(self._wanted, 1))

    def _others(self, positions: Rows) -> NDArray[np.bool_]:
        """Which of the positions (n, k) count: all but the one that asks, and no more than are wanted."""
        others = positions != self._itself[:, None]
        counted: NDArray[np.bool_] = others & (np.cumsum(others, axis=1) <= self._most)
        return counted


def _tuned(engine: Measured, sample: _Sample) -> Measured:
    """The engine with the fastest of its parameters that reach the target, or the most thorough ones."""
    if engine.exact:
        return engine
    for parameters in engine.steps or ({},):
        engine = engine.with_parameters(parameters, None)
        recall = sample.recall(engine)
        engine = engine.with_parameters(parameters, None if recall is None else recall.held_out)
        if recall is None or recall.reached:
            break
    return engine


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
