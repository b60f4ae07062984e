"""Prometheus metrics of one service. Labels are of bounded number: routes, not addresses; no texts, labels or ids.

With several workers each writes its values into files of `PROMETHEUS_MULTIPROC_DIR`, and any of them answers for all.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from copy import copy
from itertools import product
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from index.answer import Answer
from service.telemetry.counters import VARIABLE
from service.telemetry.logs import route_of

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
PROBABILITIES = tuple(step / 20 for step in range(1, 21))


class _Children(dict[str, Any]):
    """Those of a metric by their last label, each made when it is first counted and looked up once."""

    def __init__(self, metric: Counter | Histogram, *first: str) -> None:
        self._metric, self._first = metric, first

    def __missing__(self, last: str) -> Any:
        child = self[last] = self._metric.labels(*self._first, last)
        return child


class Metrics:
    """What the service counts. Each has its own registry, so that several can live in one process.

    What depends on the collection is counted under the name of one, `collection`; `named` is the same for another.
    """

    def __init__(self, collection: str = "default") -> None:
        # in several processes a value must not be in the answering registry too, or it would be counted twice
        registry = self.registry = CollectorRegistry()
        self._shared = VARIABLE in os.environ
        self.requests = Counter(
            "surematch_requests", "Requests answered", ("method", "route", "status"), registry=registry
        )
        self.of_worker = Gauge(
            "surematch_worker_requests",
            "Requests this process has answered; with several workers, one for each `pid` that lives",
            registry=registry,
            multiprocess_mode="liveall",
        )
        self.latency = Histogram(
            "surematch_request_seconds",
            "From a request's header to its answer",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "surematch_stage_seconds",
            "Parts of a search: queue, encode, search",
            ("stage",),
            buckets=SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "surematch_batch_queries", "Queries in one call", ("stage",), buckets=SIZES, registry=registry
        )
        self.pending = Gauge(
            "surematch_pending_queries", "Queries that wait or run", registry=registry, multiprocess_mode="livesum"
        )
        self.refused = Counter(
            "surematch_refused", "Searches, writes and jobs refused because too many waited", registry=registry
        )
        self.late = Counter("surematch_late", "Requests given up at their deadline", registry=registry)
        self.cache = Counter(
            "surematch_cache", "Texts looked up in the cache of vectors", ("found",), registry=registry
        )
        self.outcomes = Counter(
            "surematch_answers",
            "Answers by decision: match, no_match, uncalibrated",
            ("collection", "outcome"),
            registry=registry,
        )
        self.probability = Histogram(
            "surematch_match_probability",
            "1 - no_match of every calibrated answer; a shift against the calibration's own is drift",
            ("collection",),
            buckets=PROBABILITIES,
            registry=registry,
        )
        self.items = Gauge(
            "surematch_items",
            "Items that can be found",
            ("collection",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.degraded = Gauge(
            "surematch_degraded",
            "1 where not all that lies in the folder is served, or an older version; the log says why",
            ("collection",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.reloads = Counter(
            "surematch_reloads", "Reloads, by whether the new version serves", ("result",), registry=registry
        )
        self.drift = Gauge(
            "surematch_drift",
            "How far recent queries are from the calibration's own: PSI and KS of best cosine and background, NaN "
            "while there are too few; with several workers, of the one that answers",
            ("collection", "of", "measure"),
            registry=registry,
            multiprocess_mode="livemostrecent",  # a KS beside the limit of another worker says nothing
        )

        self._count_under(collection)

    def named(self, collection: str) -> Metrics:
        """The same counters, for another collection."""
        other = copy(self)
        other._count_under(collection)
        return other

    def _count_under(self, collection: str) -> None:
        self.collection = collection
        self._stages, self._outcomes = _Children(self.stages), _Children(self.outcomes, collection)
        self._probability = _Children(self.probability)

    def observe(self, answers: Iterable[Answer], queue: float, encode: float, search: float) -> None:
        """Seconds of one search request and what it was answered."""
        for stage, seconds in (("queue", queue), ("encode", encode), ("search", search)):
            if seconds or stage != "encode":  # vectors are not encoded
                self._stages[stage].observe(seconds)
        for answer in answers:
            if answer.no_match is None or answer.decision is None:
                self._outcomes["uncalibrated"].inc()
                continue
            matched = answer.decision.label is not None or answer.decision.id is not None
            self._outcomes["match" if matched else "no_match"].inc()
            self._probability[self.collection].observe(1 - answer.no_match)

    def drifted(self, report: dict[str, Any]) -> None:
        """`Collection.drift_report`. All are set each time: what another version or worker had does not stay."""
        for of, measure in product(("best_cosine", "background"), ("psi", "ks", "ks_limit")):
            self.drift.labels(self.collection, of, measure).set(report.get(of, {}).get(measure, math.nan))

    def text(self) -> bytes:
        """The exposition of all workers."""
        if not self._shared:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class RequestMetrics:
    """Counts and times every request by its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics
        self._of: dict[tuple[str, str, str, bool], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = "none"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        began = time.perf_counter()
        try:
            await self.app(scope, receive, noting)
        finally:
            requests, latency = self._counting(scope["method"], route_of(scope), status, "route" in scope)
            requests.inc()
            self.metrics.of_worker.inc()
            latency.observe(time.perf_counter() - began)

    def _counting(self, method: str, route: str, status: str, reached: bool) -> tuple[Counter, Histogram]:
        """Who is refused before the route is fast: that is no latency of it."""
        key = (method if method in _METHODS else "other", route, status, reached)
        if key not in self._of:
            latency = self.metrics.latency.labels(route if reached else "-")
            self._of[key] = self.metrics.requests.labels(*key[:3]), latency
        return self._of[key]


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
