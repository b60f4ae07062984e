"""The bodies of `/v1/jobs`: what may be trained, indexed and recalibrated, and what is told of it.

Every path is relative to the folder of `--jobs` and stays inside it. Encoders are those that come with packages, a new
one for pictures, or one of that folder: nothing is fetched.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from service.schemas.base import Body, Reply
from service.settings import NAME

Inside = Annotated[
    str, Field(min_length=1, max_length=400, description="path below the folder of --jobs", examples=["data/train.csv"])
]
Column = Annotated[str, Field(min_length=1, max_length=200, description="a column's name")]
Files = Annotated[list[Inside], Field(min_length=1, max_length=100)]
Start = Literal["static", "minilm", "image", "sface"]
"""Where training starts, by name; another word is a path."""
Ready = Literal["static", "minilm", "sface"]
"""Encoders that index untrained, by name."""
SkipFaulty = Annotated[bool, Field(description="leave out what cannot be used, and say so in the log")]
Identifier = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[a-z0-9][a-z0-9-]*$")]
State = Literal["queued", "running", "interrupted", "succeeded", "failed", "cancelled"]


class TrainSettings(Body):
    """As of `surematch train`. Its result is a model that an index job can take."""

    data: Files
    text: Column = "text"
    label: Column = "label"
    encoder: Start | Inside = Field(
        "static", description='"static", "minilm", "image" (pictures, from nothing), "sface", or a model below --jobs'
    )
    image_size: int | None = Field(None, ge=16, le=512, description="edge of the square pictures are fitted into")
    augment: Literal["faces", "characters", "none"] | None = Field(None, description="random changes to pictures")
    turned_classes: bool = Field(False, description="turned and mirrored pictures train as classes of their own")
    composed_classes: bool = Field(False, description="upper half of one class, lower half of another: a further class")
    skip_faulty: SkipFaulty = False
    loss: Identifier | None = Field(None, description="null: the encoder's default")
    epochs: float | None = Field(None, gt=0, le=1000)
    held_out: float = Field(0.15, ge=0, le=0.5, description="share of the rows kept for calibration")
    seed: int = Field(0, ge=0, le=2**31 - 1)


class IndexSettings(Body):
    """As of `surematch index`. Its result is a collection."""

    model: Ready | Inside = Field(description='"static", "minilm", "sface", or a model below --jobs')
    data: Files
    text: Column = "text"
    label: Column | None = Field(
        None, description='a column\'s name; null: as in training, "label" where the model has none from there'
    )
    id: Column | None = None
    calibrate: list[Inside] = Field([], max_length=100)
    unknown: list[Inside] = Field([], max_length=100)
    unknown_share: float = Field(0.2, gt=0, lt=1)
    engine: Identifier = "auto"
    skip_faulty: SkipFaulty = False
    seed: int = Field(0, ge=0, le=2**31 - 1)


class RecalibrateSettings(Body):
    """Fits the probabilities again with feedback, on a copy of a served collection. Its result is that copy."""

    collection: str | None = Field(None, pattern=f"^{NAME}$", description="its name; null: the default one")


class TrainJob(Body):
    kind: Literal["train"]
    settings: TrainSettings


class IndexJob(Body):
    kind: Literal["index"]
    settings: IndexSettings


class RecalibrateJob(Body):
    kind: Literal["recalibrate"]
    settings: RecalibrateSettings


class JobRequest(RootModel[Annotated[TrainJob | IndexJob | RecalibrateJob, Field(discriminator="kind")]]):
    """What to do."""


class PromoteRequest(Body):
    """Where the result is to be served."""

    collection: str | None = Field(
        None,
        pattern=f"^{NAME}$",
        description="a served collection; null: the one that was recalibrated, of other jobs the default one",
    )


class ProgressReply(Reply):
    what: str
    done: int
    of: int


class JobReply(Reply):
    """A job, as it stands."""

    id: str
    kind: Literal["train", "index", "recalibrate"]
    settings: dict[str, Any]
    state: State = Field(description="an interrupted one is continued when the service starts again")
    created: str
    started: str | None
    ended: str | None
    attempts: int = Field(description="how often it was started or continued")
    progress: ProgressReply | None
    error: str | None = Field(description="why it failed, the end of its log")
    result: str | None = Field(description="the model or collection, below --jobs, once it has succeeded")
    promoted: bool = Field(description="its result was put into service")


class JobsReply(Reply):
    """Oldest first."""

    jobs: list[JobReply]
