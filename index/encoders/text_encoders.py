"""Encoders of texts from a folder of sentence-transformers: static ones by numpy alone, all others by that library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from index.encoders.encoder import Vectors, checked_texts, default_prompt, nothing_to_read, tokenized, unit
from index.encoders.files import fingerprint, module_paths, need_torch, open_sentence_transformer
from index.errors import EncoderError


class StaticEncoder:
    """Mean of token embeddings, normalised: what sentence-transformers' `StaticEmbedding` computes, in numpy."""

    modality: Literal["text"] = "text"

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load
        from tokenizers import Tokenizer

        self.fingerprint = fingerprint(folder)
        module = module_paths(folder)[0]
        try:  # from their bytes: of a path, both take UTF-8 alone
            weights = load((module / "model.safetensors").read_bytes())["embedding.weight"]
            self._weights: Vectors = weights.astype(np.float32, copy=False)
            self._tokenizer = Tokenizer.from_buffer((module / "tokenizer.json").read_bytes())
        except Exception as error:  # both loaders raise bare Exceptions for damaged files
            raise EncoderError(f"{folder}: the encoder cannot be loaded ({error}). Train or copy it again.") from error
        if not np.isfinite(self._weights).all():
            raise EncoderError(
                f"{module / 'model.safetensors'}: weights hold NaN or infinity. Train the encoder again."
            )
        tokens = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if self._weights.ndim != 2 or tokens > len(self._weights):
            raise EncoderError(
                f"{module}: the tokenizer knows {tokens} tokens, the weights have shape {self._weights.shape}: they do "
                "not belong together. Copy the encoder's folder again."
            )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.dimension = int(self._weights.shape[1])
        self._prompt = default_prompt(folder)

    def encode(self, texts: Sequence[str]) -> Vectors:
        texts = checked_texts(texts)
        encodings = tokenized(self._tokenizer, [self._prompt + text for text in texts], special=False)
        lengths = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
        if not len(texts):
            return np.empty((0, self.dimension), np.float32)
        if not lengths.all():
            raise nothing_to_read(int(np.argmin(lengths)), texts)
        ids = np.fromiter((token for encoding in encodings for token in encoding.ids), np.int64, int(lengths.sum()))
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        sums = np.add.reduceat(self._weights[ids], starts, axis=0)
        return unit(np.divide(sums, lengths[:, None], dtype=np.float32), texts)

    def too_long(self, texts: Sequence[str]) -> list[int]:
        return []


class SentenceEncoder:
    """Any sentence-transformers folder."""

    modality: Literal["text"] = "text"

    def __init__(self, folder: Path, batch_size: int = 64) -> None:
        need_torch()
        self.fingerprint = fingerprint(folder)
        try:
            self._model = open_sentence_transformer(str(folder))
        except EncoderError:
            raise
        except Exception as error:  # transformers raises many unrelated types for damaged folders
            raise EncoderError(f"{folder}: the encoder cannot be loaded ({error}). Train or copy it again.") from error
        self._batch_size = batch_size
        self.dimension = int(self._model.get_embedding_dimension() or 0)

    def encode(self, texts: Sequence[str]) -> Vectors:
        texts = checked_texts(texts)
        vectors = self._model.encode(
            list(texts), batch_size=self._batch_size, convert_to_numpy=True, show_progress_bar=False
        )
        return unit(np.asarray(vectors, np.float32).reshape(len(texts), self.dimension), texts)

    def too_long(self, texts: Sequence[str]) -> list[int]:
        limit = self._model.max_seq_length
        if not limit or not np.isfinite(limit) or not texts:
            return []
        # two special tokens frame the text; tokenized without truncation to see the true length
        tokens = self._model.tokenizer(list(texts), truncation=False, add_special_tokens=True, verbose=False)
        return [at for at, ids in enumerate(tokens["input_ids"]) if len(ids) > limit]
