"""What all bodies of /v1 share, and how a refusal looks."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.functional_validators import AfterValidator
from pydantic_core import PydanticCustomError

VISIBLE = r"[^\s\x1c-\x1f\x85]"
"""A regular expression (in the common part of its dialects) for what `str.strip` leaves: for the OpenAPI document."""


class Body(BaseModel):
    """What all request bodies share: strict types, finite numbers, no unknown members."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class Reply(BaseModel):
    """What all response bodies share."""

    model_config = ConfigDict(extra="forbid")


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
