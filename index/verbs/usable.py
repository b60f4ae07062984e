"""Which pictures an encoder can use: files may be sound and still show no face, or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from index.calibration.sources import Progress
from index.data.rows import Row
from index.encoders.encode import Vectors, encode_batch
from index.encoders.encoder import Encoder
from index.encoders.image_encoder import PicturesOnly, Source, image_encoder
from index.encoders.pictures import of_table, place_of
from index.errors import DataError


class Remembering(PicturesOnly):
    """A picture encoder that encodes no picture twice: it keeps the vectors, 4 d bytes each, while it lives."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = image_encoder(encoder)
        self.dimension, self.fingerprint = encoder.dimension, encoder.fingerprint
        self._known: dict[Source, Vectors] = {}

    def encode_images(self, images: Sequence[Source]) -> Vectors:
        """As `ImageEncoder.encode_images`."""
        new = [image for image in dict.fromkeys(images) if image not in self._known]
        self._known.update(zip(new, self._encoder.encode_images(new), strict=True))
        return np.stack([self._known[image] for image in images]) if images else self._encoder.encode_images([])


def usable(encoder: Encoder, rows: Sequence[Row], faulty: list[Row], progress: Progress) -> list[Row]:
    """The rows that `encoder` takes, in order; the others go to `faulty` with the reason as their `fault`.

    Every row is encoded for it: give a `Remembering` one, and use it afterwards.
    """
    kept = []
    for done, row in enumerate(rows, 1):
        try:
            encode_batch(encoder, [row])
            kept.append(row)
        except DataError as error:
            faulty.append(replace(row, fault=str(error).removeprefix(f"{row.image}: ")))
        progress("looking at pictures", done, len(rows))
    return kept


def left_out(faulty: Sequence[Row]) -> list[dict[str, Any]]:
    """What programs are told of pictures that were left out; `table` and `line` are null where no table names them, and
    `file` where its line names none."""
    return [
        {
            "file": None if row.image is None else str(row.image),
            "table": row.file if of_table(row) else None,
            "line": row.line if of_table(row) else None,
            "reason": row.fault,
        }
        for row in faulty
    ]


def summary(faulty: Sequence[Row]) -> str:
    """What people are told of them: all, one a line."""
    lines = [f"{place_of(row)}: {row.fault}" for row in faulty]
    return "\n".join([f"{len(faulty)} {'picture was' if len(faulty) == 1 else 'pictures were'} left out:", *lines])
