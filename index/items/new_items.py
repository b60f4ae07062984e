"""What goes into a collection, and what is handed out for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.data.rows import text_key
from index.encoders.encoder import Encoder
from index.encoders.pictures import digest
from index.errors import DataError
from index.items.consent import check_consent
from index.items.store import Item


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item to be written: with a unit `vector` of the collection's encoder, or with what it is made from."""

    id: str
    label: str | None = None
    text: str | None = None
    vector: NDArray[np.float32] | None = None
    image: bytes | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    content: int | None = None
    """Of a picture's digest (`index.items.item.Item`), where its `vector` is given in its place."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A write that is on disk and searchable. `sequence` numbers it; `replaced` of the `written` ids existed before."""

    sequence: int
    written: int = 0
    replaced: int = 0
    deleted: int = 0


def encoded(items: Sequence[NewItem], encoder: Encoder, spelled: Callable[[str], str]) -> list[Item]:
    """The items with their vectors, and their labels as they are `spelled` where they are to be kept.

    Raises `DataError` naming the item that cannot be encoded.
    """
    texts, images = [], []
    for at, item in enumerate(items):
        _check_types(at, item)
        try:
            check_consent(item.metadata)
        except DataError as error:
            raise DataError(f"Item {item.id[:40]!r}: {error}") from error
        if item.vector is not None:
            continue
        if item.image is not None:
            images.append(at)
        elif item.text is not None and item.text.strip():
            texts.append(at)
        else:
            raise DataError(f"Item {item.id[:40]!r} has no text, no image and no vector. Give it one of them.")
    vectors = [item.vector for item in items]
    for at, vector in zip(texts, _texts(items, texts, encoder), strict=True):
        vectors[at] = vector
    for at, vector in zip(images, _images(items, images, encoder), strict=True):
        vectors[at] = vector
    labels = [None if item.label is None else spelled(item.label) for item in items]
    return [
        Item(item.id, label, item.text, vector, item.metadata, _content(item))
        for item, label, vector in zip(items, labels, vectors, strict=True)
        if vector is not None
    ]


def _content(item: NewItem) -> int | None:
    return item.content if item.image is None else text_key(digest(item.image))


def _check_types(at: int, item: NewItem) -> None:
    """Raises `DataError` for what a caller without a type checker may have passed."""
    if not isinstance(item, NewItem):
        raise DataError(f"Item {at + 1}: is a {type(item).__name__}, expected a NewItem.")
    for name, optional, kind, words in _TYPES:
        value = getattr(item, name)
        if not isinstance(value, kind) and not (optional and value is None):
            raise DataError(f"Item {at + 1}: the {name} is a {type(value).__name__}, expected {words}.")


_TYPES = (
    ("id", False, str, "a string"),
    ("label", True, str, "a string or None"),
    ("text", True, str, "a string or None"),
    ("image", True, bytes, "the bytes of a picture's file or None"),
    ("metadata", False, dict, "a dictionary"),
)


def _texts(items: Sequence[NewItem], which: list[int], encoder: Encoder) -> Sequence[NDArray[np.float32]]:
    if not which:
        return []
    texts = [items[at].text or "" for at in which]
    try:
        return list(encoder.encode(texts))
    except DataError:
        for at, text in zip(which, texts, strict=True):
            try:
                encoder.encode([text])
            except DataError as error:
                raise DataError(f"Item {items[at].id[:40]!r}: {error}") from error
        raise


def _images(items: Sequence[NewItem], which: list[int], encoder: Encoder) -> Sequence[NDArray[np.float32]]:
    if not which:
        return []
    encode = getattr(encoder, "encode_images", None)
    if encode is None:
        raise DataError(
            f"Item {items[which[0]].id[:40]!r} is an image, but this collection's encoder reads texts. Send a text or "
            "a vector, or use a collection of images."
        )
    try:
        return list(encode([items[at].image for at in which]))
    except DataError:
        for at in which:
            try:
                encode([items[at].image])
            except DataError as error:
                raise DataError(f"Item {items[at].id[:40]!r}: {error}") from error
        raise
