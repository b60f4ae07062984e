"""Searches off the event loop: one thread encodes, a few lanes search, both in micro-batches over all requests.

One encoder thread, because concurrent forward passes fight over the same cores; one search lane for an exact engine,
whose matrix products use all cores themselves. What takes a few milliseconds at most is done in the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from index.answer import Answer
from index.collection import Collection
from index.encoders.image_encoder import image_encoder
from index.encoders.text_encoders import StaticEncoder
from index.engines.engine import SMALL
from index.errors import DataError, SurematchError
from index.search.asked import Asked
from index.stages import measured
from service.problems import Fault, Problem
from service.schemas.queries import Base64Query, ImageQuery, TextQuery, VectorQuery
from service.schemas.search import SearchRequest
from service.serving.batching import Admission, Batcher
from service.serving.cache import VectorCache
from service.settings import ServeSettings
from service.telemetry.metrics import Metrics

Vectors = NDArray[np.float32]
MAX_BATCH = 256
PICTURES = 16
"""Pictures encoded together; those of one request go one after the other, so that many callers take turns."""

QUICK_QUERIES, QUICK_CHARACTERS = 32, 10_000
QUICK_SECONDS, SHORT_CHARACTERS = 0.005, 200


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds: waiting for a thread, encoding, searching with calibration, and all of it."""

    queue_ms: float
    encode_ms: float
    search_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class Found:
    """Answers in the order of the queries' vectors (n, d), and the state all of them come from."""

    answers: list[Answer]
    vectors: Vectors
    snapshot: str
    calibration_id: str | None
    sequence: int
    seconds: float
    calibrating: float
    """Of `seconds` the part that made probabilities of hits."""


@dataclass(frozen=True, slots=True)
class _Job:
    vectors: Vectors
    request: SearchRequest


class Searcher:
    """Answers requests on one collection; `close` waits for those under way."""

    def __init__(self, collection: Collection, settings: ServeSettings, metrics: Metrics) -> None:
        self.collection = collection
        self.metrics = metrics
        self.cache = VectorCache(settings.cache_bytes)
        self._deadline = settings.deadline_seconds
        self._most_characters = settings.max_answer_chars
        self._places = Admission(settings.max_pending, "queries", metrics.refused.inc)
        self._took = float("inf")
        self._encoding: Batcher[list[str], tuple[Vectors, float]] = Batcher(
            self._encode,
            name="encode",
            max_batch=MAX_BATCH,
            quick=_encoded_soon if isinstance(collection.encoder, StaticEncoder) else self._one_encoded_soon,
            observe=metrics.batches.labels("encode").observe,
        )
        self._picturing: Batcher[bytes, tuple[Vectors, float]] = Batcher(
            self._encode_pictures, name="picture", max_batch=PICTURES, observe=metrics.batches.labels("encode").observe
        )
        self._searching: Batcher[_Job, Found] = Batcher(
            self._search,
            name="search",
            lanes=1 if collection.engine.exact else settings.search_threads,
            max_batch=MAX_BATCH,
            quick=self._found_soon,
            linger=collection.engine.exact,  # a matrix product costs what reading the gallery costs
            observe=metrics.batches.labels("search").observe,
        )

    async def search(
        self, request: SearchRequest, vectors: Vectors | None = None, *, alone: bool = False
    ) -> tuple[Found, Timings]:
        """The answers in the order of the queries, or of `vectors` (n, d) when these are given instead.

        `alone`: no other request has come, so there is nothing to make a batch with.
        Raises `Problem` "busy" when too many queries wait or run already and "too-slow" at the deadline, `DataError`
        for a vector of another dimension, `SurematchError` from the collection.
        """
        began = perf_counter()
        size = len(request.queries) if vectors is None else len(vectors)
        encoding = 0.0
        async with self._place(size):
            if vectors is None:
                vectors, encoding = await self._vectors(request, alone)
            found = await self._searching.submit(_Job(vectors, request), size, alone=alone)
        total = perf_counter() - began
        waiting = max(total - encoding - found.seconds, 0.0)
        self.metrics.observe(found.answers, waiting, encoding, found.seconds)
        return found, Timings(*(round(seconds * 1000, 3) for seconds in (waiting, encoding, found.seconds, total)))

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors of texts, (n, d) float32. Raises as `search` does."""
        async with self._place(len(texts)):
            return (await self._encoded(texts))[0]

    def _place(self, size: int) -> _Place:
        return _Place(self._places, size, self._deadline, self.metrics)

    async def _vectors(self, request: SearchRequest, alone: bool) -> tuple[Vectors, float]:
        """The queries' vectors, (n, d) float32, and the seconds encoding took."""
        vectors = np.empty((len(request.queries), self.collection.encoder.dimension), np.float32)
        texts: dict[int, str] = {}
        pictures: dict[int, bytes] = {}
        for at, query in enumerate(request.queries):
            if isinstance(query, TextQuery):
                texts[at] = query.text
            elif isinstance(query, VectorQuery):
                self._check_dimension(at, "vector", len(query.vector))
                with np.errstate(over="ignore"):  # a float64 beyond float32 is refused by the collection as not finite
                    vectors[at] = query.vector
            elif isinstance(query, Base64Query):
                vector = query.numbers()
                self._check_dimension(at, "vector_base64", len(vector))
                vectors[at] = vector
            elif isinstance(query, ImageQuery):
                pictures[at] = query.content()
        seconds = 0.0
        for at, picture in pictures.items():
            vectors[at], spent = await self._pictured(at, picture)
            seconds += spent
        if texts:
            vectors[list(texts)], seconds = await self._encoded(list(texts.values()), alone)
        return vectors, seconds

    async def _pictured(self, at: int, picture: bytes) -> tuple[Vectors, float]:
        try:
            return await self._picturing.submit(picture)
        except DataError as error:
            where = f"/queries/{at}/image"
            raise Problem("invalid-request", f"{where}: {error}", [Fault(where, str(error))]) from error

    def _encode_pictures(self, pictures: list[bytes]) -> list[tuple[Vectors, float] | Exception]:
        began = perf_counter()
        try:
            made = image_encoder(self.collection.encoder).encode_images(pictures)
        except DataError as error:  # a picture that cannot be decoded must not fail its neighbours
            return [error] if len(pictures) == 1 else [self._encode_pictures([one])[0] for one in pictures]
        seconds = perf_counter() - began
        return [(vector, seconds) for vector in made]

    def _check_dimension(self, at: int, member: str, got: int) -> None:
        expected = self.collection.encoder.dimension
        if got != expected:
            raise DataError(
                f"/queries/{at}/{member}: got {got} numbers, expected {expected}, the dimension of model "
                f"{self.collection.model_id}. Make the vector with that model, or ask with a text."
            )

    async def _encoded(self, texts: Sequence[str], alone: bool = False) -> tuple[Vectors, float]:
        known = {text: vector for text in texts if (vector := self.cache.get(text)) is not None}
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        for found, count in (("yes", len(texts) - len(missing)), ("no", len(missing))):
            if count:
                self.metrics.cache.labels(found).inc(count)
        seconds = 0.0
        if missing:
            made, seconds = await self._encoding.submit(missing, len(missing), alone=alone)
            for text, vector in zip(missing, made, strict=True):
                known[text] = vector
                self.cache.put(text, vector)
        return np.stack([known[text] for text in texts]), seconds

    def _encode(self, jobs: list[list[str]]) -> list[tuple[Vectors, float] | Exception]:
        began = perf_counter()
        try:
            made = self.collection.encoder.encode([text for texts in jobs for text in texts])
        except DataError as error:  # a text in which the encoder finds nothing must not fail its neighbours
            return [error] if len(jobs) == 1 else [self._encode([texts])[0] for texts in jobs]
        seconds = perf_counter() - began
        if _short(jobs):
            self._took = seconds
        ends = np.cumsum([len(texts) for texts in jobs])[:-1]
        return [(vectors, seconds) for vectors in np.split(made, ends)]

    def _one_encoded_soon(self, jobs: list[list[str]]) -> bool:
        """A short text alone, when the last such one took no longer than `QUICK_SECONDS`: a small network, an idle
        service."""
        return self._took <= QUICK_SECONDS and _short(jobs)

    def _found_soon(self, jobs: list[_Job]) -> bool:
        queries = sum(len(job.vectors) for job in jobs)
        state = self.collection.state
        quick = state.engine.quick or len(state) * state.engine.dimension <= SMALL
        return quick and queries <= QUICK_QUERIES and all(job.request.filter is None for job in jobs)

    def _search(self, jobs: list[_Job]) -> list[Found | Exception]:
        """Jobs that ask alike are one call to the collection."""
        results: list[Found | Exception] = [RuntimeError("unanswered")] * len(jobs)
        alike: dict[str, list[int]] = {}
        for at, job in enumerate(jobs):
            alike.setdefault(job.request.how(), []).append(at)
        for group in alike.values():
            for at, result in zip(group, self._ask([jobs[at] for at in group]), strict=True):
                results[at] = result
        return results

    def _ask(self, jobs: list[_Job]) -> list[Found | Exception]:
        began = perf_counter()
        asked = jobs[0].request
        vectors = np.concatenate([job.vectors for job in jobs])
        try:
            how = Asked.checked(
                asked.k,
                asked.map_spec,
                asked.coverage,
                asked.coverage_for,
                asked.filter,
                asked.explain,
                self._most_characters,
            )
            with measured() as stages:
                answers, state = self.collection.answered(vectors, how)
        except SurematchError as error:
            return [error] if len(jobs) == 1 else [self._ask([job])[0] for job in jobs]
        seconds = perf_counter() - began
        calibration = state.calibration_id if state.uncalibrated() is None else None
        found: list[Found | Exception] = []
        start = 0
        for job in jobs:
            end = start + len(job.vectors)
            found.append(
                Found(
                    answers[start:end],
                    job.vectors,
                    state.snapshot_id,
                    calibration,
                    state.sequence,
                    seconds,
                    stages.get("calibrate", 0.0),
                )
            )
            start = end
        return found

    def close(self) -> None:
        self._encoding.close()
        self._picturing.close()
        self._searching.close()


def _encoded_soon(jobs: list[list[str]]) -> bool:
    return sum(len(text) for texts in jobs for text in texts) <= QUICK_CHARACTERS


def _short(jobs: list[list[str]]) -> bool:
    return len(jobs) == 1 and len(jobs[0]) == 1 and len(jobs[0][0]) <= SHORT_CHARACTERS


class _Place:
    """A place among the pending queries, with a deadline: `async with`."""

    def __init__(self, places: Admission, size: int, deadline: float, metrics: Metrics) -> None:
        self.places, self.size, self.metrics = places, size, metrics
        self._timeout = asyncio.timeout(deadline)

    async def __aenter__(self) -> None:
        self.places.enter(self.size)
        self.metrics.pending.set(self.places.pending)
        await self._timeout.__aenter__()

    async def __aexit__(self, *raised: object) -> None:
        self.places.leave(self.size)
        self.metrics.pending.set(self.places.pending)
        try:
            await self._timeout.__aexit__(*raised)  # type: ignore[arg-type]
        except TimeoutError:
            self.metrics.late.inc()
            raise Problem("too-slow", "The deadline passed.", headers={"Retry-After": "1"}) from None
