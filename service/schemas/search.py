"""The body of a search and its answer.

Requests are validated straight from the bytes (`SearchRequest.model_validate_json`), strictly: `"5"`, `5.0` and `true`
are not integers, NaN and infinities are not numbers, a member nobody knows is an error. Responses are serialized from
`index.answer` without a second validation; the tests check that they match the models here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, WrapValidator, create_model
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import PydanticCustomError

from index.calibration.conformal import CoverageFor
from index.calibration.outcome import TAYLOR_ORDER
from service.schemas.base import FILTER, Body, ItemFilter, Reply
from service.schemas.queries import Base64Query, ImageQuery, TextQuery, VectorQuery, limited_query
from service.settings import ServeSettings


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
    query = limited_query(settings)
    return create_model(
        "SearchRequest",
        __base__=SearchRequest,
        queries=(list[query], Field(min_length=1, max_length=settings.max_queries)),  # type: ignore[valid-type]
        k=(int, Field(10, ge=1, le=settings.max_k, description=SearchRequest.model_fields["k"].description)),
    )


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
