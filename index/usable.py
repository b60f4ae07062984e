"""Which pictures an encoder can use: files may be sound and still show no face, or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from index.encode import Vectors, encode_batch
from index.encoders import Encoder
from index.errors import DataError
from index.rows import SHOWN, Row
from index.sources import Progress


def usable(encoder: Encoder, rows: Sequence[Row], faulty: list[Row], progress: Progress) -> tuple[list[Row], Vectors]:
    """The rows that `encoder` takes, in order, and their vectors (n, d); the others go to `faulty` with the reason in
    `extra["fault"]`.
    """
    kept: list[Row] = []
    vectors = np.empty((len(rows), encoder.dimension), np.float32)
    for done, row in enumerate(rows, 1):
        try:
            vectors[len(kept)] = encode_batch(encoder, [row])[0]
            kept.append(row)
        except DataError as error:
            faulty.append(replace(row, extra={**row.extra, "fault": str(error).removeprefix(f"{row.image}: ")}))
        progress("looking at pictures", done, len(rows))
    return kept, vectors[: len(kept)]


def left_out(faulty: Sequence[Row]) -> list[dict[str, str]]:
    """What is said of pictures that were left out."""
    return [{"file": str(row.image or row.file), "reason": str(row.extra["fault"])} for row in faulty]


def summary(faulty: Sequence[Row]) -> str:
    """One sentence that names the first of them."""
    named = "; ".join(f"{entry['file']}: {entry['reason']}" for entry in left_out(faulty[:SHOWN]))
    return f"{len(faulty)} pictures were left out. {named}" + (" ..." if len(faulty) > SHOWN else "")
