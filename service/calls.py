"""The operations of the API as plain values: what is sent, and the model of the answer. `service.client` sends them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from index.answer import MapSpec
from index.calibration.conformal import CoverageFor
from index.errors import DataError, SurematchError
from index.search.asked import listed
from service.by_name import ALONE, BELOW
from service.schemas.base import ProblemReply
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
from service.schemas.embeddings import EmbeddingsReply, ModelsReply
from service.schemas.items import DeletedReply, FeedbackReply, ItemReply, WrittenReply
from service.schemas.jobs import JobReply, JobsReply
from service.schemas.search import SearchReply

R = TypeVar("R", bound=BaseModel)


class ServiceProblem(SurematchError):
    """The service refused: `status`, `slug` (the kind of problem), `reply` (its whole body) and `request_id`."""

    def __init__(self, status: int, reply: ProblemReply, request_id: str | None) -> None:
        super().__init__(f"{status} {reply.title}: {reply.detail}")
        self.status = status
        self.reply = reply
        self.slug = reply.type.rpartition("/")[2]
        self.request_id = request_id

    def __reduce__(self) -> tuple[Any, ...]:  # made of its message alone otherwise, as exceptions are when unpickled
        return ServiceProblem, (self.status, self.reply, self.request_id)


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One request and the model of its answer."""

    method: str
    path: str
    reply: type[R]
    json: Any = None
    content: bytes | None = None
    params: dict[str, str] = field(default_factory=dict)
    vectors: int | None = None
    """Rows of `content`, which the service cuts by its own dimension."""

    def of(self, collection: str | None) -> str:
        """The path, of the default collection or of one by its name."""
        if collection is None or not self.path.startswith("/v1/") or self.path.startswith(ALONE):
            return self.path
        return f"{BELOW}{quote(collection, safe='')}{self.path.removeprefix('/v1')}"

    def arguments(self) -> dict[str, Any]:
        """Of the HTTP client's `request`. Raises `DataError` for a body that JSON cannot hold."""
        if self.json is None:
            kind, content = "application/octet-stream", self.content
        else:
            kind, content = "application/json", _as_json(self.json)
        headers = {} if content is None else {"Content-Type": kind}
        return {"content": content, "params": self.params, "headers": headers}

    def read(self, response: httpx2.Response) -> R:
        """Raises `ServiceProblem`; `SurematchError` for an answer that is none of this service's, `DataError` for one
        to other vectors than were sent."""
        try:
            if response.is_success:
                reply = self.reply.model_validate_json(response.content)
                self._check_count(reply)
                return reply
            problem = ProblemReply.model_validate_json(response.content)
        except ValidationError as error:
            raise SurematchError(
                f"{response.status_code} from {response.url.copy_with(query=None)}: not an answer of surematch's "
                f"service ({error.error_count()} faults). Check the address, and that both sides are of one version."
            ) from None
        raise ServiceProblem(response.status_code, problem, response.headers.get("x-request-id"))

    def _check_count(self, reply: BaseModel) -> None:
        if self.vectors is not None and isinstance(reply, SearchReply) and len(reply.results) != self.vectors:
            raise DataError(
                f"{self.vectors} vectors were sent and {len(reply.results)} answered: they are not of the collection's "
                "dimension. Make them with its model."
            )


class Calls:
    """Every operation of the service as a `Call`, for both clients.

    Those that take a list raise `DataError` for a single text, picture, item or id.
    """

    @staticmethod
    def search(
        queries: Sequence[str | bytes],
        *,
        k: int = 10,
        map: MapSpec = "softmax",
        coverage: float | None = None,
        coverage_for: CoverageFor = "mixed",
        filter: dict[str, Any] | None = None,
        explain: bool = False,
    ) -> Call[SearchReply]:
        asked = listed("search", "text", queries)
        how = {"k": k, "map": _map(map), "coverage": coverage, "coverage_for": coverage_for, "filter": filter}
        bodies = [{"image": _base64(query)} if isinstance(query, bytes) else {"text": query} for query in asked]
        return Call("POST", "/v1/search", SearchReply, {"queries": bodies, **how, "explain": explain})

    @staticmethod
    def search_vectors(
        vectors: NDArray[np.floating],
        *,
        k: int = 10,
        map: MapSpec = "softmax",
        coverage: float | None = None,
        coverage_for: CoverageFor = "mixed",
    ) -> Call[SearchReply]:
        spec = map if isinstance(map, str) else ":".join(str(part) for pair in map.items() for part in pair)
        params = {"k": str(k), "map": spec, "coverage_for": coverage_for}
        if coverage is not None:
            params["coverage"] = repr(float(coverage))
        rows = _rows(vectors)
        return Call("POST", "/v1/search", SearchReply, content=rows.tobytes(), params=params, vectors=len(rows))

    @staticmethod
    def search_text(text: str, *, k: int = 10) -> Call[SearchReply]:
        return Call("GET", "/v1/search", SearchReply, params={"text": _unicode("text", text), "k": str(k)})

    @staticmethod
    def embeddings(texts: Sequence[str], model: str) -> Call[EmbeddingsReply]:
        return Call(
            "POST", "/v1/embeddings", EmbeddingsReply, {"input": listed("embeddings", "text", texts), "model": model}
        )

    @staticmethod
    def models() -> Call[ModelsReply]:
        return Call("GET", "/v1/models", ModelsReply)

    @staticmethod
    def put_items(items: Sequence[dict[str, Any]]) -> Call[WrittenReply]:
        bodies = [_item(at, item) for at, item in enumerate(listed("put_items", "item", items), 1)]
        return Call("PUT", "/v1/items", WrittenReply, {"items": bodies})

    @staticmethod
    def item(id: str) -> Call[ItemReply]:
        return Call("GET", f"/v1/items/{_segment(id)}", ItemReply)

    @staticmethod
    def delete_item(id: str) -> Call[DeletedReply]:
        return Call("DELETE", f"/v1/items/{_segment(id)}", DeletedReply)

    @staticmethod
    def delete_items(ids: Sequence[str]) -> Call[DeletedReply]:
        return Call("POST", "/v1/items:delete", DeletedReply, {"ids": listed("delete_items", "id", ids)})

    @staticmethod
    def delete_where(filter: dict[str, Any]) -> Call[DeletedReply]:
        return Call("POST", "/v1/items:delete", DeletedReply, {"filter": filter})

    @staticmethod
    def feedback(query_id: str, label: str | None) -> Call[FeedbackReply]:
        return Call("POST", "/v1/feedback", FeedbackReply, {"query_id": query_id, "label": label})

    @staticmethod
    def collection() -> Call[CollectionReply]:
        return Call("GET", "/v1/collection", CollectionReply)

    @staticmethod
    def collections() -> Call[CollectionsReply]:
        return Call("GET", "/v1/collections", CollectionsReply)

    @staticmethod
    def labels(contains: str = "") -> Call[LabelsReply]:
        return Call("GET", "/v1/labels", LabelsReply, params={"contains": _unicode("text", contains)})

    @staticmethod
    def calibration() -> Call[CalibrationReply]:
        return Call("GET", "/v1/calibration", CalibrationReply)

    @staticmethod
    def reload() -> Call[ReloadReply]:
        return Call("POST", "/v1/admin/reload", ReloadReply)

    @staticmethod
    def snapshot() -> Call[SnapshotReply]:
        return Call("POST", "/v1/admin/snapshot", SnapshotReply)

    @staticmethod
    def recalibrate() -> Call[VersionReply]:
        return Call("POST", "/v1/admin/recalibrate", VersionReply)

    @staticmethod
    def calibrations() -> Call[VersionsReply]:
        return Call("GET", "/v1/admin/calibrations", VersionsReply)

    @staticmethod
    def use_calibration(id: str) -> Call[VersionsReply]:
        return Call("PUT", "/v1/admin/calibration", VersionsReply, {"id": id})

    @staticmethod
    def start_job(kind: str, settings: dict[str, Any]) -> Call[JobReply]:
        return Call("POST", "/v1/jobs", JobReply, {"kind": kind, "settings": settings})

    @staticmethod
    def jobs() -> Call[JobsReply]:
        return Call("GET", "/v1/jobs", JobsReply)

    @staticmethod
    def job(id: str) -> Call[JobReply]:
        return Call("GET", f"/v1/jobs/{_segment(id)}", JobReply)

    @staticmethod
    def cancel_job(id: str) -> Call[JobReply]:
        return Call("DELETE", f"/v1/jobs/{_segment(id)}", JobReply)

    @staticmethod
    def delete_job(id: str) -> Call[JobReply]:
        return Calls.cancel_job(id)  # one address: what has not ended is cancelled, what has ended is deleted

    @staticmethod
    def promote_job(id: str, collection: str | None = None) -> Call[JobReply]:
        return Call("POST", f"/v1/jobs/{_segment(id)}/promote", JobReply, {"collection": collection})

    @staticmethod
    def health() -> Call[HealthReply]:
        return Call("GET", "/healthz", HealthReply)

    @staticmethod
    def ready() -> Call[ReadyReply]:
        return Call("GET", "/readyz", ReadyReply)


def _map(spec: MapSpec) -> MapSpec:
    """As JSON has it: "entmax:1.3" is a word of addresses and commands. What is no such word the service refuses."""
    name, _, value = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    try:
        return {name: float(value) if "." in value else int(value)} if value else spec
    except ValueError:
        return spec


def _segment(id: str) -> str:
    """An id as a part of an address, where "." and ".." as they are would mean another address. Raises `DataError`."""
    return id.replace(".", "%2E") if id in (".", "..") else quote(_unicode("id", id), safe="")


def _unicode(what: str, text: str) -> str:
    """The text as it is. Raises `DataError` for half a surrogate pair, which no address can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"The {what} holds half of a surrogate pair, which is not a character.") from error
    return text


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _as_json(body: Any) -> bytes:
    """Raises `DataError` for what is no JSON, numpy's arrays and numbers apart."""
    try:
        return json.dumps(body, default=_plain, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"The request is not JSON ({error}). Use plain values, and numbers that are finite.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and not np.iscomplexobj(value):
        return value.tolist()
    raise TypeError(f"it holds a {type(value).__name__}")


def _rows(vectors: Any) -> NDArray[np.float32]:
    """Vectors (n, d) as the service reads them. Raises `DataError`."""
    try:
        given = np.asarray(vectors)
        if np.iscomplexobj(given):
            raise ValueError("they are complex")
        rows = np.ascontiguousarray(given, "<f4")
    except (TypeError, ValueError) as error:
        raise DataError(f"The query vectors are no array of numbers ({error}). Send rows of float32.") from error
    if given.ndim != 2:
        raise DataError(f"The query vectors have the shape {given.shape}, expected (n, d): a row for each.")
    return rows


def _item(at: int, item: Any) -> dict[str, Any]:
    """As JSON can hold it. Raises `DataError`."""
    if not isinstance(item, dict):
        raise DataError(
            f"Item {at}: is a {type(item).__name__}, expected a dict with an id and a text, an image or a vector."
        )
    image = item.get("image")
    return {**item, "image": _base64(image)} if isinstance(image, bytes) else item
