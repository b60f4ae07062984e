"""The request and response bodies of /v1, as the OpenAPI document shows them.

Requests are validated straight from the bytes (`SearchRequest.model_validate_json`), strictly: `"5"`, `5.0` and `true`
are not integers, NaN and infinities are not numbers, a member nobody knows is an error. Responses are serialized from
`index.answer` without a second validation; the tests check that they match the models here.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, WrapValidator, create_model
from pydantic.functional_validators import AfterValidator, ModelWrapValidatorHandler
from pydantic_core import PydanticCustomError

from index.calibration.conformal import CoverageFor
from index.calibration.outcome import TAYLOR_ORDER
from service.settings import ServeSettings

TEXT, VECTOR, BASE64, IMAGE = "<text>", "<vector>", "<vector_base64>", "<image>"
QUERY_TAGS = frozenset({TEXT, VECTOR, BASE64, IMAGE})
"""Marks of the query union in a validation error's location; no part of the JSON document."""


VISIBLE = r"[^\s\x1c-\x1f\x85]"
"""A regular expression (in the common part of its dialects) for what `str.strip` leaves: for the OpenAPI document."""


class Body(BaseModel):
    """What all request bodies share: strict types, finite numbers, no unknown members."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank_text", "The text is empty; give at least one visible character")
    return text


def _unpacked(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise PydanticCustomError("base64", "This is not base64 (RFC 4648, with padding)") from None


class TextQuery(Body):
    """A text, encoded by the collection's own model."""

    text: Annotated[str, AfterValidator(_not_blank)] = Field(examples=["what is the temperature outside"])


class VectorQuery(Body):
    """A vector as the collection's own model makes it: its dimension, finite, of length 1."""

    vector: list[float] = Field(min_length=1, fail_fast=True)


def _float32(text: str) -> str:
    size = len(_unpacked(text))
    if not size or size % 4:
        raise PydanticCustomError(
            "float32", "Got {size} bytes, expected 4 for each number: little-endian float32", {"size": size}
        )
    return text


class Base64Query(Body):
    """The vector's little-endian float32 numbers in base64: a third of the list's length, and faster to read."""

    vector_base64: Annotated[str, AfterValidator(_float32)]

    def numbers(self) -> NDArray[np.float32]:
        return np.frombuffer(base64.b64decode(self.vector_base64), "<f4").astype(np.float32)


def _picture(text: str) -> str:
    _unpacked(text)
    return text


class ImageQuery(Body):
    """The bytes of a picture file in base64. Only for collections of pictures; others answer 422. It is not kept."""

    image: Annotated[str, AfterValidator(_picture)]

    def content(self) -> bytes:
        """The bytes of the picture's file."""
        return base64.b64decode(self.image)


def _query_kind(query: Any) -> str | None:
    named = [tag for tag in (TEXT, VECTOR, BASE64, IMAGE) if isinstance(query, dict) and tag[1:-1] in query]
    return named[0] if len(named) == 1 else None


def _one_kind_of(text: type[TextQuery], vector: type[VectorQuery], base64_: type[Base64Query]) -> Any:
    return Annotated[
        Annotated[text, Tag(TEXT)]
        | Annotated[vector, Tag(VECTOR)]
        | Annotated[base64_, Tag(BASE64)]
        | Annotated[ImageQuery, Tag(IMAGE)],
        Discriminator(
            _query_kind,
            custom_error_type="query_kind",
            custom_error_message="A query is an object with exactly one of "
            '"text", "vector", "vector_base64" or "image"',
        ),
    ]


class EntmaxMap(Body):
    """The entmax family: 1 is softmax, 2 is sparsemax; larger is sparser."""

    entmax: float = Field(ge=1, le=2, examples=[1.3])


class TaylorMap(Body):
    """Taylor softmax of the order that is calibrated, as "taylor" means, too."""

    taylor: int = Field(ge=TAYLOR_ORDER, le=TAYLOR_ORDER, examples=[TAYLOR_ORDER])


MapName = Literal["softmax", "sparsemax", "entmax15", "taylor"]


def _one_map_error(value: Any, validate: ModelWrapValidatorHandler[Any]) -> Any:
    """One sentence instead of one error for each way the value could have been a map."""
    try:
        return validate(value)
    except ValidationError:
        raise PydanticCustomError(
            "map",
            'Expected "softmax", "sparsemax", "entmax15", "taylor", {"entmax": alpha} with 1 <= alpha <= 2, '
            f'or {{"taylor": {TAYLOR_ORDER}}}',
        ) from None


Map = Annotated[MapName | EntmaxMap | TaylorMap, WrapValidator(_one_map_error)]


def plain_json(value: dict[str, Any]) -> dict[str, Any]:
    """Refuses what Python's JSON has and JSON has not."""
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        raise PydanticCustomError("plain_json", "Expected plain JSON, without NaN or Infinity") from None
    return value


ItemFilter = Annotated[dict[str, Any], AfterValidator(plain_json)]
FILTER = (
    'which items may be shown, by metadata, `$id` or `$label`: {"brand": "acme"}, {"price": {"gte": 10}}, '
    '{"size": {"in": ["s", "m"]}}, {"colour": {"exists": true}}, {"and": [...]}, {"or": [...]}, {"not": {...}}'
)


class SearchRequest(Body):
    """One or more queries, answered in their order. `limited` makes the class that parses requests."""

    queries: list[TextQuery | VectorQuery | Base64Query | ImageQuery] = Field(min_length=1)
    k: int = Field(10, ge=1, description="hits to return for each query")
    map: Map = Field(
        "softmax",
        description="from evidence to probabilities: `softmax` is the calibrated distribution; `taylor` is "
        "another; the others give a shorter list whose exact zeros are sometimes wrong",
    )
    coverage: float | None = Field(
        None, gt=0, lt=1, description="ask for the set of labels that holds the truth this often, for example 0.95"
    )
    coverage_for: CoverageFor = Field(
        "mixed",
        description="whom the coverage is promised to: all queries together, or known and unknown ones apart",
    )
    filter: ItemFilter | None = Field(None, description=FILTER, examples=[{"lang": "en"}])
    explain: bool = Field(False, description="also answer why: the evidence and the items behind each probability")

    @property
    def map_spec(self) -> str | dict[str, float]:
        return self.map if isinstance(self.map, str) else self.map.model_dump()

    def how(self) -> str:
        """Equal for requests that ask in the same way, whatever their queries: these can share a batch."""
        return repr((self.k, self.map_spec, self.coverage, self.coverage_for, self.filter, self.explain))


def limited(settings: ServeSettings) -> type[SearchRequest]:
    """`SearchRequest` with the service's limits inside, so that they are enforced while parsing, and documented."""
    text = create_model(
        "TextQuery",
        __base__=TextQuery,
        text=(
            Annotated[str, AfterValidator(_not_blank)],
            Field(
                min_length=1,
                max_length=settings.max_text_chars,
                examples=["what is the temperature outside"],
                json_schema_extra={"pattern": VISIBLE},
            ),
        ),
    )
    vector = create_model(
        "VectorQuery",
        __base__=VectorQuery,
        vector=(list[float], Field(min_length=1, max_length=settings.max_vector_length, fail_fast=True)),
    )
    base64_ = create_model(
        "Base64Query",
        __base__=Base64Query,
        vector_base64=(
            Annotated[str, AfterValidator(_float32)],
            # 4 bytes a number, 4 characters for 3 bytes
            Field(min_length=8, max_length=16 * settings.max_vector_length // 3 + 4, examples=["AACAPwAAAAA="]),
        ),
    )
    query = _one_kind_of(text, vector, base64_)
    return create_model(
        "SearchRequest",
        __base__=SearchRequest,
        queries=(list[query], Field(min_length=1, max_length=settings.max_queries)),  # type: ignore[valid-type]
        k=(int, Field(10, ge=1, le=settings.max_k, description=SearchRequest.model_fields["k"].description)),
    )


class Reply(BaseModel):
    """What all response bodies share."""

    model_config = ConfigDict(extra="forbid")


class HitReply(Reply):
    """A retrieved item."""

    id: str
    label: str | None
    score: float = Field(ge=-1.001, le=1.001, description="cosine of query and item in [-1, 1]; not a probability")
    probability: float | None = Field(
        ge=0,
        le=1,
        description="calibrated probability that the item has the query's identity; null when uncalibrated, or where "
        "the calibrator speaks of the first label alone",
    )
    text: str | None
    metadata: dict[str, Any]


class LabelReply(Reply):
    """One entry of the label distribution. An item without a label stands for itself: `label` null, `id` set."""

    label: str | None
    id: str | None
    probability: float = Field(ge=0, le=1)


class DecisionReply(Reply):
    """The most probable outcome; `label` and `id` both null mean "no match"."""

    label: str | None
    id: str | None
    probability: float = Field(ge=0, le=1)


class ContributionReply(Reply):
    """One of a label's items among the query's 100 nearest."""

    id: str
    score: float
    share_8: float = Field(description="its part of the label's pooled evidence at sharpness 8")
    share_32: float = Field(description="its part at sharpness 32")


class LabelEvidenceReply(Reply):
    """Why a label has its probability."""

    label: str | None
    id: str | None
    probability: float
    logit: float | None = Field(description="null: this calibrator cannot speak of the label")
    evidence: dict[str, float] = Field(
        description="cosines (best, centroid, cohesion), and of all the label's items together, as a log-sum that may "
        "exceed 1, pooled_8 and pooled_32"
    )
    terms: dict[str, float] | None = Field(
        description="what each adds, summing to `logit`; null where the calibrator has no such terms"
    )
    answerable: bool = Field(
        description="some item of it passes the filter, with consent that has not ended; else its mass counts as no "
        "match, and `label` and `id` are null"
    )
    items: list[ContributionReply] = Field(description="the items that made the evidence, closest first")
    hidden_items: int = Field(description="how many more did, and do not pass the filter")


class ExplanationReply(Reply):
    """The map of all logits, over the temperature, gives the probabilities."""

    temperature: float
    background: float = Field(description="what is close around this query: mean cosine of the other labels' hits")
    no_match_logit: float
    no_match_terms: dict[str, float] | None = Field(description="intercept and background, summing to the logit")
    labels: list[LabelEvidenceReply] = Field(description="every candidate, likeliest first")


class AnswerReply(Reply):
    """One query's answer. `labels` and `no_match` sum to 1."""

    hits: list[HitReply]
    labels: list[LabelReply] | None = Field(description="descending, only nonzero entries; null when uncalibrated")
    no_match: float | None = Field(ge=0, le=1, description="probability that nothing in the gallery matches")
    decision: DecisionReply | None
    prediction_set: list[LabelReply] | None = Field(description="holds the truth with probability >= `coverage`")
    set_has_no_match: bool | None = Field(description='whether "no match" belongs to the prediction set')
    coverage: float | None
    certified: bool = Field(description="proven that labels without one of the hundred nearest items get nothing")
    calibrated: bool = Field(description="false: every probability is null, and `reason` says why")
    reason: str | None
    warnings: list[str]
    explanation: ExplanationReply | None = Field(description="with `explain`; null when uncalibrated")


class TimingsReply(Reply):
    """Milliseconds inside the service. `encode` is 0 for queries that were vectors already."""

    queue_ms: float
    encode_ms: float
    search_ms: float
    total_ms: float


class SearchReply(Reply):
    """`results[i]` answers `queries[i]`."""

    results: list[AnswerReply]
    query_ids: list[str] | None = Field(description="for /v1/feedback; null when the service takes no writes")
    collection: str
    model: str = Field(description="fingerprint of the encoder")
    snapshot: str = Field(description="the state of the collection that was searched")
    calibration_id: str | None = Field(
        description="whose the probabilities are, as in `version` of /v1/calibration; null without any"
    )
    sequence: int = Field(description="number of the last write that was searched")
    timings: TimingsReply


class EmbeddingsRequest(Body):
    """As OpenAI's, for texts. Token lists are not taken: tokens are the encoder's own affair."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    input: str | list[str] = Field(min_length=1, examples=["is it warm in the kitchen"])
    model: str = Field(max_length=200, description="the collection's name or its model's fingerprint; see /v1/models")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="only the model's own dimension is possible")
    user: str | None = Field(None, max_length=200, description="ignored")


class EmbeddingReply(Reply):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="numbers, or their little-endian float32 in base64")


class UsageReply(Reply):
    """Tokens are not counted: both are 0."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(Reply):
    """`data[i]` is the unit vector of `input[i]`."""

    object: Literal["list"]
    data: list[EmbeddingReply]
    model: str
    usage: UsageReply


class ModelReply(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsReply(Reply):
    object: Literal["list"]
    data: list[ModelReply]


class HealthReply(Reply):
    status: Literal["ok"]


class ReadyReply(Reply):
    status: Literal["ready"]
    collection: str
    model: str
    snapshot: str
    degraded: bool = Field(description="what is served is not what lies in the folder; the log says why")


class SnapshotReply(Reply):
    snapshot: str = Field(description="name of the new snapshot, which serves now")


class UseCalibrationRequest(Body):
    """Which calibration to serve from now on."""

    id: str = Field(min_length=1, max_length=64, description="from GET /v1/admin/calibrations")


class VersionReply(Reply):
    """One calibration of a collection."""

    id: str
    made: str = Field(description="when, ISO 8601")
    cause: str = Field(description='"build or compaction", "feedback", or "refit"')
    snapshot: str = Field(description="under which snapshot it was made")
    sequence: int = Field(description="the last write its gallery had")
    queries: dict[str, Any] = Field(description="what it was fitted on")
    ece: float | None = Field(description="its calibration error on held-out queries")
    change: dict[str, Any] | None = Field(
        description="before and after, on feedback that neither calibration was fitted on; null without feedback"
    )


class VersionsReply(Reply):
    """Oldest first."""

    in_use: str | None = Field(description="null when the collection is not calibrated")
    reason: str | None = Field(description="why no probability can be shown, also where one is in use")
    stale: list[str] = Field(
        description="ids of those that do not fit the items as they are now: they are refused, and show no probability"
    )
    calibrations: list[VersionReply]


class ReloadReply(Reply):
    """What serves now."""

    collection: str
    model: str
    snapshot: str


class LabelSizeReply(Reply):
    label: str
    items: int


class CollectionReply(BaseModel):
    """What is served. More members than these describe the gallery and the engine."""

    model_config = ConfigDict(extra="allow")

    name: str
    items: int
    model: str
    snapshot: str
    dimension: int
    examples: list[str] = Field(description="questions to start with")
    labels_by_size: list[LabelSizeReply] = Field(description="the labels with the most items, largest first")


class LabelsReply(Reply):
    """Labels that a query can be answered with."""

    labels: list[str] = Field(description="at most 1,000: the one that is `contains` first, then by alphabet")
    total: int = Field(description="how many contain the text")


class ServedReply(Reply):
    """One of the collections of a service."""

    name: str = Field(description="as in /v1/collections/NAME/search")
    items: int
    model: str
    snapshot: str
    dimension: int
    modality: Literal["text", "image"]
    calibrated: bool
    degraded: bool = Field(description="what is served is not what lies in the folder; the log says why")


class CollectionsReply(Reply):
    """What a service serves."""

    default: str = Field(description="the one that /v1/search and the others ask")
    collections: list[ServedReply]


class RiskReply(Reply):
    coverage: float
    risk: float


class CalibrationReply(BaseModel):
    """How the probabilities were fitted and what they measured on held-out queries."""

    model_config = ConfigDict(extra="allow")

    calibrated: bool
    reason: str | None = Field(description="why no probability can be shown")
    stale: bool = Field(description="there is a calibration, but the gallery is no longer the one it was made for")
    drift: dict[str, Any] = Field(
        description="how far recent queries are from the calibration's; `verdict` in one word"
    )
    version: str | None = Field(description="id of the calibration in use; null when there is none")
    risk_coverage: list[RiskReply] | None = Field(description="of the surest answers, the share that is wrong")


class FaultReply(Reply):
    pointer: str = Field(description="JSON pointer into the body, or the name of a query parameter")
    detail: str


class ProblemReply(Reply):
    """RFC 9457 problem details: what was wrong, where, and what to do."""

    type: str = Field(examples=["/problems/invalid-request"])
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FaultReply] | None = None
