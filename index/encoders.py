"""Encoders: texts to unit vectors.

`StaticEncoder` reads a trained `static` model with numpy alone, and `index.onnx_encoder` runs exported ones, so that
serving them needs no torch. Everything else goes through sentence-transformers. All give float32 unit rows, checked: a
NaN weight or a text that encodes to nothing is an error, never a vector.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from index.encoder_files import (
    ONNX_PICTURES,
    ONNX_RECORD,
    SFACE,
    Modality,
    fingerprint,
    module_kinds,
    module_paths,
    need_torch,
    open_sentence_transformer,
)
from index.errors import DataError, EncoderError

Vectors = NDArray[np.float32]

READY = ("static", "minilm", "multilingual", SFACE)
"""Encoders that come with packages."""
FEW_TEXTS = 4
"""Texts that are tokenized one by one, in the thread that asks."""


class Encoder(Protocol):
    """Content to unit vectors. `fingerprint` identifies what moves a vector, see `index.encoder_files`."""

    dimension: int
    fingerprint: str

    @property
    def modality(self) -> Modality:
        """What it encodes; with "image" it is an `index.image_encoder.ImageEncoder`."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """(n, d) float32, rows of norm 1. Raises `DataError` for a text that encodes to nothing."""
        ...

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Positions of texts longer than the encoder reads; their ends do not reach the vector."""
        ...


def load_encoder(folder: Path) -> Encoder:
    """The encoder in `folder`, static and exported ones without torch. Raises `EncoderError`."""
    if (folder / ONNX_RECORD).is_file():
        from index.onnx_encoder import OnnxEncoder

        return OnnxEncoder(folder)
    kinds = module_kinds(folder)
    if kinds in (["StaticEmbedding"], ["StaticEmbedding", "Normalize"]):
        return StaticEncoder(folder)
    from index import multilingual  # which needs the checks below

    if kinds == [multilingual.KIND]:
        return multilingual.MultilingualEncoder(folder)
    if kinds == ["ImageNetwork"]:
        from index.image_encoder import NetworkEncoder

        return NetworkEncoder(folder)
    if kinds[0] in ("SFace", ONNX_PICTURES):
        return _ready_made(folder, kinds)
    return SentenceEncoder(folder)


def _ready_made(folder: Path, kinds: list[str]) -> Encoder:
    """A picture encoder of others, with the projection trained on it where there is one."""
    from index.projection import KIND, ProjectedEncoder

    base: Any
    if kinds[0] == ONNX_PICTURES:
        from index.onnx_pictures import OnnxPictureEncoder

        base = OnnxPictureEncoder(folder)
    else:
        from index.faces import FaceEncoder

        base = FaceEncoder(folder)
    if kinds[1:] not in ([], [KIND]):
        raise EncoderError(f"{folder / 'modules.json'}: {kinds[1:]} after {kinds[0]} is not known. Copy it again.")
    return ProjectedEncoder(folder, base) if kinds[1:] else base


@contextmanager
def encoder_folder(name: str) -> Iterator[Path]:
    """The folder of the encoder called `name`: a folder, `static`, `minilm`, `multilingual`, `sface`, an ONNX file of
    a picture encoder (see `index.onnx_pictures`), or a hub id.

    One that comes from a package or the hub is saved for a while. Raises `EncoderError`.
    """
    if Path(name).is_dir():
        yield Path(name)
        return
    from index import multilingual  # which needs the checks below

    with tempfile.TemporaryDirectory() as saved:
        if name == multilingual.NAME:
            multilingual.write_multilingual(Path(saved))
        elif name == SFACE:
            from index.faces import write_sface

            write_sface(Path(saved))
        elif name.endswith(".onnx"):
            from index.onnx_pictures import write_onnx_pictures

            write_onnx_pictures(Path(name), Path(saved))
        else:
            model = open_sentence_transformer(name)
            try:
                model.save(saved, create_model_card=False)
            except Exception as error:  # safetensors raises its own bare type
                raise EncoderError(
                    f"The encoder '{name}' cannot be put into {saved} ({error}). Set TMPDIR to a folder with room."
                ) from error
        yield Path(saved)


def check_encoder(name: str) -> None:
    """Raises `EncoderError` for a name that `encoder_folder` cannot make an encoder of, before any work is done for it.

    Nothing is loaded for this, so hub ids, of which only the hub can tell, pass.
    """
    if Path(name).is_dir():
        module_kinds(Path(name))
    elif name.endswith(".onnx"):
        if not Path(name).is_file():
            raise EncoderError(f"{name}: no such file. Check the path; it is taken from {Path.cwd()}.")
    elif name not in READY and name.count("/") != 1:
        open_sentence_transformer(name)  # which refuses it


def tokenized(tokenizer: Any, texts: Sequence[str], *, special: bool = True) -> list[Any]:
    """Encodings of a `tokenizers.Tokenizer`; of a few texts without its pool of threads, which takes longer to wake."""
    if len(texts) <= FEW_TEXTS:
        return [tokenizer.encode(text, add_special_tokens=special) for text in texts]
    return list(tokenizer.encode_batch(texts, add_special_tokens=special))


class StaticEncoder:
    """Mean of token embeddings, normalised: what sentence-transformers' `StaticEmbedding` computes, in numpy."""

    modality: Literal["text"] = "text"

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self.fingerprint = fingerprint(folder)
        module = module_paths(folder)[0]
        try:
            self._weights: Vectors = load_file(module / "model.safetensors")["embedding.weight"].astype(np.float32)
            self._tokenizer = Tokenizer.from_file(str(module / "tokenizer.json"))
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
            raise _nothing_to_read(int(np.argmin(lengths)), texts)
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


def unit(vectors: Vectors, texts: Sequence[str]) -> Vectors:
    """The vectors (n, d) of these texts at norm 1. Raises `EncoderError` for NaN, `DataError` for a zero vector."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise EncoderError("The encoder produced NaN or infinity. Its weights are damaged: train or copy it again.")
    empty = np.flatnonzero(norms[:, 0] == 0)
    if len(empty):
        raise _nothing_to_read(int(empty[0]), texts)
    found: Vectors = np.divide(vectors, norms, dtype=np.float32)
    return found


def _nothing_to_read(at: int, texts: Sequence[str]) -> DataError:
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
