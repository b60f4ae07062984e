"""A typed Python client of the service, sync and async: `pip install 'surematch[client]'`.

    with Client("http://127.0.0.1:8000", key="sm_...") as api:
        answer = api.search(["my card was stolen"], k=3, coverage=0.95).results[0]

Answers are the models of `service.schemas`, from which the OpenAPI document is made; a test holds every operation of
the document to a method here. Refusals raise `ServiceProblem`; "busy" is tried again after the time the service names.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

from index.answer import MapSpec
from index.calibration.conformal import CoverageFor
from index.errors import DataError, SettingsError
from service.calls import Call, Calls, R, ServiceProblem
from service.schemas.collection import (
    CalibrationReply,
    CollectionReply,
    CollectionsReply,
    HealthReply,
    LabelsReply,
    ReadyReply,
    ReloadReply,
    SnapshotReply,
    VersionReply,
    VersionsReply,
)
from service.schemas.embeddings import ModelsReply
from service.schemas.items import DeletedReply, FeedbackReply, ItemReply, WrittenReply
from service.schemas.jobs import JobReply, JobsReply
from service.schemas.search import SearchReply
from service.settings import NAME

__all__ = ["AsyncClient", "Call", "Calls", "Client", "ServiceProblem"]

MAX_WAIT = 30.0
"""Longest time, in seconds, that a Retry-After is followed."""


def _headers(key: str | None) -> dict[str, str]:
    """Raises `DataError` for what no header can hold, without repeating it."""
    if key and not (key.isascii() and key.isprintable()):
        raise DataError("The key holds characters that no key has. Copy it as `surematch keys add` printed it.")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _check(collection: str | None, retries: int) -> None:
    """Raises `SettingsError` for a name that no collection has, as it would be another address, and for no attempt."""
    if collection is not None and not re.fullmatch(NAME, collection):
        raise SettingsError(f"No collection is called {collection!r}. `collections()` lists their names.")
    if retries < 0:
        raise SettingsError(f"retries is {retries}, expected 0 or more.")


def _pause(response: httpx2.Response, attempts_left: int) -> float | None:
    """Seconds to wait before the next attempt, None when there shall be none."""
    after = response.headers.get("retry-after", "")
    if response.status_code != 503 or not attempts_left or not after.isdigit():
        return None
    return min(float(after), MAX_WAIT)


class Client:
    """Sync client of the default collection, or of the one named; safe from several threads.

        api = Client("http://127.0.0.1:8000")
        vectors = api.embeddings(["is it warm"], model=api.models().data[0].id)
        found = api.search_vectors(vectors, k=1)
        api.put_items([{"id": "a1", "text": "is it warm", "label": "temperature"}])
        api.feedback(api.search(["is it warm"]).query_ids[0], "temperature")
        api.close()

    `retries` attempts follow a 503 that names a time.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        collection: str | None = None,
        timeout: float = 30.0,
        retries: int = 2,
    ) -> None:
        _check(collection, retries)
        self._collection = collection
        self._http = httpx2.Client(base_url=url, headers=_headers(key), timeout=timeout)
        self._retries = retries

    def send(self, call: Call[R]) -> R:
        """Any call of `Calls`. Raises `ServiceProblem`, and httpx2's errors when the service cannot be reached."""
        for left in range(self._retries, -1, -1):
            response = self._http.request(call.method, call.of(self._collection), **call.arguments())
            pause = _pause(response, left)
            if pause is None:
                return call.read(response)
            time.sleep(pause)
        raise AssertionError("unreachable")

    def search(
        self,
        queries: Sequence[str | bytes],
        *,
        k: int = 10,
        map: MapSpec = "softmax",
        coverage: float | None = None,
        coverage_for: CoverageFor = "mixed",
        filter: dict[str, Any] | None = None,
        explain: bool = False,
    ) -> SearchReply:
        """`results[i]` answers `queries[i]`, a text or the bytes of a picture file; `filter` says which items may be
        shown, `explain` asks why."""
        call = Calls.search(
            queries, k=k, map=map, coverage=coverage, coverage_for=coverage_for, filter=filter, explain=explain
        )
        return self.send(call)

    def search_vectors(
        self,
        vectors: NDArray[np.floating],
        *,
        k: int = 10,
        map: MapSpec = "softmax",
        coverage: float | None = None,
        coverage_for: CoverageFor = "mixed",
    ) -> SearchReply:
        """`results[i]` answers the unit vector `vectors[i]` (n, d); sent as bytes."""
        return self.send(Calls.search_vectors(vectors, k=k, map=map, coverage=coverage, coverage_for=coverage_for))

    def embeddings(self, texts: Sequence[str], model: str) -> NDArray[np.float32]:
        """Unit vectors (n, d) float32 of the collection's encoder; `model` is a name from `models()`."""
        return np.array([entry.embedding for entry in self.send(Calls.embeddings(texts, model)).data], np.float32)

    def put_items(self, items: Sequence[dict[str, Any]]) -> WrittenReply:
        """Write all or none: dicts with `id`, `text`, `image` (the bytes of a picture file) or `vector` (an array or a
        list), and if you like `label` and `metadata`."""
        return self.send(Calls.put_items(items))

    def item(self, id: str) -> ItemReply:
        return self.send(Calls.item(id))

    def delete_item(self, id: str) -> DeletedReply:
        return self.send(Calls.delete_item(id))

    def delete_items(self, ids: Sequence[str]) -> DeletedReply:
        return self.send(Calls.delete_items(ids))

    def delete_where(self, filter: dict[str, Any]) -> DeletedReply:
        return self.send(Calls.delete_where(filter))

    def feedback(self, query_id: str, label: str | None) -> FeedbackReply:
        """What was right for a query of `SearchReply.query_ids`; None: nothing in the whole collection matches, which a
        query that was asked with a filter cannot tell (422)."""
        return self.send(Calls.feedback(query_id, label))

    def models(self) -> ModelsReply:
        return self.send(Calls.models())

    def collection(self) -> CollectionReply:
        return self.send(Calls.collection())

    def collections(self) -> CollectionsReply:
        """What the service serves; `Client(..., collection=name)` asks one of them."""
        return self.send(Calls.collections())

    def labels(self, contains: str = "") -> LabelsReply:
        """The labels that contain this text, in whatever case; at most 1,000 of them, and how many there are."""
        return self.send(Calls.labels(contains))

    def calibration(self) -> CalibrationReply:
        return self.send(Calls.calibration())

    def reload(self) -> ReloadReply:
        return self.send(Calls.reload())

    def snapshot(self) -> SnapshotReply:
        return self.send(Calls.snapshot())

    def recalibrate(self) -> VersionReply:
        """Fits the probabilities again with users' feedback; `change` says what that changed."""
        return self.send(Calls.recalibrate())

    def calibrations(self) -> VersionsReply:
        return self.send(Calls.calibrations())

    def use_calibration(self, id: str) -> VersionsReply:
        """Serves another of `calibrations()` from now on."""
        return self.send(Calls.use_calibration(id))

    def start_job(self, kind: str, settings: dict[str, Any]) -> JobReply:
        """Queues a job, "train", "index" or "recalibrate"; `job(id)` tells how far it is."""
        return self.send(Calls.start_job(kind, settings))

    def jobs(self) -> JobsReply:
        return self.send(Calls.jobs())

    def job(self, id: str) -> JobReply:
        return self.send(Calls.job(id))

    def cancel_job(self, id: str) -> JobReply:
        """Stops a job, of whose result nothing stays; one that has ended is deleted."""
        return self.send(Calls.cancel_job(id))

    def delete_job(self, id: str) -> JobReply:
        """Removes a job that has ended with its result and its log, and answers what it was; one that has not ended is
        cancelled, and deleted by the next call. Refused (409) while a collection is served from what it made, or
        another job takes it."""
        return self.send(Calls.delete_job(id))

    def promote_job(self, id: str, collection: str | None = None) -> JobReply:
        """Serves what a job made: a recalibration in place of the collection it is a copy of, anything else in place of
        the default one, or of the one named."""
        return self.send(Calls.promote_job(id, collection))

    def health(self) -> HealthReply:
        return self.send(Calls.health())

    def ready(self) -> ReadyReply:
        return self.send(Calls.ready())

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """Async client; every operation is a call of `Calls`.

        async with AsyncClient("http://127.0.0.1:8000") as api:
            answer = (await api.send(Calls.search(["is it warm"], k=3))).results[0]

    It is made of what `Client` is made of.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        collection: str | None = None,
        timeout: float = 30.0,
        retries: int = 2,
    ) -> None:
        _check(collection, retries)
        self._collection = collection
        self._http = httpx2.AsyncClient(base_url=url, headers=_headers(key), timeout=timeout)
        self._retries = retries

    async def send(self, call: Call[R]) -> R:
        """Any call of `Calls`. Raises `ServiceProblem`, and httpx2's errors when the service cannot be reached."""
        for left in range(self._retries, -1, -1):
            response = await self._http.request(call.method, call.of(self._collection), **call.arguments())
            pause = _pause(response, left)
            if pause is None:
                return call.read(response)
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def search(
        self,
        queries: Sequence[str | bytes],
        *,
        k: int = 10,
        map: MapSpec = "softmax",
        coverage: float | None = None,
        coverage_for: CoverageFor = "mixed",
        filter: dict[str, Any] | None = None,
        explain: bool = False,
    ) -> SearchReply:
        """`results[i]` answers `queries[i]`, a text or the bytes of a picture file; `filter` says which items may be
        shown, `explain` asks why."""
        call = Calls.search(
            queries, k=k, map=map, coverage=coverage, coverage_for=coverage_for, filter=filter, explain=explain
        )
        return await self.send(call)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
