"""Which encoder lies in a folder, and the folder of an encoder by its name.

Static encoders run with numpy alone and exported ones with ONNX Runtime, so that serving them needs no torch. All
others go through sentence-transformers. All give float32 unit rows, checked: a NaN weight or a text that encodes to
nothing is an error, never a vector.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from index.encoders import multilingual
from index.encoders.encoder import Encoder
from index.encoders.files import ONNX_PICTURES, ONNX_RECORD, SFACE, module_kinds, open_sentence_transformer
from index.encoders.text_encoders import SentenceEncoder, StaticEncoder
from index.errors import EncoderError

READY = ("static", "minilm", "multilingual", SFACE)
"""Encoders that come with packages."""


def load_encoder(folder: Path) -> Encoder:
    """The encoder in `folder`, static and exported ones without torch. Raises `EncoderError`."""
    if (folder / ONNX_RECORD).is_file():
        from index.encoders.onnx_encoder import OnnxEncoder

        return OnnxEncoder(folder)
    kinds = module_kinds(folder)
    if kinds in (["StaticEmbedding"], ["StaticEmbedding", "Normalize"]):
        return StaticEncoder(folder)
    if kinds == [multilingual.KIND]:
        return multilingual.MultilingualEncoder(folder)
    if kinds == ["ImageNetwork"]:
        from index.encoders.image_encoder import NetworkEncoder

        return NetworkEncoder(folder)
    if kinds[0] in ("SFace", ONNX_PICTURES):
        return _ready_made(folder, kinds)
    return SentenceEncoder(folder)


def _ready_made(folder: Path, kinds: list[str]) -> Encoder:
    """A picture encoder of others, with the projection trained on it where there is one."""
    from index.encoders.projection import KIND, ProjectedEncoder

    base: Any
    if kinds[0] == ONNX_PICTURES:
        from index.encoders.onnx_pictures import OnnxPictureEncoder

        base = OnnxPictureEncoder(folder)
    else:
        from index.encoders.faces import FaceEncoder

        base = FaceEncoder(folder)
    if kinds[1:] not in ([], [KIND]):
        raise EncoderError(f"{folder / 'modules.json'}: {kinds[1:]} after {kinds[0]} is not known. Copy it again.")
    return ProjectedEncoder(folder, base) if kinds[1:] else base


@contextmanager
def encoder_folder(name: str) -> Iterator[Path]:
    """The folder of the encoder called `name`: a folder, `static`, `minilm`, `multilingual`, `sface`, an ONNX file of
    a picture encoder (see `index.encoders.onnx_pictures`), or a hub id.

    One that comes from a package or the hub is saved for a while. Raises `EncoderError`.
    """
    if Path(name).is_dir():
        yield Path(name)
        return
    with tempfile.TemporaryDirectory() as saved:
        if name == multilingual.NAME:
            multilingual.write_multilingual(Path(saved))
        elif name == SFACE:
            from index.encoders.faces import write_sface

            write_sface(Path(saved))
        elif name.endswith(".onnx"):
            from index.encoders.onnx_pictures import write_onnx_pictures

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
    elif Path(name).parent != Path() and Path(name).parent.is_dir():
        raise EncoderError(
            f"{name}: no such folder, though {Path(name).parent} is there. Check the path; it is taken from "
            f"{Path.cwd()}. A hub id is looked for where no folder is called as its owner."
        )
    elif name not in READY and name.count("/") != 1:
        open_sentence_transformer(name)  # which refuses it
