"""Texts an encoder cannot read: with no word it knows, or longer than it takes."""

from __future__ import annotations

from collections.abc import Sequence

from sentence_transformers import SentenceTransformer

from index.data.rows import Row
from index.errors import DataError
from training.config import Kind
from training.parts.static import unreadable

SHOWN = 5


def check_readable(model: SentenceTransformer, kind: Kind, rows: Sequence[Row]) -> None:
    empty = unreadable(model, [row.text for row in rows]) if kind == "static" else []
    if empty:
        named = ", ".join(f"{rows[at].file} line {rows[at].line} ({rows[at].text[:40]!r})" for at in empty[:SHOWN])
        raise DataError(
            f"The encoder finds no word it knows in {len(empty)} of {len(rows)} texts: {named}"
            f"{' and others' if len(empty) > SHOWN else ''}. Reword these rows, delete them, or train another encoder."
        )


def cut_texts(model: SentenceTransformer, kind: Kind, rows: Sequence[Row]) -> list[str]:
    """A warning that names the texts longer than the encoder reads, or nothing."""
    if kind != "transformer" or not model.max_seq_length:
        return []
    limit = int(model.max_seq_length)
    tokens = model.tokenizer([row.text for row in rows], truncation=False, verbose=False)["input_ids"]
    cut = [row for row, ids in zip(rows, tokens, strict=True) if len(ids) > limit]
    if not cut:
        return []
    named = ", ".join(f"{row.file} line {row.line}" for row in cut[:SHOWN]) + (", ..." if len(cut) > SHOWN else "")
    return [f"{len(cut)} texts are longer than the {limit} tokens this encoder reads; their ends are ignored: {named}."]
