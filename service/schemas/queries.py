"""What a query may be: a text, a vector, its numbers in base64, or a picture."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator, Field, Tag, create_model
from pydantic.functional_validators import AfterValidator
from pydantic_core import PydanticCustomError

from service.schemas.base import VISIBLE, Body
from service.settings import ServeSettings

TEXT, VECTOR, BASE64, IMAGE = "<text>", "<vector>", "<vector_base64>", "<image>"
QUERY_TAGS = frozenset({TEXT, VECTOR, BASE64, IMAGE})
"""Marks of the query union in a validation error's location; no part of the JSON document."""


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


def limited_query(settings: ServeSettings) -> Any:
    """The union of what a query may be, with the service's limits inside."""
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
    return _one_kind_of(text, vector, base64_)
