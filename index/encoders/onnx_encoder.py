"""Encoders for serving without torch: one ONNX file from token ids to unit vectors, run by ONNX Runtime.

`index.encoders.onnx_export` makes the folder: `model.onnx` in the place of the weights, the tokenizer as it was,
and `onnx.json` with what the file is and its SHA-256, which is checked before ONNX Runtime sees a byte of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from index.encoders.encoder import checked_texts, default_prompt, tokenized, unit
from index.encoders.files import ONNX_MODEL, ONNX_RECORD, fingerprint, module_paths
from index.errors import EncoderError, RuntimeMissing

# ONNX Runtime 1.32 tells its maker about its use, and keeps a file of it in the user's cache, unless this stands in the
# environment before it is loaded
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Vectors = NDArray[np.float32]

_BATCH = 32
_NOWHERE = "/dev/null/no-files-beside-a-model"


class OnnxEncoder:
    """Texts to unit vectors by ONNX Runtime on the CPU; safe to use from several threads."""

    modality: Literal["text"] = "text"

    def __init__(self, folder: Path) -> None:
        """Raises `EncoderError` for a folder that is damaged, or when ONNX Runtime is not installed."""
        need_onnxruntime()
        from tokenizers import Tokenizer

        self.fingerprint = fingerprint(folder)
        record, content = _read(folder)
        try:
            self._session = inference_session(content)
            self._tokenizer = Tokenizer.from_buffer((module_paths(folder)[0] / "tokenizer.json").read_bytes())
            self._inputs = [str(name) for name in record["inputs"]]
            self._pad, self._limit = int(record["pad"]), int(record["max_tokens"])
            self.dimension = int(record["dimension"])
            self.precision = str(record["precision"])
        except Exception as error:  # both loaders raise many unrelated types
            raise EncoderError(f"{folder}: the encoder cannot be loaded ({error}). Build or copy it again.") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._limit)
        self._prompt = default_prompt(folder)

    def encode(self, texts: Sequence[str]) -> Vectors:
        texts = checked_texts(texts)
        encodings = self._encodings(texts)
        vectors = np.empty((len(texts), self.dimension), np.float32)
        order = np.argsort([len(encoding.ids) for encoding in encodings], kind="stable")
        for start in range(0, len(order), _BATCH):  # texts of one length together: padding is computed for nothing
            batch = order[start : start + _BATCH]
            vectors[batch] = self._run([encodings[at] for at in batch])
        return unit(vectors, texts)

    def too_long(self, texts: Sequence[str]) -> list[int]:
        return [at for at, encoding in enumerate(self._encodings(texts)) if encoding.overflowing]

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        return tokenized(self._tokenizer, [self._prompt + text for text in texts])

    def _run(self, encodings: list[Any]) -> Vectors:
        longest = max(len(encoding.ids) for encoding in encodings)
        fields = {
            "input_ids": np.full((len(encodings), longest), self._pad, np.int64),
            "attention_mask": np.zeros((len(encodings), longest), np.int64),
            "token_type_ids": np.zeros((len(encodings), longest), np.int64),
        }
        for at, encoding in enumerate(encodings):
            end = len(encoding.ids)
            fields["input_ids"][at, :end] = encoding.ids
            fields["attention_mask"][at, :end] = 1
            fields["token_type_ids"][at, :end] = encoding.type_ids
        found: Vectors = self._session.run(None, {name: fields[name] for name in self._inputs})[0]
        return found


def inference_session(content: bytes, constants: Mapping[str, NDArray[Any]] | None = None) -> Any:
    """The network in an ONNX file, on the CPU: as many threads as there are cores, or as OMP_NUM_THREADS says.

    `constants` are those that the file only names; they must stay as they are unless ONNX Runtime packs its own copy.
    A file that names others, which lie in files beside it, is refused: no checksum covers those, and any file that this
    process may read could be named (ONNX Runtime looks in the working directory, for what it gets as bytes).

    Between two calls they sleep: as they come they turn for a while, on cores that somebody else needs. The sum of two
    values is normalised in two steps: ONNX Runtime 1.32 is slower by its one operator for both.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list: of the outermost level
    options.intra_op_num_threads = int(threads or len(os.sched_getaffinity(0)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    options.log_severity_level = 3
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in (constants or {}).values()]
    if constants:
        options.add_external_initializers(list(constants), values)
    return onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
    )


def need_onnxruntime() -> None:
    """Raises `EncoderError` with the remedy when ONNX Runtime is not installed."""
    if find_spec("onnxruntime") is None:
        raise RuntimeMissing(
            "This encoder runs on ONNX Runtime, which is not installed. Install it with: pip install 'surematch[onnx]'"
        )


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The record and the model's bytes, which are those the record was written for."""
    try:
        record = json.loads((folder / ONNX_RECORD).read_text(encoding="utf-8"))
        content = (folder / ONNX_MODEL).read_bytes()
        expected = str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(
            f"{folder / ONNX_RECORD}: cannot be read ({error}). Build or copy the encoder again."
        ) from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise EncoderError(
            f"{folder / ONNX_MODEL}: is damaged: its SHA-256 is not the one in {ONNX_RECORD}. Build or copy the "
            "encoder again."
        )
    return record, content
