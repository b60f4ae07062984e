"""What an encoder is, and what those of texts share: their checks, the tokenizer's call, norm 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index.encoders.files import Modality, fingerprint, modality_of
from index.errors import DataError, EncoderError, RuntimeMissing

Vectors = NDArray[np.float32]
FEW_TEXTS = 4
"""Texts that are tokenized one by one, in the thread that asks."""


class Encoder(Protocol):
    """Content to unit vectors. `fingerprint` identifies what moves a vector, see `index.encoders.files`."""

    dimension: int
    fingerprint: str

    @property
    def modality(self) -> Modality:
        """What it encodes; with "image" it is an `index.encoders.image_encoder.ImageEncoder`."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """(n, d) float32, rows of norm 1. Raises `DataError` for a text that encodes to nothing."""
        ...

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Positions of texts longer than the encoder reads; their ends do not reach the vector."""
        ...


class WithoutRuntime:
    """An encoder that cannot run here, in the hands of what encodes nothing: a deletion, a compaction, a back-up."""

    def __init__(self, folder: Path, dimension: int, missing: str) -> None:
        self.fingerprint, self.modality, self.dimension = fingerprint(folder), modality_of(str(folder)), dimension
        self._missing = missing

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Raises `RuntimeMissing`."""
        raise RuntimeMissing(self._missing)

    def encode_images(self, images: Sequence[Any]) -> Vectors:
        """Raises `RuntimeMissing`."""
        raise RuntimeMissing(self._missing)

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Raises `RuntimeMissing`."""
        raise RuntimeMissing(self._missing)


def checked_texts(texts: Sequence[str]) -> Sequence[str]:
    """The texts as they are. Raises `DataError` for half a surrogate pair, which no tokenizer takes."""
    for at, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"Text {at + 1} holds half of a surrogate pair at character {error.start + 1}, which is not a "
                "character. Repair the text's encoding."
            ) from error
    return texts


def tokenized(tokenizer: Any, texts: Sequence[str], *, special: bool = True) -> list[Any]:
    """Encodings of a `tokenizers.Tokenizer`; of a few texts without its pool of threads, which takes longer to wake."""
    if len(texts) <= FEW_TEXTS:
        return [tokenizer.encode(text, add_special_tokens=special) for text in texts]
    return list(tokenizer.encode_batch(texts, add_special_tokens=special))


def unit(vectors: Vectors, texts: Sequence[str]) -> Vectors:
    """The vectors (n, d) of these texts at norm 1. Raises `EncoderError` for NaN, `DataError` for a zero vector."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise EncoderError("The encoder produced NaN or infinity. Its weights are damaged: train or copy it again.")
    empty = np.flatnonzero(norms[:, 0] == 0)
    if len(empty):
        raise nothing_to_read(int(empty[0]), texts)
    found: Vectors = np.divide(vectors, norms, dtype=np.float32)
    return found


def nothing_to_read(at: int, texts: Sequence[str]) -> DataError:
    """For a text that encodes to nothing."""
    return DataError(
        f"The encoder finds nothing to read in text {at + 1} ({texts[at][:40]!r}). Use a text with at least one word "
        "it knows."
    )


def default_prompt(folder: Path) -> str:
    """What the encoder in `folder` puts before every text."""
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return ""
    config = json.loads(path.read_text(encoding="utf-8"))
    return str((config.get("prompts") or {}).get(config.get("default_prompt_name")) or "")
