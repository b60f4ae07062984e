"""The bodies of `/v1/items` and `/v1/feedback`, strict as those in `service.schemas.base`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, create_model, model_validator
from pydantic.functional_validators import AfterValidator
from pydantic_core import PydanticCustomError

from index.collection import NewItem
from index.data.label import plain_label
from index.items.item import MAX_ID_BYTES
from service.schemas.base import FILTER, VISIBLE, Body, ItemFilter, Reply
from service.schemas.queries import Base64Query, ImageQuery
from service.settings import ServeSettings

MAX_LABEL = 512
MAX_METADATA = 64 * 1024


def _plain_json(metadata: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(metadata, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, RecursionError):
        raise PydanticCustomError("metadata", "Metadata is JSON, without NaN or Infinity") from None
    if size > MAX_METADATA:
        raise PydanticCustomError("metadata", "Metadata has more than {most} bytes as JSON", {"most": MAX_METADATA})
    return metadata


def _short_id(name: str) -> str:
    if len(name.encode()) > MAX_ID_BYTES:
        raise PydanticCustomError("id", "An id has at most {most} bytes in UTF-8", {"most": MAX_ID_BYTES})
    return name


def _label(given: str) -> str:
    """As labels are kept today, see `index.data.label`: blank ones are refused here, by their place in the request."""
    label = plain_label(given)
    if not label:
        raise PydanticCustomError("label", "The label is empty; give at least one visible character, or null")
    return label


class ItemBody(Body):
    """One item: an id, what it is (`text`, `image`, or a vector of the collection's model), and whose it is (`label`).

    An image is the bytes of a picture file in base64, for collections of pictures. It is encoded and not kept.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"text": {"type": "string"}}, "required": ["text"]},
                {"properties": {"image": {"type": "string"}}, "required": ["image"]},
                {"properties": {"vector": {"type": "array"}}, "required": ["vector"]},
                {"properties": {"vector_base64": {"type": "string"}}, "required": ["vector_base64"]},
            ]
        }
    )

    id: Annotated[str, AfterValidator(_short_id)] = Field(min_length=1, max_length=MAX_ID_BYTES)
    label: Annotated[str, AfterValidator(_label)] | None = Field(
        None,
        min_length=1,
        max_length=MAX_LABEL,
        description="null: it stands for itself. Kept in Unicode's NFC, without white space around",
        json_schema_extra={"pattern": VISIBLE},
    )
    text: str | None = Field(None, min_length=1)
    image: str | None = Field(None, description="the bytes of a picture file in base64; encoded and not kept")
    vector: list[float] | None = Field(None, min_length=1, fail_fast=True)
    vector_base64: str | None = Field(None, description="little-endian float32 numbers in base64")
    metadata: Annotated[dict[str, Any], AfterValidator(_plain_json)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_content(self) -> ItemBody:
        if self.vector is not None and self.vector_base64 is not None:
            raise PydanticCustomError("content", "An item has one vector: as a list or in base64")
        if self.text is not None and not self.text.strip():
            raise PydanticCustomError("content", "The text is empty; give at least one visible character")
        if self.image is not None and (self.text, self.vector, self.vector_base64) != (None, None, None):
            raise PydanticCustomError("content", "An item with an image has no text and no vector")
        if (self.text, self.image, self.vector, self.vector_base64) == (None, None, None, None):
            raise PydanticCustomError("content", "An item needs a text, an image or a vector")
        if self.image is not None:
            ImageQuery(image=self.image)
        if self.vector_base64 is not None:
            Base64Query(vector_base64=self.vector_base64)
        return self

    def new(self) -> NewItem:
        vector = None
        if self.vector_base64 is not None:
            vector = Base64Query(vector_base64=self.vector_base64).numbers()
        elif self.vector is not None:
            with np.errstate(over="ignore"):  # beyond float32: refused by the collection as not finite
                vector = np.array(self.vector, np.float32)
        image = None if self.image is None else ImageQuery(image=self.image).content()
        return NewItem(self.id, self.label, self.text, vector, image, self.metadata)


class PutRequest(Body):
    """Items to write: all or none."""

    items: list[ItemBody] = Field(min_length=1)


class DeleteRequest(Body):
    """Ids to delete, those that do not exist are passed over; or a filter that says what to delete."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"properties": {"ids": {"type": "array"}}, "required": ["ids"]},
                {"properties": {"filter": {"type": "object"}}, "required": ["filter"]},
            ]
        }
    )

    ids: list[Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES)]] | None = Field(None, min_length=1)
    filter: ItemFilter | None = Field(None, min_length=1, description=FILTER)

    @model_validator(mode="after")
    def _one_of_both(self) -> DeleteRequest:
        if (self.ids is None) == (self.filter is None):
            raise PydanticCustomError("what", "Give either ids or a filter")
        return self


class FeedbackRequest(Body):
    """What was right for a query that was answered a while ago."""

    query_id: str = Field(min_length=1, max_length=64, description="from `query_ids` of the answer")
    label: Annotated[str, AfterValidator(plain_label)] | None = Field(
        max_length=MAX_LABEL, description='the right label; null: "nothing here matches", unless asked with a filter'
    )


def limited_items(settings: ServeSettings) -> tuple[type[PutRequest], type[DeleteRequest]]:
    """The classes above with the service's limits."""
    item = create_model(
        "ItemBody",
        __base__=ItemBody,
        text=(
            str | None,
            Field(None, min_length=1, max_length=settings.max_text_chars, json_schema_extra={"pattern": VISIBLE}),
        ),
        vector=(list[float] | None, Field(None, min_length=1, max_length=settings.max_vector_length, fail_fast=True)),
    )
    most = settings.max_items
    items = (list[item], Field(min_length=1, max_length=most))  # type: ignore[valid-type]
    put = create_model("PutRequest", __base__=PutRequest, items=items)
    name = Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES)]
    delete: type[DeleteRequest] = create_model(
        "DeleteRequest",
        __base__=DeleteRequest,
        ids=(list[name] | None, Field(None, min_length=1, max_length=most)),
    )
    return put, delete


class WrittenReply(Reply):
    """On disk and searchable."""

    sequence: int = Field(description="number of the write; a search whose `sequence` is as large has seen it")
    written: int
    replaced: int = Field(description="how many of the ids existed before")


class DeletedReply(Reply):
    sequence: int
    deleted: int


class ItemReply(Reply):
    id: str
    label: str | None
    text: str | None
    metadata: dict[str, Any]


class FeedbackReply(Reply):
    kept: bool
