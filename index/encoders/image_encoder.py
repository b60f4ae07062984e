"""Image encoders at work: picture files to unit vectors, through the limits of `index.data.images`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from PIL import Image

from index.data.images import decode, read_bytes
from index.data.picture import Picture
from index.encoders.encoder import Encoder, Vectors
from index.encoders.files import fingerprint, need_torch, open_sentence_transformer
from index.errors import DataError, EncoderError

BATCH = 64
"""Pictures decoded and encoded together: what bounds the memory."""

Source = bytes | Path | Picture
"""A picture: the bytes of its file, the file, or a row's picture."""


class ImageEncoder(Encoder, Protocol):
    """Pictures to unit vectors; `modality` is "image"."""

    def encode_images(self, images: Sequence[Source]) -> Vectors:
        """(n, d) float32, rows of norm 1. Raises `DataError` for a picture that cannot be used, naming which."""
        ...


def image_encoder(encoder: Encoder) -> ImageEncoder:
    """`encoder`, if it takes pictures. Raises `DataError` if it takes texts."""
    if encoder.modality != "image":
        raise DataError("This collection holds texts, so it cannot be asked with a picture. Ask with a text.")
    return cast(ImageEncoder, encoder)


class PicturesOnly:
    """What every picture encoder says to texts."""

    modality: Literal["image"] = "image"
    dimension: int

    def encode(self, texts: Sequence[str]) -> Vectors:
        if not len(texts):
            return np.empty((0, self.dimension), np.float32)
        raise DataError("This collection holds pictures, so it cannot be asked with a text. Ask with a picture.")

    def too_long(self, texts: Sequence[str]) -> list[int]:
        return []


class NetworkEncoder(PicturesOnly):
    """A folder whose network is `index.encoders.image_network.ImageNetwork`."""

    def __init__(self, folder: Path) -> None:
        need_torch()
        self.fingerprint = fingerprint(folder)
        try:
            self._model: Any = open_sentence_transformer(str(folder))
        except EncoderError:
            raise
        except Exception as error:  # safetensors, json and torch raise many unrelated types for damaged folders
            raise EncoderError(f"{folder}: the encoder cannot be loaded ({error}). Train or copy it again.") from error
        if not all(weights.isfinite().all() for weights in self._model.state_dict().values()):
            raise EncoderError(f"{folder}: weights hold NaN or infinity. Train the encoder again.")
        self._model.eval()
        self.dimension = int(self._model.get_embedding_dimension() or 0)

    def encode_images(self, images: Sequence[Source]) -> Vectors:
        vectors = np.empty((len(images), self.dimension), np.float32)
        for start in range(0, len(images), BATCH):
            end = min(start + BATCH, len(images))
            # at the network's own size at once, so that a batch of large pictures never stands in memory
            squares = [self._model[0].square(opened(images, at)) for at in range(start, end)]
            vectors[start:end] = self._model.encode(
                squares, batch_size=BATCH, convert_to_numpy=True, show_progress_bar=False
            )
        return unit(vectors, images)


def opened(images: Sequence[Source], at: int) -> Image.Image:
    """The decoded picture, see `index.data.images.decode`. Raises `DataError` saying which one cannot be used."""
    image = images[at]
    with blaming(images, at):
        if isinstance(image, bytes):
            return decode(image)
        return decode(read_bytes(image) if isinstance(image, Path) else image.read())


@contextmanager
def blaming(images: Sequence[Source], at: int) -> Iterator[None]:
    """Names the picture that a `DataError` is about: its file, or its place among several.

    Bytes alone have no name here: who gave them says in words of their own what they were.
    """
    try:
        yield
    except DataError as error:
        image = images[at]
        if not isinstance(image, bytes):
            raise DataError(f"{image}: {error}") from error
        if len(images) > 1:
            raise DataError(f"Picture {at + 1}: {error}") from error
        raise


def unit(vectors: Vectors, images: Sequence[Source]) -> Vectors:
    """The vectors (n, d) of these pictures at norm 1. Raises `DataError` naming one that has no direction."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    empty = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if len(empty):
        with blaming(images, int(empty[0])):
            raise DataError(
                "The encoder finds nothing to see in the picture, as where it is all of one colour. Use another; where "
                "this is said of every picture, train or copy the encoder again."
            )
    scaled: Vectors = np.divide(vectors, norms, dtype=np.float32)
    return scaled
