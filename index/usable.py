"""Which pictures an encoder can use: files may be sound and still show no face, or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from index.encode import encode_batch
from index.encoders import Encoder
from index.errors import DataError
from index.rows import SHOWN, Row
from index.sources import Progress


def usable(encoder: Encoder, rows: Sequence[Row], faulty: list[Row], progress: Progress) -> list[Row]:
    """The rows that `encoder` takes, in order; the others go to `faulty` with the reason in `extra["fault"]`.

    Every row is encoded for it, and the vector forgotten.
    """
    kept = []
    for done, row in enumerate(rows, 1):
        try:
            encode_batch(encoder, [row])
            kept.append(row)
        except DataError as error:
            faulty.append(replace(row, extra={**row.extra, "fault": str(error).removeprefix(f"{row.image}: ")}))
        progress("looking at pictures", done, len(rows))
    return kept


def left_out(faulty: Sequence[Row]) -> list[dict[str, str]]:
    """What is said of pictures that were left out."""
    return [{"file": str(row.image or row.file), "reason": str(row.extra["fault"])} for row in faulty]


def summary(faulty: Sequence[Row]) -> str:
    """One sentence that names the first of them."""
    named = "; ".join(f"{entry['file']}: {entry['reason']}" for entry in left_out(faulty[:SHOWN]))
    return f"{len(faulty)} pictures were left out. {named}" + (" ..." if len(faulty) > SHOWN else "")
