"""The bodies of /v1/embeddings and /v1/models, as OpenAI's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.schemas.base import Body, Reply


class EmbeddingsRequest(Body):
    """As OpenAI's, for texts. Token lists are not taken: tokens are the encoder's own affair."""

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
