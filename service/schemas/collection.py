"""What a service says of itself, of its collections and of their calibrations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas.base import Body, Reply


class HealthReply(Reply):
    status: Literal["ok"]


class ReadyReply(Reply):
    status: Literal["ready"]
    collection: str
    model: str
    snapshot: str
    degraded: bool = Field(description="what is served is not all that lies in the folder, or older; the log says why")


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
    degraded: bool = Field(description="what is served is not all that lies in the folder, or older; the log says why")


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
