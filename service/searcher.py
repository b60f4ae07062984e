"""Searches off the event loop: one thread encodes, a small pool searches, and only so many may wait.

One encoder thread, because concurrent forward passes fight over the same cores; a bound on what waits, because an
unbounded queue turns overload into time-outs for everybody (503 with Retry-After tells the caller instead).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from index.answer import Answer
from index.collection import Collection
from index.errors import DataError
from service.problems import Problem
from service.schemas import SearchRequest, TextQuery, VectorQuery


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds: waiting for a thread, encoding, searching with calibration, and all of it."""

    queue_ms: float
    encode_ms: float
    search_ms: float
    total_ms: float


class Searcher:
    """Answers requests on one collection; `close` waits for those under way."""

    def __init__(self, collection: Collection, *, threads: int, max_pending: int) -> None:
        self.collection = collection
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._searching = ThreadPoolExecutor(threads, thread_name_prefix="search")
        self._max_pending = max_pending
        self._pending = 0

    async def search(self, request: SearchRequest) -> tuple[list[Answer], Timings]:
        """The answers in the order of the queries.

        Raises `Problem` "busy" when `max_pending` requests wait or run already, `DataError` for a vector of another
        dimension, `SurematchError` from the collection.
        """
        loop = asyncio.get_running_loop()
        began = perf_counter()
        with self._place():
            vectors, encoding = await loop.run_in_executor(self._encoding, self._vectors, request)
            answers, searching = await loop.run_in_executor(self._searching, self._answers, request, vectors)
        total = perf_counter() - began
        waiting = max(total - encoding - searching, 0.0)
        return answers, Timings(*(round(seconds * 1000, 3) for seconds in (waiting, encoding, searching, total)))

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._pending >= self._max_pending:
            raise Problem("busy", f"{self._pending} searches wait or run already.", headers={"Retry-After": "1"})
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    def _vectors(self, request: SearchRequest) -> tuple[NDArray[np.float32], float]:
        """The queries' vectors, (n, d) float32, and the seconds encoding took."""
        began = perf_counter()
        dimension = self.collection.encoder.dimension
        vectors = np.empty((len(request.queries), dimension), np.float32)
        texts: dict[int, str] = {}
        for at, query in enumerate(request.queries):
            if isinstance(query, TextQuery):
                texts[at] = query.text
            elif isinstance(query, VectorQuery):
                if len(query.vector) != dimension:
                    got = len(query.vector)
                    raise DataError(
                        f"/queries/{at}/vector: got {got} numbers, expected {dimension}, the dimension of model "
                        f"{self.collection.model_id}. Make the vector with that model, or ask with a text."
                    )
                with np.errstate(over="ignore"):  # a float64 beyond float32 is refused by the collection as not finite
                    vectors[at] = query.vector
        if texts:
            vectors[list(texts)] = self.collection.encoder.encode(list(texts.values()))
        return vectors, perf_counter() - began

    def _answers(self, request: SearchRequest, vectors: NDArray[np.float32]) -> tuple[list[Answer], float]:
        began = perf_counter()
        answers = self.collection.search_vectors(vectors, k=request.k, map=request.map_spec, coverage=request.coverage)
        return answers, perf_counter() - began

    def close(self) -> None:
        self._encoding.shutdown()
        self._searching.shutdown()
